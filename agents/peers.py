"""Weights from another site: what one fetch reads from the peer, and how it goes on with the origin store when the peer fails.

Decides when a peer is given up: refused, not found, silent, slower than a floor, or wrong in a single byte. Nothing that comes from a peer
is believed: the manifest must have the digest that was asked for, and every file the digest that the manifest says, exactly as from the
origin store. What has been verified stays; the rest comes from there. Must not know the cache's layout, quotas or who asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import structlog

from agents.engine.errors import BadWeightsError
from agents.engine.manifest import ManifestFile, ModelManifest
from agents.origins import FetchError, Origin
from atoll.model.attempt import FailureKind
from atoll.model.errors import AtollError
from atoll.model.ids import ModelId

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
    """One model folder that a peer site serves."""

    def __init__(self, peer: PeerSource, model_id: ModelId, digest: str, *, pace: Pace | None = None) -> None:
        headers = {"Authorization": f"Bearer {peer.token}"} if peer.token else {}
        super().__init__(peer_folder(peer.url, model_id, digest), silence_s=_SILENCE_S, headers=headers, redirects=False)
        self._pace = pace or Pace()

    def _open_at(self, path: str, held: int) -> IO[bytes]:
        """The file from byte `held` on, in one stream: a request per chunk could be as slow as it likes within each."""
        if not held:
            return self._open(path)
        opened: Any = self._open(path, headers={"Range": f"bytes={held}-"})
        if opened.r.status != 206:
            raise FetchError(FailureKind.FETCH_FAILED, f"{self.url}/{path}: status {opened.r.status} where a range was asked for")
        return opened  # type: ignore[no-any-return]  # fsspec is not typed

    def heard(self, size: int) -> None:
        self._pace.heard(size, time.monotonic())


class Supply:
    """Where one fetch reads from: the peer as long as it is good, then the origin store. `peer_bytes` came from the peer."""

    def __init__(self, origin_url: str, peer: Origin | None = None) -> None:
        self._peer = peer
        self._origin = Origin(origin_url)
        self.peer_bytes = 0

    def manifest(self, expected: Callable[[Origin], ModelManifest]) -> ModelManifest:
        """The manifest that `expected` accepts."""
        if self._peer is not None:
            try:
                return expected(self._peer)
            except (BadWeightsError, FetchError) as error:
                self._give_up(error)
        return expected(self._origin)

    def download(self, file: ManifestFile, target: Path, *, on_bytes: Callable[[int], None]) -> int:
        """As `Origin.download`."""
        if self._peer is None:
            return self._origin.download(file, target, on_bytes=on_bytes)
        counted = 0

        def count(size: int) -> None:
            nonlocal counted
            counted += size
            on_bytes(size)

        try:
            came = self._peer.download(file, target, on_bytes=count)
        except FetchError as error:
            if error.kind not in _PEERS_FAULT:
                raise
            self._give_up(error)
            # Its beginning is looked at again: only a whole file has a digest.
            on_bytes(-counted)
            return self._origin.download(file, target, on_bytes=on_bytes)
        self.peer_bytes += came
        return came

    def _give_up(self, error: AtollError) -> None:
        assert self._peer is not None
        _log.warning("peer_given_up", peer=self._peer.url, reason=str(error), goes_on_with=self._origin.url)
        self._peer = None
