"""Small durable files below one fsspec URL: written whole or not at all, created once or not at all.

Decides what "durable" and "atomic" mean on a local disk and on an object store. Must not know what the files are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from atoll.model.errors import AtollError, quoted

_CHUNK_BYTES: Final = 4 * 1024 * 1024
# No writer takes a day for one file.
_UNFINISHED_S: Final = 24 * 3600


class StoreError(AtollError):
    """The store cannot be read or written; names the place."""


class Objects(Protocol):
    """Files by relative path (already checked by the caller: no '..', no leading '/')."""

    url: str

    def create(self, path: str, source: Callable[[], Iterator[bytes]]) -> bool:
        """Store what `source()` yields under `path`, durably. False, changing nothing, if there is such a file
        already."""

    def size(self, path: str) -> int | None:
        """Bytes of a file, None if there is none."""

    def chunks(self, path: str, offset: int, chunk_bytes: int) -> Iterator[bytes]:
        """The file from `offset` on, in pieces of `chunk_bytes`. StoreError if there is none."""

    def list(self, folder: str) -> tuple[str, ...]:
        """Paths of all files below a folder, sorted; none if there is no such folder."""

    def remove(self, path: str) -> None:
        """Delete a file; nothing if there is none."""


def open_objects(url: str) -> Objects:
    """The store at a path or URL. Touches no network. StoreError if no installed package speaks to such a URL."""
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise StoreError(f"artifact store {quoted(url)}: {error}") from error
    if "file" in (files.protocol if isinstance(files.protocol, tuple) else (files.protocol,)):
        return LocalObjects(Path(root))
    return RemoteObjects(url, files, root)


class LocalObjects:
    """On a disk of this machine: a temporary file, fsync, then a hard link, which fails where a file exists."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._unfinished = self._root / ".partial"
        self.url = self._root.as_uri()
        try:
            self._unfinished.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"artifact store {self._root}: {error}") from error
        self._forget_unfinished()

    def create(self, path: str, source: Callable[[], Iterator[bytes]]) -> bool:
        target = self._root / path
        unfinished = self._unfinished / f"{os.getpid()}.{time.monotonic_ns()}.{target.name}"
        if target.exists():
            return False
        try:
            with unfinished.open("xb") as out:
                for chunk in source():
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
            self._make_folder(target.parent)
            try:
                os.link(unfinished, target)
            except FileExistsError:
                return False
            _sync_folder(target.parent)
        except OSError as error:
            raise StoreError(f"cannot write {target}: {error}") from error
        finally:
            unfinished.unlink(missing_ok=True)
        return True

    def size(self, path: str) -> int | None:
        try:
            return (self._root / path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def chunks(self, path: str, offset: int, chunk_bytes: int) -> Iterator[bytes]:
        try:
            with (self._root / path).open("rb") as source:
                source.seek(offset)
                while chunk := source.read(chunk_bytes):
                    yield chunk
        except OSError as error:
            raise StoreError(f"cannot read {self._root / path}: {error}") from error

    def list(self, folder: str) -> tuple[str, ...]:
        found = (self._root / folder).rglob("*")
        return tuple(sorted(path.relative_to(self._root).as_posix() for path in found if path.is_file()))

    def remove(self, path: str) -> None:
        (self._root / path).unlink(missing_ok=True)

    def _forget_unfinished(self) -> None:
        """Remove what writers that died left behind."""
        for path in self._unfinished.iterdir():
            try:
                if time.time() - path.stat().st_mtime > _UNFINISHED_S:
                    path.unlink()
            except FileNotFoundError:
                continue

    def _make_folder(self, folder: Path) -> None:
        """Create missing folders, each with a durable name."""
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            _sync_folder(path.parent)


class RemoteObjects:
    """On an object store, where an upload appears whole or not at all."""

    def __init__(self, url: str, files: Any, root: str) -> None:
        self.url = url.rstrip("/")
        self._files = files
        self._root = root.rstrip("/")

    def create(self, path: str, source: Callable[[], Iterator[bytes]]) -> bool:
        def upload() -> bool:
            try:
                self._files.makedirs(f"{self._root}/{path}".rpartition("/")[0], exist_ok=True)
                # `create` is the store's own conditional put where it has one.
                self._files.pipe_file(f"{self._root}/{path}", b"".join(source()), mode="create")
            except FileExistsError:
                return False
            return True

        return bool(self._ask(path, upload))

    def size(self, path: str) -> int | None:
        def ask() -> int | None:
            try:
                return int(self._files.size(f"{self._root}/{path}"))
            except FileNotFoundError:
                return None

        size: int | None = self._ask(path, ask)
        return size

    def chunks(self, path: str, offset: int, chunk_bytes: int) -> Iterator[bytes]:
        size = self.size(path)
        if size is None:
            raise StoreError(f"cannot read {self.url}/{path}: there is no such file")
        for start in range(offset, size, chunk_bytes):
            end = min(size, start + chunk_bytes)
            read = partial(self._files.cat_file, f"{self._root}/{path}", start, end)
            chunk: bytes = self._ask(path, read)
            yield chunk

    def list(self, folder: str) -> tuple[str, ...]:
        found = self._ask(folder, lambda: self._files.find(f"{self._root}/{folder}"))
        prefix = len(self._root) + 1
        return tuple(sorted(path[prefix:] for path in found))

    def remove(self, path: str) -> None:
        def delete() -> None:
            try:
                self._files.rm_file(f"{self._root}/{path}")
            except FileNotFoundError:
                pass  # another sweep was quicker

        self._ask(path, delete)

    def _ask(self, path: str, call: Callable[[], Any]) -> Any:
        """`call()`, with the errors of whatever library speaks to the store as StoreError."""
        try:
            return call()
        except Exception as error:
            raise StoreError(f"{self.url}/{path}: {type(error).__name__}: {error}") from error


def file_chunks(path: Path) -> Iterator[bytes]:
    """A file of this machine in pieces."""
    with path.open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            yield chunk


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
