"""Lines of a text file, packed with gzip or not, in memory that does not grow with the file.

Decides how long a line may be and how much a packed file may unpack to; knows nothing of what the lines say.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from atoll.model.errors import SourceError

GZIP_MAGIC: Final = b"\x1f\x8b"
_CHUNK_BYTES: Final = 256 * 1024
# A job with all its columns takes 1 KiB with eight adapters; a megabyte without a line's end is another kind of file.
LINE_BYTES_MAX: Final = 64 * 1024
# Text that says something different in each row, an arrival at least, packs to a fortieth; only padding packs to less than a two-hundredth.
RATIO_MAX: Final = 200
# Below this a ratio says little: the first rows of a trace may be nearly alike.
_RATIO_FROM_BYTES: Final = 1024 * 1024


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line with its number from 1, without its end. SourceError for what is no text of lines; nothing is held but one chunk."""
    packed = path.name.endswith(".gz")
    with path.open("rb") as raw:
        _check_packing(path, raw, packed=packed)
        stream: IO[bytes] = gzip.GzipFile(fileobj=raw, mode="rb") if packed else raw  # type: ignore[assignment]  # both read bytes
        rest, number = b"", 0
        for chunk in _chunks(path, raw, stream, packed=packed):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                number += 1
                yield number, _checked(path, number, line)
            _checked(path, number + 1, rest)
        if rest:
            yield number + 1, _checked(path, number + 1, rest)


def _chunks(path: Path, raw: IO[bytes], stream: IO[bytes], *, packed: bool) -> Iterator[bytes]:
    unpacked_bytes = 0
    while True:
        try:
            chunk = stream.read(_CHUNK_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(str(path), 0, "file", str(error), "a whole gzip file; pack or copy it again") from None
        if not chunk:
            return
        unpacked_bytes += len(chunk)
        if packed and unpacked_bytes > _RATIO_FROM_BYTES and unpacked_bytes > RATIO_MAX * max(raw.tell(), 1):
            said = f"{unpacked_bytes} bytes out of {raw.tell()}"
            raise SourceError(
                str(path), 0, "file", said, f"a file that unpacks to at most {RATIO_MAX} times its size; unpack it first if it is meant"
            )
        yield chunk


def _check_packing(path: Path, raw: IO[bytes], *, packed: bool) -> None:
    begins = raw.read(4)
    raw.seek(0)
    if packed and not begins.startswith(GZIP_MAGIC):
        raise SourceError(str(path), 0, "file", begins, "a gzip file, as its name ends in .gz")
    if not packed and begins.startswith(GZIP_MAGIC):
        raise SourceError(str(path), 0, "file", begins, "text; it is packed with gzip: let its name end in .gz")
    if begins.startswith(b"PK\x03\x04"):
        raise SourceError(str(path), 0, "file", begins, "a text file; it is a zip archive: unpack it first")


def _checked(path: Path, number: int, line: bytes) -> bytes:
    if len(line) > LINE_BYTES_MAX:
        raise SourceError(str(path), number, "row", f"{len(line)} bytes and more", f"lines of at most {LINE_BYTES_MAX} bytes, one job each")
    return line.removesuffix(b"\r")
