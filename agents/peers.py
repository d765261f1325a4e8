"""Weights from other sites: what one fetch reads from its peers, and how it goes on with the origin store when they fail.

Decides which sources are read, one after the other or several at once (`parallel`), and when a peer is given up: refused, not found,
silent, slower than a floor, or wrong in a single byte. Nothing that comes from a peer is believed: the manifest must have the digest that
was asked for, and every file the digest that the manifest says, exactly as from the origin store. What has been verified stays; the rest
comes from the others. Must not know the cache's layout, quotas or who asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, Final

import structlog

from agents import ranges
from agents.engine.errors import BadWeightsError
from agents.engine.manifest import ManifestFile, ModelManifest
from agents.origins import FetchError, Origin
from agents.parallel import ParallelFetch
from atoll.model.adapter import SUFFIX
from atoll.model.attempt import FailureKind
from atoll.model.errors import AtollError
from atoll.model.ids import AdapterId, ModelId

# Where a site serves adapters, beside its models.
ADAPTERS: Final = "adapters"

_log = structlog.get_logger(__name__)

# The origin store is always there as well, so that waiting for a peer is never worth long.
_SILENCE_S: Final = 15
# The slowest links of fleets carry 50 MB/s. A peer that gives less than a fiftieth of that for half a minute is broken, or means harm.
_PACE_WINDOW_S: Final = 30.0
_PACE_BYTES_PER_S: Final = 1_000_000
# What ends a peer's part of a fetch. A full disk or a stop is no fault of the peer's.
_PEERS_FAULT: Final = frozenset({FailureKind.FETCH_FAILED, FailureKind.BAD_WEIGHTS})


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSource:
    """A site that serves its weights at `url`, and what it asks for; "": nothing."""

    site_id: str
    url: str
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSources:
    """Sites whose weights are read at once, in the order in which they are asked for the manifest. `origin_too`: the origin store beside
    them, not only when they fail."""

    peers: tuple[PeerSource, ...]
    origin_too: bool = False


def peer_folder(url: str, model_id: ModelId, digest: str) -> str:
    """Where a site that serves its weights at `url` has a model."""
    return f"{url.rstrip('/')}/{model_id}/{digest.removeprefix('sha256:')}"


class Pace:
    """Raises when what comes is slower than the floor over a whole window. Time is an argument."""

    def __init__(self, *, window_s: float = _PACE_WINDOW_S, least_bytes_per_s: int = _PACE_BYTES_PER_S) -> None:
        self._window_s = window_s
        self._least = least_bytes_per_s
        self._since_s = -1.0
        self._bytes = 0

    def begin(self) -> None:
        """Bytes are asked for from now on: what was not asked for before says nothing."""
        self._since_s, self._bytes = -1.0, 0

    def heard(self, size: int, now_s: float) -> None:
        """So many bytes came. FetchError when a window ends with too few."""
        if self._since_s < 0:
            self._since_s = now_s
        self._bytes += size
        passed_s = now_s - self._since_s
        if passed_s < self._window_s:
            return
        if self._bytes < self._least * passed_s:
            raise FetchError(FailureKind.FETCH_FAILED, f"only {self._bytes} bytes came in {passed_s:.0f} s")
        self._since_s, self._bytes = now_s, 0


class PeerFolder(Origin):
    """One folder that a peer site serves, of a model (`peer_folder`) or of what else has files there."""

    def __init__(self, peer: PeerSource, url: str, *, pace: Pace | None = None) -> None:
        headers = {"Authorization": f"Bearer {peer.token}"} if peer.token else {}
        super().__init__(url, silence_s=_SILENCE_S, headers=headers, redirects=False)
        self._pace = pace or Pace()

    def _open_at(self, path: str, held: int) -> IO[bytes]:
        """The file from byte `held` on, in one stream: a request per chunk could be as slow as it likes within each."""
        self._pace.begin()
        if not held:
            return self._open(path)
        opened: Any = self._open(path, headers={"Range": f"bytes={held}-"})
        return self._a_part(opened, path)

    def open_range(self, path: str, start: int, end: int) -> IO[bytes]:
        """As of an origin store; but a peer that knows no ranges is none."""
        self._pace.begin()
        return self._a_part(self._open(path, headers={"Range": f"bytes={start}-{end - 1}"}), path, whole=not start)

    def _a_part(self, opened: Any, path: str, *, whole: bool = False) -> IO[bytes]:
        if opened.r.status != HTTPStatus.PARTIAL_CONTENT and not (whole and opened.r.status == HTTPStatus.OK):
            raise FetchError(FailureKind.FETCH_FAILED, f"{self.url}/{path}: status {opened.r.status} where a range was asked for")
        return opened  # type: ignore[no-any-return]  # fsspec is not typed

    def heard(self, size: int) -> None:
        self._pace.heard(size, time.monotonic())


class PeerAdapter(PeerFolder):
    """One adapter that a peer site serves: whatever path is asked for, its file."""

    def __init__(self, peer: PeerSource, adapter_id: AdapterId, digest: str) -> None:
        super().__init__(peer, f"{peer.url.rstrip('/')}/{ADAPTERS}/{adapter_id}")
        self._name = f"{digest.removeprefix('sha256:')}{SUFFIX}"

    def _open_at(self, path: str, held: int) -> IO[bytes]:
        del path
        return super()._open_at(self._name, held)


class Supply:
    """Where one fetch reads from: its peers while they are good, then, or beside them, the origin store. `peer_bytes` came from peers."""

    def __init__(self, origin_url: str, peers: Sequence[Origin] = (), *, origin_too: bool = False) -> None:
        self._peers = list(peers)
        self._origin = Origin(origin_url)
        self._origin_too = origin_too
        self.peer_bytes = 0

    def manifest(self, expected: Callable[[Origin], ModelManifest]) -> ModelManifest:
        """The manifest that `expected` accepts."""
        for peer in list(self._peers):
            try:
                return expected(peer)
            except (BadWeightsError, FetchError) as error:
                self._give_up(peer, error)
        return expected(self._origin)

    def download(self, files: tuple[ManifestFile, ...], partial: Path, *, on_bytes: Callable[[int], None]) -> int:
        """Bring files, durable and verified, to below `partial`; as `Origin.download` of each."""
        if len(self._peers) + self._origin_too > 1:
            together = ParallelFetch(files, partial, self._peers, self._origin, origin_too=self._origin_too, gave_up=self._give_up)
            try:
                return together.run(on_bytes)
            finally:
                self.peer_bytes += together.peer_bytes
        ranges.settle(partial, files)
        came = 0
        for file in files:
            on_bytes(0)
            target = partial / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            came += self.download_file(file, target, on_bytes)
        return came

    def download_file(self, file: ManifestFile, target: Path, on_bytes: Callable[[int], None]) -> int:
        """Bring one file from the first peer, or when that fails from the origin store."""
        if not self._peers:
            return self._origin.download(file, target, on_bytes=on_bytes)
        counted = 0

        def count(size: int) -> None:
            nonlocal counted
            counted += size
            on_bytes(size)

        try:
            came = self._peers[0].download(file, target, on_bytes=count)
        except FetchError as error:
            if error.kind not in _PEERS_FAULT:
                raise
            self._give_up(self._peers[0], error)
            # Its beginning is looked at again: only a whole file has a digest.
            on_bytes(-counted)
            return self._origin.download(file, target, on_bytes=on_bytes)
        self.peer_bytes += came
        return came

    def _give_up(self, peer: Origin, error: AtollError) -> None:
        self._peers = [other for other in self._peers if other is not peer]
        others = [other.url for other in (*self._peers, self._origin)]
        _log.warning("peer_given_up", peer=peer.url, reason=str(error), goes_on_with=", ".join(others))
