"""Which bytes of an unfinished fetch are there, when several sources write into the same files: kept beside them, for the next try.

Decides what is believed after a stop, a crash or a loss of power: ranges that were noted and lie within their file; of a file of which none
was, its whole length. Whatever is believed wrongly is found by the file's digest. Must not know sources.

    <partial folder>/.ranges    "<first byte> <byte after the last> <path>" for each range, one a line, in any order
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from agents.engine.manifest import ManifestFile

NAME: Final = ".ranges"
# A line for each range that a source gave; even a fetch of a terabyte that is stopped a hundred times has no more.
_BYTES_MAX: Final = 16 * 1024 * 1024
_LINE: Final = re.compile(r"([0-9]{1,19}) ([0-9]{1,19}) (.{1,1000})\Z")

Range = tuple[int, int]


def merged(ranges: Iterable[Range]) -> list[Range]:
    """The same bytes in as few ranges as can be, in order."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        elif start < end:
            found.append((start, end))
    return found


def missing(held: list[Range], size: int) -> list[Range]:
    """What merged ranges leave out of a file."""
    edges = [0, *(edge for one in held for edge in one), size]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


def note(partial: Path, path: str, start: int, end: int) -> None:
    """A range of a file is there. One write each: lines of several threads do not mix."""
    descriptor = os.open(partial / NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, f"{start} {end} {path}\n".encode())
    finally:
        os.close(descriptor)


def held(partial: Path, files: Iterable[ManifestFile]) -> dict[str, list[Range]]:
    """By path what is there of each file."""
    noted = _noted(partial / NAME)
    found: dict[str, list[Range]] = {}
    for file in files:
        target = partial / file.path
        there = target.stat().st_size if target.is_file() else 0
        if there > file.bytes:
            target.unlink()
            there = 0
        told = noted.get(file.path, [(0, there)])
        found[file.path] = merged((start, min(end, there)) for start, end in told)
    return found


def settle(partial: Path, files: Iterable[ManifestFile]) -> None:
    """Make every file end where its first gap begins: for a fetch that reads one source, each file from its beginning on."""
    if not (partial / NAME).exists():
        return
    for path, ranges in held(partial, files).items():
        if (partial / path).is_file():
            os.truncate(partial / path, ranges[0][1] if ranges and ranges[0][0] == 0 else 0)
    (partial / NAME).unlink()


def _noted(path: Path) -> dict[str, list[Range]]:
    try:
        with path.open("rb") as file:
            text = file.read(_BYTES_MAX).decode("utf-8", "replace")
    except FileNotFoundError:
        return {}
    found: dict[str, list[Range]] = {}
    for line in text.split("\n"):
        match = _LINE.match(line)
        if match is not None:
            found.setdefault(match[3], []).append((int(match[1]), int(match[2])))
    return found
