"""The disk cache of a node: models by digest, complete and verified or not there at all.

Decides where models lie on disk, which of them give way, and that one model is fetched once at a time, also by several
processes of the node. Must not know why a model is wanted.

    <cache>/<model id>/<first 16 digits of the digest>/    a complete model; appears by one rename
    <cache>/.partial/<model id>@<16 digits>/               a fetch in progress, or one to continue
    <cache>/.locks/<model id>@<16 digits>                  held while it is fetched
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents import ranges
from agents.engine.errors import BadWeightsError
from agents.engine.manifest import MANIFEST_NAME, ModelManifest, parse_digest, read_manifest, verify_folder
from agents.origins import FetchError, FetchStoppedError, Origin, disk_full, is_full, sync_folder
from agents.peers import PeerFolder, PeerSources, Supply, peer_folder
from atoll.model.adapter import SUFFIX
from atoll.model.attempt import FailureKind
from atoll.model.errors import StateError
from atoll.model.ids import AdapterId, ModelId, parse_name

# Left free on the disk: logs, results and other programs must go on when models fill it.
RESERVE_BYTES: Final = 256 * 1024 * 1024
# How often one who waits for another's fetch of the same model looks again; a fetch takes seconds to hours.
_LOCK_POLL_S: Final = 0.05
_SHORT: Final = 16
# The unit in which systems say what a file takes.
_BLOCK_BYTES: Final = 512
# Where `agents.adapter_files` keeps adapters: within the same quota.
ADAPTERS_FOLDER: Final = ".adapters"
# And `agents.compiled_files` compiled code.
CODE_FOLDER: Final = ".compiled"

OnBytes = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel:
    """A complete model on disk. `used_us` is wall time, for ordering within this disk only."""

    model_id: ModelId
    digest: str
    folder: Path
    bytes: int
    used_us: int
    pinned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchResult:
    """A model that is on disk now. `fetched_bytes` came over in this call (0: it was there), `peer_bytes` of them from a peer site;
    `evicted` gave way to it."""

    folder: Path
    manifest: ModelManifest
    fetched_bytes: int
    elapsed_us: int
    evicted: tuple[CachedModel, ...] = ()
    peer_bytes: int = 0

    @property
    def bytes_per_s(self) -> int | None:
        """Measured rate of the origin and the disk together; None if nothing came over, or some of it from a peer."""
        measured = self.fetched_bytes and not self.peer_bytes and self.elapsed_us > 0
        return self.fetched_bytes * 1_000_000 // self.elapsed_us if measured else None


class WeightsCache:
    """Models below one folder of one node. Calls block; `agents.fetching` is for event loops. Safe for threads and
    processes.

    `quota_bytes` bounds complete models, unfinished fetches, and the adapters and the code beside them together.
    """

    def __init__(self, root: Path, *, quota_bytes: int, reserve_bytes: int = RESERVE_BYTES) -> None:
        self._root = root
        self._quota_bytes = quota_bytes
        self._reserve_bytes = reserve_bytes
        self._pins: frozenset[tuple[ModelId, str]] = frozenset()
        for folder in (root, root / ".partial", root / ".locks"):
            folder.mkdir(parents=True, exist_ok=True)
        self._sweep_trash()

    def folder_of(self, model_id: ModelId, digest: str) -> Path:
        """Where a model lies when it is there. FieldError for an id or digest that could lead elsewhere."""
        return self._root / parse_name("model_id", model_id) / _short(digest)

    def get(self, model_id: ModelId, digest: str) -> CachedModel | None:
        """The model if it is on disk, complete; marks it as used now."""
        folder = self.folder_of(model_id, digest)
        model = self._entry(folder)
        if model is None or model.digest != digest:
            return None
        os.utime(folder / MANIFEST_NAME)
        return model

    def complete(self, model_id: ModelId, digest: str) -> Path | None:
        """The folder of a model that is on disk, complete, without marking it as used; None: it is not there."""
        model = self._entry(self.folder_of(model_id, digest))
        return model.folder if model is not None and model.digest == digest else None

    def adapter(self, adapter_id: AdapterId, digits: str) -> Path:
        """Where an adapter of this digest lies, if it is on disk."""
        return self._root / ADAPTERS_FOLDER / f"{adapter_id}@{digits}{SUFFIX}"

    def entries(self) -> tuple[CachedModel, ...]:
        """All complete models, least recently used first. What is not a model of this cache is passed over."""
        models = [
            model
            for parent in sorted(self._root.iterdir())
            if not parent.name.startswith(".") and parent.is_dir() and not parent.is_symlink()
            for folder in sorted(parent.iterdir())
            if (model := self._entry(folder)) is not None
        ]
        return tuple(sorted(models, key=lambda model: (model.used_us, model.model_id, model.digest)))

    def used_bytes(self) -> int:
        """Bytes of complete models, of unfinished fetches, of adapters, and of compiled code."""
        unfinished = sum(size for _, size in self._partials())
        beside = sum(_tree_bytes(self._root / name) for name in (ADAPTERS_FOLDER, CODE_FOLDER))
        return sum(model.bytes for model in self.entries()) + unfinished + beside

    def pin(self, models: frozenset[tuple[ModelId, str]]) -> None:
        """Keep exactly these (model id, digest): resident ones and those an assignment names. Replaces earlier pins."""
        self._pins = models

    def delete(self, model_id: ModelId, digest: str | None = None) -> tuple[CachedModel, ...]:
        """Remove a model (every version of it without `digest`); what was removed. StateError if one of them is
        pinned."""
        parse_name("model_id", model_id)
        found = [model for model in self.entries() if model.model_id == model_id and digest in {None, model.digest}]
        for model in found:
            if model.pinned:
                raise StateError(f"model {model_id} ({model.digest[:23]}) is pinned: unpin it before it is deleted")
        for model in found:
            self._remove(model.folder)
        return tuple(found)

    def drop_partials(self) -> int:
        """Remove fetches that nobody continues; the bytes freed. Those in progress are left alone."""
        return sum(size for name, size in self._partials() if self._drop_partial(name))

    def fetch(
        self,
        model_id: ModelId,
        digest: str,
        origin_url: str,
        *,
        on_bytes: OnBytes | None = None,
        should_stop: Callable[[], bool] | None = None,
        make_room: bool = True,
        peers: PeerSources | None = None,
    ) -> FetchResult:
        """Bring a model from the folder at `origin_url` to this disk, or find it there. `peers`: sites that are read first, or too.

        Single-flight: one who finds the same fetch going on waits for its end. `on_bytes(done, total)` hears of
        progress; `should_stop` is asked at each chunk and ends the call with FetchStoppedError. A fetch that was
        stopped, killed or lost its origin is continued by the next; after a full disk or wrong content nothing of it
        is left. Without `make_room` nothing gives way for it: a full disk is one at once. FetchError with its kind else.
        """
        folder = self.folder_of(model_id, digest)
        stop = should_stop if should_stop is not None else _never
        with self._lock(f"{model_id}@{_short(digest)}", stop):
            start_us = time.monotonic_ns() // 1000
            held = self.get(model_id, digest)
            if held is not None:
                try:
                    return FetchResult(folder=folder, manifest=verify_folder(folder, digests=False), fetched_bytes=0, elapsed_us=0)
                except BadWeightsError:
                    self._remove(folder)  # damaged since it was verified: fetched again
            elif folder.exists():
                self._remove(folder)
            partial = self._root / ".partial" / f"{model_id}@{_short(digest)}"
            try:
                supply = _supply(origin_url, peers, model_id, digest)
                manifest = supply.manifest(functools.partial(_expected, model_id, digest))
                evicted = self._make_room(manifest, partial, evict=make_room)
                came = self._download(supply, manifest, partial, on_bytes, stop)
                self._publish(manifest, partial, folder)
            except BadWeightsError as error:
                shutil.rmtree(partial, ignore_errors=True)
                raise FetchError(FailureKind.BAD_WEIGHTS, str(error)) from error
            except FetchError as error:
                if error.kind is not FailureKind.FETCH_FAILED:
                    shutil.rmtree(partial, ignore_errors=True)
                raise
            except OSError as error:
                shutil.rmtree(partial, ignore_errors=True)
                if is_full(error):
                    raise disk_full(f"no room for {model_id} on the disk of {self._root}") from error
                raise FetchError(FailureKind.FETCH_FAILED, f"cannot store {model_id} below {self._root}: {error}") from error
        elapsed_us = max(1, time.monotonic_ns() // 1000 - start_us)
        return FetchResult(
            folder=folder, manifest=manifest, fetched_bytes=came, elapsed_us=elapsed_us, evicted=evicted, peer_bytes=supply.peer_bytes
        )

    def _download(self, supply: Supply, manifest: ModelManifest, partial: Path, on_bytes: OnBytes | None, stop: Callable[[], bool]) -> int:
        done, total = 0, manifest.total_bytes

        def count(size: int) -> None:
            nonlocal done
            done += size
            if on_bytes is not None and size:
                on_bytes(done, total)
            if stop():
                raise FetchStoppedError(f"fetch of {manifest.model_id} stopped after {done} of {total} bytes")

        partial.mkdir(parents=True, exist_ok=True)
        return supply.download(manifest.files, partial, on_bytes=count)

    def _publish(self, manifest: ModelManifest, partial: Path, folder: Path) -> None:
        """The last check, then durable names, then the rename that makes the model visible."""
        (partial / ranges.NAME).unlink(missing_ok=True)
        with (partial / MANIFEST_NAME).open("wb") as out:
            out.write(manifest.to_json())
            out.flush()
            os.fsync(out.fileno())
        verify_folder(partial, digests=False)
        for path in sorted(path for path in partial.rglob("*") if path.is_dir()):
            sync_folder(path)
        sync_folder(partial)
        folder.parent.mkdir(exist_ok=True)
        partial.rename(folder)
        sync_folder(folder.parent)
        sync_folder(self._root)

    def _make_room(self, manifest: ModelManifest, partial: Path, *, evict: bool) -> tuple[CachedModel, ...]:
        """Delete what may go, least recently used first, until the model fits quota and disk; what was deleted."""
        total = manifest.total_bytes
        if total > self._quota_bytes:
            raise disk_full(f"{manifest.model_id} has {total} bytes and the cache may hold {self._quota_bytes}")
        evicted: list[CachedModel] = []
        if evict and self._lacking_bytes(total, partial) > 0:
            for name, _ in self._partials():
                if name != partial.name:
                    self._drop_partial(name)
        for model in self.entries() if evict else ():
            if self._lacking_bytes(total, partial) <= 0:
                break
            if not model.pinned:
                self._remove(model.folder)
                evicted.append(model)
        lacking = self._lacking_bytes(total, partial)
        if lacking > 0:
            raise disk_full(f"{lacking} bytes are missing for {manifest.model_id} below {self._root}")
        return tuple(evicted)

    def _lacking_bytes(self, total: int, partial: Path) -> int:
        """Bytes too few for `total`, by the quota or by the disk, whichever lacks more."""
        held = _tree_bytes(partial)
        over_quota = self.used_bytes() - held + total - self._quota_bytes
        free = shutil.disk_usage(self._root).free
        return max(over_quota, total - held + self._reserve_bytes - free)

    def _entry(self, folder: Path) -> CachedModel | None:
        if folder.is_symlink() or not folder.is_dir():
            return None
        try:
            manifest = read_manifest(folder)
            used_us = (folder / MANIFEST_NAME).stat().st_mtime_ns // 1000
        except (BadWeightsError, OSError):
            return None
        if manifest.model_id != folder.parent.name or _short(manifest.digest) != folder.name:
            return None
        return CachedModel(
            model_id=manifest.model_id,
            digest=manifest.digest,
            folder=folder,
            bytes=manifest.total_bytes,
            used_us=used_us,
            pinned=(manifest.model_id, manifest.digest) in self._pins,
        )

    def _remove(self, folder: Path) -> None:
        """Gone at once for all who look, then freed: a process that dies in between leaves trash, not half a model."""
        trash = self._root / f".trash.{os.getpid()}.{time.monotonic_ns()}"
        folder.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)
        try:
            folder.parent.rmdir()
        except OSError:
            pass  # another version of the model is there

    def _sweep_trash(self) -> None:
        for path in self._root.glob(".trash.*"):
            shutil.rmtree(path, ignore_errors=True)

    def _partials(self) -> tuple[tuple[str, int], ...]:
        return tuple((path.name, _tree_bytes(path)) for path in sorted((self._root / ".partial").iterdir()))

    def _drop_partial(self, name: str) -> bool:
        """Remove an unfinished fetch unless somebody is at it."""
        with (self._root / ".locks" / name).open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            shutil.rmtree(self._root / ".partial" / name, ignore_errors=True)
            return True

    @contextmanager
    def _lock(self, name: str, stop: Callable[[], bool]) -> Iterator[None]:
        """The right to fetch `name`, among all threads and processes of the node; given back also by dying."""
        with (self._root / ".locks" / name).open("ab") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if stop():
                        raise FetchStoppedError(f"stopped while another fetch of {name} was going on") from None
                    time.sleep(_LOCK_POLL_S)
            yield


def _supply(origin_url: str, peers: PeerSources | None, model_id: ModelId, digest: str) -> Supply:
    if peers is None:
        return Supply(origin_url)
    folders = [PeerFolder(peer, peer_folder(peer.url, model_id, digest)) for peer in peers.peers]
    return Supply(origin_url, folders, origin_too=peers.origin_too)


def _expected(model_id: ModelId, digest: str, origin: Origin) -> ModelManifest:
    """The origin's manifest, if it is of the model that was asked for."""
    manifest = origin.manifest()
    for field, found, wanted in (("model_id", manifest.model_id, model_id), ("digest", manifest.digest, digest)):
        if found != wanted:
            raise BadWeightsError(f"{origin.url}/{MANIFEST_NAME}", f"{field} {found}", wanted)
    return manifest


def _short(digest: str) -> str:
    return parse_digest("weights_digest", digest).partition(":")[2][:_SHORT]


def _tree_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`, without the gaps of those to which several sources write; another process may remove them
    meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            found = path.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        total += min(found.st_size, found.st_blocks * _BLOCK_BYTES) if not stat.S_ISDIR(found.st_mode) else 0
    return total


def _never() -> bool:
    return False
