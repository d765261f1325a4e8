"""Adapters on the disk of a node: each one file by its digest, complete and verified or not there at all.

Decides where adapters lie beside the models, how much of the cache they may take, and which of them give way. Must not know why an
adapter is wanted. Adapters are small and come in the hundreds: the least recently used goes first, and none is pinned, since a
replica that has loaded one needs its file no longer.

    <cache>/.adapters/<adapter id>@<digest>.safetensors    complete; appears by one rename
    <cache>/.adapters/.partial/<the same name>             a fetch in progress, or one to continue
    <cache>/.adapters/.locks/<the same name>               held while it is fetched
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents.engine.errors import BadWeightsError
from agents.engine.manifest import ManifestFile, check_path, check_safetensors, parse_digest
from agents.origins import FetchError, FetchStoppedError, disk_full, is_full, sync_folder
from agents.peers import PeerAdapter, PeerSource, Supply
from agents.weights import ADAPTERS_FOLDER, RESERVE_BYTES
from atoll.model.adapter import SUFFIX, AdapterSpec
from atoll.model.attempt import FailureKind
from atoll.model.ids import AdapterId, parse_name
from atoll.model.words import size

# Adapters take this part of a node's cache at most: a thousand of 100 MB in a cache of 1 TB.
_SHARE: Final = 8
_LOCK_POLL_S: Final = 0.05
# What verifies is not hashed again here: its name carries the digest, and it is hashed once more when it is loaded.
_NAME: Final = re.compile(r"(?P<adapter>[A-Za-z0-9][A-Za-z0-9._-]*)@(?P<digest>[0-9a-f]{64})\.safetensors\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedAdapter:
    """An adapter that is on disk now. `fetched_bytes`: 0 if it was there; `evicted` gave way to it."""

    path: Path
    fetched_bytes: int
    elapsed_us: int
    evicted: tuple[AdapterId, ...] = ()


class AdapterFiles:
    """Adapters below the folder of a weights cache. Calls block. Safe for threads and processes."""

    def __init__(self, cache_root: Path, *, cache_bytes: int) -> None:
        self._root = cache_root / ADAPTERS_FOLDER
        self._quota_bytes = max(cache_bytes // _SHARE, 1)
        for folder in (self._root, self._root / ".partial", self._root / ".locks"):
            folder.mkdir(parents=True, exist_ok=True)

    def path_of(self, adapter: AdapterSpec) -> Path:
        """Where an adapter lies when it is there. FieldError for an id or digest that could lead elsewhere."""
        return self._root / _name(adapter)

    def held(self) -> tuple[tuple[AdapterId, str], ...]:
        """(id, digest) of every complete adapter."""
        matches = [_NAME.match(path.name) for path in self._files()]
        return tuple((AdapterId(match["adapter"]), f"sha256:{match['digest']}") for match in matches if match is not None)

    def drop(self, adapter: AdapterSpec) -> None:
        """Remove an adapter that proved to be damaged."""
        self.path_of(adapter).unlink(missing_ok=True)

    def fetch(
        self, adapter: AdapterSpec, store_url: str, should_stop: Callable[[], bool], peer: PeerSource | None = None
    ) -> FetchedAdapter:
        """Bring an adapter from the origin store to this disk, or find it there. `peer`: the site that is tried first.

        Single-flight, also among processes; a fetch that was stopped is continued by the next. `should_stop` is asked at each chunk and
        ends the call with FetchStoppedError. FetchError with its kind else.
        """
        path = self.path_of(adapter)
        with self._lock(path.name, should_stop):
            if path.is_file():
                os.utime(path)
                return FetchedAdapter(path=path, fetched_bytes=0, elapsed_us=0)
            partial = self._root / ".partial" / path.name
            start_us = time.monotonic_ns() // 1000
            try:
                evicted = self._make_room(adapter, partial)
                came = self._download(adapter, store_url, partial, should_stop, peer)
                partial.rename(path)
                sync_folder(self._root)
            except (BadWeightsError, FetchError) as error:
                if error.kind is not FailureKind.FETCH_FAILED:
                    partial.unlink(missing_ok=True)
                raise FetchError(error.kind, str(error)) from error
            except OSError as error:
                partial.unlink(missing_ok=True)
                if is_full(error):
                    raise disk_full(f"no room for adapter {adapter.adapter_id} on the disk of {self._root}") from error
                raise FetchError(FailureKind.FETCH_FAILED, f"cannot store adapter {adapter.adapter_id}: {error}") from error
        return FetchedAdapter(path=path, fetched_bytes=came, elapsed_us=max(time.monotonic_ns() // 1000 - start_us, 1), evicted=evicted)

    def _download(
        self, adapter: AdapterSpec, store_url: str, partial: Path, should_stop: Callable[[], bool], peer: PeerSource | None
    ) -> int:
        if not adapter.origin_path.endswith(SUFFIX):
            raise BadWeightsError(adapter.adapter_id, f"origin_path {adapter.origin_path}", f"a {SUFFIX} file below the origin store")
        path = check_path(f"origin_path of adapter {adapter.adapter_id}", adapter.origin_path)
        file = ManifestFile(path=path, bytes=adapter.weights_bytes, sha256=adapter.weights_digest.partition(":")[2])

        def count(size: int) -> None:
            del size
            if should_stop():
                raise FetchStoppedError(f"fetch of adapter {adapter.adapter_id} stopped")

        peers = [PeerAdapter(peer, adapter.adapter_id, adapter.weights_digest)] if peer is not None else []
        came = Supply(store_url.rstrip("/"), peers).download_file(file, partial, count)
        check_safetensors(partial, path)
        return came

    def _make_room(self, adapter: AdapterSpec, partial: Path) -> tuple[AdapterId, ...]:
        """Delete the least recently used adapters until this one fits its part of the cache and the disk; whose they were."""
        if adapter.weights_bytes > self._quota_bytes:
            more = f"has {size(adapter.weights_bytes)} and adapters may take {size(self._quota_bytes)}"
            raise disk_full(f"adapter {adapter.adapter_id} {more}")
        came = partial.stat().st_size if partial.exists() else 0
        evicted = []
        for path in (*self._files(), None):
            used = sum(held.stat().st_size for held in self._files())
            free = shutil.disk_usage(self._root).free - RESERVE_BYTES + came
            if used + adapter.weights_bytes <= self._quota_bytes and adapter.weights_bytes <= free:
                break
            if path is None:
                raise disk_full(f"no room for the {size(adapter.weights_bytes)} of adapter {adapter.adapter_id} below {self._root}")
            path.unlink(missing_ok=True)
            match = _NAME.match(path.name)
            if match is not None:
                evicted.append(AdapterId(match["adapter"]))
        return tuple(evicted)

    def _files(self) -> list[Path]:
        """Complete adapters, least recently used first."""
        found = [path for path in self._root.glob(f"*{SUFFIX}") if path.is_file() and not path.is_symlink()]
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))

    @contextmanager
    def _lock(self, name: str, should_stop: Callable[[], bool]) -> Iterator[None]:
        with (self._root / ".locks" / name).open("ab") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if should_stop():
                        raise FetchStoppedError(f"stopped while another fetch of {name} was going on") from None
                    time.sleep(_LOCK_POLL_S)
            yield


def _name(adapter: AdapterSpec) -> str:
    digits = parse_digest("weights_digest", adapter.weights_digest).partition(":")[2]
    return f"{parse_name('adapter_id', adapter.adapter_id)}@{digits}{SUFFIX}"
