"""`atoll demo`: a fleet of two real sites and 36 twins on this machine, and pictures in out/ that can be made again without it.

Decides what its command line means. The parts are loaded when they are needed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def run(args: Sequence[str]) -> int:
    """Run the demo, or verify the pictures of one; the exit code."""
    parser = argparse.ArgumentParser(prog="atoll demo", description="Two real sites and 36 twins on this machine; pictures in out/.")
    parser.add_argument("--verify", action="store_true", help="make the pictures again with plain diffusers and compare their pixels")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="FOLDER", help="where pictures and logs go [out]")
    parser.add_argument("--fleet", type=Path, default=None, metavar="FILE", help="sites to rehearse [clusters.yaml]")
    given = parser.parse_args(list(args))
    from atoll.cli.demo.places import Places

    places = Places(out=given.out.expanduser().absolute())
    if given.verify:
        from atoll.cli.demo.verify import verify

        return verify(places)
    from atoll.cli.demo.fleet import fleet_file
    from atoll.cli.demo.play import play

    return play(places, given.fleet or fleet_file())
