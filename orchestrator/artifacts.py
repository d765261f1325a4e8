"""The artifact store as the orchestrator uses it: inputs go in by digest, artifacts of results come out verified.

Decides where an input lies (`<root>/sha256/<2 hex>/<64 hex>`) and that nothing outside the root is ever read or written. An
artifact's own URI counts only if it lies below the root; without one it is looked for by its digest. Must not know gRPC. Everything
here blocks: call it from a thread.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from typing import IO, Any, Final
from urllib.parse import unquote

import fsspec

from atoll.model import limits
from atoll.model.attempt import Artifact
from atoll.model.errors import FieldError, NotFoundError
from orchestrator.refusals import RefusedError, unavailable

_DIGEST_PREFIX: Final = "sha256:"
# Inputs that clients upload, and files of results that sites store: apart, because sites forget what no result names.
_INPUTS: Final = "sha256"
_INCOMING: Final = "incoming-"
_RESULTS: Final = "blobs"


class CorruptArtifactError(Exception):
    """The stored bytes are not those of the digest."""


class ArtifactStore:
    """Blobs below one fsspec URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            found: tuple[Any, str] = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise FieldError("artifacts_url", url, f"a folder that fsspec can open ({error})") from None
        self._fs, root = found
        self._local = "file" in _protocols(self._fs)
        self._root = os.path.realpath(root) if self._local else root.rstrip("/")

    def prepare(self) -> None:
        """Make the root. Raises OSError when that cannot be."""
        self._fs.makedirs(self._root, exist_ok=True)

    def _by_digest(self, folder: str, hexdigest: str) -> str:
        return posixpath.join(self._root, folder, hexdigest[:2], hexdigest)

    def upload(self) -> Upload:
        """Begin to take in a blob."""
        self._fs.makedirs(self._root, exist_ok=True)
        path = posixpath.join(self._root, f"{_INCOMING}{uuid.uuid4().hex}")
        return Upload(self, path, self._fs.open(path, "wb"))

    def keep(self, path: str, hexdigest: str) -> None:
        """Give a blob that came in its place. One that is there already is the same, and its age counts from now."""
        blob = self._by_digest(_INPUTS, hexdigest)
        self._fs.makedirs(posixpath.dirname(blob), exist_ok=True)
        self._fs.mv(path, blob)

    def forget(self, path: str) -> None:
        """Drop what came in half."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def aged(self, before: datetime) -> list[str]:
        """Digests of inputs that came before an instant, and were not uploaded again since. What was left half way goes at once."""
        found = self._files(posixpath.join(self._root, _INPUTS))
        for path in self._files(self._root):
            if posixpath.basename(path).startswith(_INCOMING) and self._came(path) < before:
                self.forget(path)
        return [_DIGEST_PREFIX + posixpath.basename(path) for path in found if self._came(path) < before]

    def drop(self, digests: Iterable[str]) -> int:
        """Forget these inputs; the bytes that came free."""
        freed = 0
        for digest in digests:
            blob = self._by_digest(_INPUTS, digest.removeprefix(_DIGEST_PREFIX))
            with contextlib.suppress(FileNotFoundError):
                freed += int(self._fs.size(blob) or 0)
                self._fs.rm_file(blob)
        return freed

    def _files(self, folder: str) -> list[str]:
        try:
            found: list[str] = self._fs.find(folder, maxdepth=None if folder != self._root else 1)
        except FileNotFoundError:
            return []
        return found

    def _came(self, path: str) -> datetime:
        try:
            came: datetime = self._fs.modified(path)
        except FileNotFoundError:
            return datetime.max.replace(tzinfo=UTC)
        return came if came.tzinfo is not None else came.replace(tzinfo=UTC)

    def read(self, artifact: Artifact, offset: int) -> Iterator[bytes]:
        """The bytes from `offset` on, in chunks. The last chunk is given only once the digest of the whole was right.

        Raises NotFoundError when they are not there (any more), CorruptArtifactError when they are others.
        """
        path = self._path(artifact)
        digest = sha256()
        position = 0
        held = b""
        with self._open(path, artifact.name) as source:
            while chunk := source.read(limits.CHUNK_BYTES):
                digest.update(chunk)
                start = max(offset - position, 0)
                position += len(chunk)
                if position > artifact.bytes:
                    raise CorruptArtifactError(f"artifact {artifact.name} is longer than the {artifact.bytes} bytes that were reported")
                if start < len(chunk):
                    if held:
                        yield held
                    held = chunk[start:]
        if f"{_DIGEST_PREFIX}{digest.hexdigest()}" != artifact.digest:
            raise CorruptArtifactError(f"artifact {artifact.name} does not have the digest {artifact.digest} that was reported")
        if held:
            yield held

    def _open(self, path: str, name: str) -> IO[bytes]:
        try:
            opened: IO[bytes] = self._fs.open(path, "rb")
        except FileNotFoundError:
            raise NotFoundError("artifact in the artifact store", name) from None
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise RefusedError(unavailable(f"the artifact store does not answer: {why}", 1_000)) from error
        return opened

    def _path(self, artifact: Artifact) -> str:
        """Where the artifact lies: as its URI says, if that is below the root, else by its digest."""
        named = self._below_root(artifact.uri)
        if named is not None and self._fs.exists(named):
            return named
        return self._by_digest(_RESULTS, artifact.digest.removeprefix(_DIGEST_PREFIX))

    def _below_root(self, uri: str) -> str | None:
        if not uri:
            return None
        if "://" not in uri:
            # Agents may name a blob relative to the root they were told.
            uri = f"{self._root}/{uri}" if not uri.startswith("/") else uri
        path: str = self._fs._strip_protocol(unquote(uri))
        path = os.path.realpath(path) if self._local else posixpath.normpath(path)
        return path if path.startswith(f"{self._root}/") else None


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


class Upload:
    """A blob on its way in. Call `finish` or `abandon`."""

    def __init__(self, store: ArtifactStore, path: str, sink: IO[bytes]) -> None:
        self._store = store
        self._path = path
        self._sink = sink
        self._digest = sha256()
        self.bytes = 0

    def write(self, chunk: bytes) -> None:
        """Append a chunk. Raises OSError when the disk is full."""
        self._sink.write(chunk)
        self._digest.update(chunk)
        self.bytes += len(chunk)

    def finish(self) -> str:
        """Make it visible; its digest, "sha256:<hex>"."""
        self._sink.close()
        self._store.keep(self._path, self._digest.hexdigest())
        return f"{_DIGEST_PREFIX}{self._digest.hexdigest()}"

    def abandon(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError, ValueError):
            self._sink.close()
        self._store.forget(self._path)
