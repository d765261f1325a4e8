"""`atoll demo`: a fleet of two real sites and 36 twins on this machine, and pictures in out/ that can be made again without it.

Decides which half of it runs. The parts are loaded when they are needed.
"""

from __future__ import annotations

from pathlib import Path


def run(*, out: str, fleet: str, verify: bool) -> int:
    """Run the demo in this folder, or verify the pictures of one; the exit code. `fleet` "": the reference fleet."""
    from atoll.cli.demo.places import Places

    places = Places(out=Path(out).expanduser().absolute())
    if verify:
        from atoll.cli.demo.verify import verify as make_again

        return make_again(places)
    from atoll.cli.demo.fleet import fleet_file
    from atoll.cli.demo.play import play

    return play(places, Path(fleet).expanduser() if fleet else fleet_file())
