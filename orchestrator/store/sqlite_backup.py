"""A copy of the embedded store while it is in use.

Decides how a copy becomes visible: whole and durable under its name, or not at all. Must not know who asked for it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from atoll.model.errors import FieldError
from orchestrator.store.sqlite_schema import open_reader, sync_folder, told

# A restored copy must not be mistaken for a deposed leader: agents refuse terms lower than the highest they saw, and the original
# may have been taken over many times since. More often than this it was not.
TERM_GAP: Final = 1_000_000


def write_backup(source: str, path: str) -> int:
    """Copy `source` to `path`; size in bytes. FieldError when `path` cannot be made, StoreError when the copy fails."""
    try:
        with new_file(path) as partial:
            _copy(source, partial)
    except (sqlite3.Error, OSError) as error:
        raise told(error, path) from error
    return os.stat(path).st_size


@contextmanager
def new_file(path: str) -> Iterator[str]:
    """A file to write a copy into, which then becomes visible as `path`, whole and durable; on any error it does not.

    FieldError when `path` cannot be made, OSError when what was written cannot be kept.
    """
    check_path(path)
    folder, partial = os.path.dirname(path), f"{path}.partial"
    try:
        os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise FieldError("path", path, f"a path whose {partial!r} does not exist (a backup is running, or one was cut off)") from None
    except OSError as error:
        raise FieldError("path", path, f"a path that can be written ({error.strerror})") from None
    try:
        yield partial
        _sync(partial)
        # Unlike a rename, a link never replaces what somebody else put there meanwhile.
        os.link(partial, path)
        sync_folder(folder)
    except FileExistsError:
        raise FieldError("path", path, "a path that does not exist yet") from None
    finally:
        for left in (partial, *(f"{partial}{ending}" for ending in ("-journal", "-wal", "-shm", ".lock"))):
            if os.path.lexists(left):
                os.unlink(left)


def check_path(path: str) -> None:
    """FieldError unless `path` is absolute, printable, free, and in a folder that exists."""
    if not path.startswith("/") or not path.isprintable() or path.endswith("/") or len(path) > 4_000:
        raise FieldError("path", path, "an absolute path of a file, in printable characters")
    if ".." in path.split("/"):
        raise FieldError("path", path, "a path without '..'")
    if not os.path.isdir(os.path.dirname(path)):
        raise FieldError("path", path, "a path in a folder that exists")
    if os.path.lexists(path):
        raise FieldError("path", path, "a path that does not exist yet")


def _copy(source: str, partial: str) -> None:
    origin = open_reader(source)
    try:
        copy = sqlite3.connect(partial, isolation_level=None)
        try:
            # In write-ahead mode this reads one snapshot and holds up no writer.
            origin.backup(copy)
            as_copy(copy)
        finally:
            copy.close()
    finally:
        origin.close()


def as_copy(copy: sqlite3.Connection) -> None:
    """What makes a store one that may go on in another's place: one file without a log beside it, under a term that nobody has seen."""
    copy.execute("PRAGMA journal_mode = DELETE")
    copy.execute("UPDATE fleet SET term = term + ?", (TERM_GAP,))


def _sync(partial: str) -> None:
    fd = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
