"""Reads model folders of an origin store: any fsspec URL (file, https, s3 and what else is installed).

Decides how one file comes over: bounded, verified while it streams, continued where an earlier try stopped. Must not
know the cache's layout, quotas or who asked.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, Final

from agents.engine.manifest import (
    INDEX_NAME,
    MANIFEST_BYTES_MAX,
    MANIFEST_NAME,
    PATH_RULE,
    ManifestFile,
    ModelManifest,
    check_path,
    parse_manifest,
)
from atoll.model.attempt import Failure, FailureKind
from atoll.model.errors import AtollError, FieldError
from atoll.model.limits import REASON_CHARS_MAX

# One read of an object store: large enough that 50 ms of round trip cost little at 1 GB/s, small enough to stop
# within a second.
CHUNK_BYTES: Final = 8 * 1024 * 1024
# Silence of a server longer than this ends the try. No bound on the whole: a large model over a slow link takes hours.
_SILENCE_S: Final = 60
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class FetchError(AtollError):
    """A fetch ended without the weights. `kind` is one of fetch_failed, disk_full, bad_weights."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    @property
    def failure(self) -> Failure:
        """As the one line that a report carries."""
        return Failure(kind=self.kind, message=" ".join(str(self).split())[:REASON_CHARS_MAX])


class FetchStoppedError(AtollError):
    """The fetch was told to stop; what had come stays for the next try."""


class Origin:
    """One model folder at a URL."""

    def __init__(
        self, url: str, *, silence_s: float = _SILENCE_S, headers: Mapping[str, str] | None = None, redirects: bool = True
    ) -> None:
        """FetchError if no installed package reads this kind of URL. Touches no network. `headers` and `redirects`: over http."""
        import fsspec

        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        self._http = url.startswith(("http://", "https://"))
        if self._http:
            options["client_kwargs"] = {**_patient_http(silence_s), "headers": dict(headers or {})}
            if not redirects:
                options["allow_redirects"] = False
        try:
            self._files, self._root = fsspec.core.url_to_fs(url, **options)
        except (ImportError, ValueError) as error:
            raise FetchError(FailureKind.FETCH_FAILED, f"cannot read from {url}: {error}") from error
        self.url = url

    def manifest(self) -> ModelManifest:
        """The folder's manifest. FetchError if the origin does not answer, BadWeightsError if it answers with
        anything else."""
        with self._open(MANIFEST_NAME) as source:
            data = read_some(source, MANIFEST_BYTES_MAX + 1, f"{self.url}/{MANIFEST_NAME}", self.heard)
        return parse_manifest(data, f"{self.url}/{MANIFEST_NAME}")

    def download(self, file: ManifestFile, target: Path, *, on_bytes: Callable[[int], None]) -> int:
        """Bring one file to `target`, durable and verified; the number of bytes that came over.

        Continues a `target` that an earlier try left short, once; what does not verify is removed. `on_bytes` hears
        each chunk (also those found on disk) and may raise. FetchError else.
        """
        held = target.stat().st_size if target.exists() else 0
        if held > file.bytes:
            target.unlink()
            held = 0
        digest = hashlib.sha256()
        if held:
            _hash_into(digest, target, on_bytes)
        if held < file.bytes or not target.exists():
            came = self._append(file, target, digest, held, on_bytes)
        else:
            came = 0
        if digest.hexdigest() == file.sha256:
            return came
        target.unlink()
        if held:
            on_bytes(-file.bytes)
            return came + self.download(file, target, on_bytes=on_bytes)
        problem = f"sha256 {digest.hexdigest()} instead of {file.sha256}"
        raise FetchError(FailureKind.BAD_WEIGHTS, f"{self.url}/{file.path}: {problem}, which the manifest says")

    def open_range(self, path: str, start: int, end: int) -> IO[bytes]:
        """A file from byte `start` to before `end`, in one stream; what comes after that is not to be read. FetchError if it cannot be."""
        if not self._http:
            return self._open_at(path, start)
        opened: Any = self._open(path, headers={"Range": f"bytes={start}-{end - 1}"})
        if opened.r.status != HTTPStatus.PARTIAL_CONTENT:
            # A server that knows no ranges: read past what is not wanted.
            where = f"{self.url}/{path}"
            while start and (skipped := len(read_some(opened, min(CHUNK_BYTES, start), where, self.heard))):
                start -= skipped
        return opened  # type: ignore[no-any-return]  # fsspec is not typed

    def heard(self, size: int) -> None:
        """So many bytes came over just now. May raise FetchError to give up."""

    def _append(self, file: ManifestFile, target: Path, digest: Any, held: int, on_bytes: Callable[[int], None]) -> int:
        where = f"{self.url}/{file.path}"
        with self._open_at(file.path, held) as source, target.open("ab") as out:
            missing = file.bytes - held
            while missing:
                chunk = read_some(source, min(CHUNK_BYTES, missing), where, self.heard)
                if not chunk:
                    problem = f"ends after {file.bytes - missing} bytes instead of {file.bytes}"
                    raise FetchError(FailureKind.FETCH_FAILED, f"{where}: {problem}, which the manifest says")
                digest.update(chunk)
                _write(out, chunk, target)
                missing -= len(chunk)
                on_bytes(len(chunk))
            if read_some(source, 1, where, self.heard):
                target.unlink()
                problem = f"is longer than {file.bytes} bytes"
                raise FetchError(FailureKind.BAD_WEIGHTS, f"{where}: {problem}, which the manifest says")
            _sync(out, target)
        return file.bytes - held

    def _open_at(self, path: str, held: int) -> IO[bytes]:
        """The file from byte `held` on."""
        where = f"{self.url}/{path}"
        if not held:
            return self._open(path)
        source = self._open(path, ranges=True)
        try:
            source.seek(held)
            source.read(1)
            source.seek(held)
        except (OSError, ValueError, NotImplementedError):
            # A server that knows no ranges: read past what is held already.
            source.close()
            source = self._open(path)
            while held:
                skipped = len(read_some(source, min(CHUNK_BYTES, held), where, self.heard))
                held = held - skipped if skipped else 0
        return source

    def _open(self, path: str, *, ranges: bool = False, headers: Mapping[str, str] | None = None) -> IO[bytes]:
        where = f"{self.url}/{path}"
        # Over http one stream is quicker than a request per chunk, and only ranges can begin in the middle.
        options: dict[str, Any] = {"block_size": 0} if self._http and not ranges else {"cache_type": "none"}
        if headers:
            options["headers"] = dict(headers)
        try:
            opened: IO[bytes] = self._files.open(f"{self._root.rstrip('/')}/{path}", "rb", **options)
        except FileNotFoundError:
            raise FetchError(FailureKind.FETCH_FAILED, f"{where}: there is no such file") from None
        except Exception as error:
            raise _failed(where, error) from error
        return opened


def origin_url(store_url: str, origin_path: str) -> str:
    """The URL of a model's folder below an origin store; FieldError for a path that would leave it."""
    try:
        check_path("origin_path", f"{origin_path}/{INDEX_NAME}")
    except AtollError:
        raise FieldError("origin_path", origin_path, PATH_RULE) from None
    return f"{store_url.rstrip('/')}/{origin_path}"


def is_full(error: OSError) -> bool:
    """Whether a disk or a quota of the file system is exhausted."""
    return error.errno in _FULL


def disk_full(what: str) -> FetchError:
    """The error for a disk without room."""
    return FetchError(FailureKind.DISK_FULL, f"{what}: expected free space, or models that are not in use to delete")


def sync_folder(folder: Path) -> None:
    """Make names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _patient_http(silence_s: float) -> dict[str, Any]:
    try:
        import aiohttp
    except ImportError as error:
        raise FetchError(FailureKind.FETCH_FAILED, "an http origin needs the package aiohttp") from error
    return {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=silence_s, sock_read=silence_s)}


def _failed(where: str, error: Exception) -> FetchError:
    return FetchError(FailureKind.FETCH_FAILED, f"{where}: {type(error).__name__}: {error}")


def read_some(source: IO[bytes], limit: int, where: str, heard: Callable[[int], None]) -> bytes:
    """Up to `limit` bytes; fewer only at the end of the file. The errors of any store become FetchError."""
    parts, missing = [], limit
    while missing:
        try:
            chunk = source.read(missing)
        except Exception as error:
            raise _failed(where, error) from error
        if not chunk:
            break
        if len(chunk) > missing:
            raise FetchError(FailureKind.FETCH_FAILED, f"{where}: {len(chunk)} bytes came where {missing} were asked for")
        heard(len(chunk))
        parts.append(chunk)
        missing -= len(chunk)
    return b"".join(parts)


def _write(out: IO[bytes], chunk: bytes, target: Path) -> None:
    try:
        out.write(chunk)
        out.flush()
    except OSError as error:
        raise write_error(error, target) from error


def _sync(out: IO[bytes], target: Path) -> None:
    try:
        out.flush()
        os.fsync(out.fileno())
    except OSError as error:
        raise write_error(error, target) from error


def write_error(error: OSError, target: Path) -> FetchError:
    """What became of a write, as the error of a fetch."""
    if is_full(error):
        return disk_full(f"no room for {target.name} on the disk of {target.parent}")
    return FetchError(FailureKind.FETCH_FAILED, f"cannot write {target}: {error}")


def _hash_into(digest: Any, path: Path, on_bytes: Callable[[int], None]) -> None:
    with path.open("rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            on_bytes(len(chunk))
