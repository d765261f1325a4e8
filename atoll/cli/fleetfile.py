"""A fleet file, such as clusters.yaml, or a fleet that has a name, as sites and links.

Decides how large such a file may be; what it may say is `atoll.catalog`'s matter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from atoll.cli.exits import CliError, Exit
from atoll.cli.textfile import read_text
from atoll.model.site import LinkSpec, SiteSpec

# The reference fleet takes 50 kB; 10,000 sites would take 15 MB.
_FILE_BYTES_MAX: Final = 32 * 1024 * 1024


def read_fleet(path: Path) -> tuple[tuple[SiteSpec, ...], tuple[LinkSpec, ...]]:
    """Sites and links of a file, or of a fleet with this name. Raises CliError with every mistake found, each with its line."""
    from atoll import data
    from atoll.catalog.fleet import parse_fleet
    from atoll.catalog.gpus import parse_gpus
    from atoll.catalog.problems import SourceErrors
    from atoll.packaged import named_fleet

    gpus = parse_gpus(data.gpus_csv(), "gpus.csv")
    named = named_fleet(str(path), gpus)
    if named is not None:
        return named.sites, named.links
    text = read_text(path, _FILE_BYTES_MAX)
    try:
        fleet = parse_fleet(text, str(path), gpus, data.fleet_wan_csv())
    except SourceErrors as error:
        first, *more = [str(one) for one in error.errors]
        raise CliError(first, code=Exit.USAGE, more=tuple(more)) from None
    return fleet.sites, fleet.links
