"""A text file that a person names on the command line.

Decides how large it may be; what it says is somebody else's matter.
"""

from __future__ import annotations

from pathlib import Path

from atoll.catalog.decoding import NotTextError, decode, refuse_packed
from atoll.cli.exits import CliError, Exit


def read_text(path: Path, bytes_max: int) -> str:
    """All of it. Raises CliError naming the file and what would be right."""
    try:
        with path.open("rb") as opened:
            content = opened.read(bytes_max + 1)
    except OSError as error:
        raise CliError(f"FILE is '{path}': cannot read it: {error.strerror or error}", code=Exit.USAGE) from None
    except ValueError as error:  # a NUL in its name
        raise CliError(f"FILE is {str(path)!r}: cannot read it: {error}", code=Exit.USAGE) from None
    try:
        refuse_packed(content)
        if len(content) > bytes_max:
            raise CliError(f"FILE is '{path}': expected at most {bytes_max >> 20} MiB; give it in parts", code=Exit.USAGE)
        return decode(content)
    except NotTextError as error:
        raise CliError(f"FILE is '{path}': expected {error}", code=Exit.USAGE) from None
