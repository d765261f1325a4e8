"""A text file that a person names on the command line.

Decides that it is UTF-8 and how large it may be; what it says is somebody else's matter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from atoll.cli.exits import CliError, Exit

# How what is no text begins, and what to do with it.
_PACKED: Final = (
    (b"\x1f\x8b", "compressed: unpack it first, with gunzip"),
    (b"\x28\xb5\x2f\xfd", "compressed: unpack it first, with unzstd"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet: unpack it, or save the sheet as CSV in UTF-8"),
)


def read_text(path: Path, bytes_max: int) -> str:
    """All of it. Raises CliError naming the file and what would be right."""
    try:
        with path.open("rb") as opened:
            content = opened.read(bytes_max + 1)
    except OSError as error:
        raise CliError(f"FILE is '{path}': cannot read it: {error.strerror or error}", code=Exit.USAGE) from None
    except ValueError as error:  # a NUL in its name
        raise CliError(f"FILE is {str(path)!r}: cannot read it: {error}", code=Exit.USAGE) from None
    packed = next((what for beginning, what in _PACKED if content.startswith(beginning)), "")
    if packed:
        raise CliError(f"FILE is '{path}': expected text, and this is {packed}", code=Exit.USAGE)
    if len(content) > bytes_max:
        raise CliError(f"FILE is '{path}': expected at most {bytes_max >> 20} MiB; give it in parts", code=Exit.USAGE)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CliError(f"FILE is '{path}': expected UTF-8 text (byte {error.start}, in line {line}, is none)", code=Exit.USAGE) from None
