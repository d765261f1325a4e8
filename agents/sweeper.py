"""Retention of results: once an hour the artifact store forgets what is too old or too much.

Decides when a sweep happens; what may go is decided by `agents.results`. Several agents may sweep one store: a sweep of what is swept
already changes nothing. A sweep that fails is said and tried again an hour later; it never ends an agent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

from agents.results import ArtifactStore, Retention, Swept
from atoll.model.errors import AtollError
from atoll.model.ids import AttemptKey

_log = structlog.get_logger(__name__)

# Retention is counted in hours at least, and listing a store costs a request per thousand results.
SWEEP_EVERY_S: Final = 3_600.0


class ResultSweeper:
    """Sweeps one artifact store. `store_url` is None until the orchestrator has said where results go."""

    def __init__(
        self,
        *,
        retention: Retention,
        store_url: Callable[[], str | None],
        unacknowledged: Callable[[], frozenset[AttemptKey]],
        every_s: float = SWEEP_EVERY_S,
    ) -> None:
        self._retention = retention
        self._store_url = store_url
        self._unacknowledged = unacknowledged
        self._every_s = every_s

    async def run(self) -> None:
        """Sweep for as long as the agent runs."""
        while True:
            await asyncio.sleep(self._every_s)
            await self.sweep()

    async def sweep(self) -> Swept | None:
        """One sweep off the event loop; None when there is no store yet or it could not be swept."""
        url = self._store_url()
        if url is None:
            return None
        keep = self._unacknowledged()
        try:
            swept = await asyncio.to_thread(self._sweep, url, keep)
        except (AtollError, OSError) as error:
            _log.warning("results_not_swept", error=str(error))
            return None
        if swept.results or swept.freed_bytes:
            _log.info("results_swept", results=len(swept.results), freed_bytes=swept.freed_bytes, kept_bytes=swept.kept_bytes)
        return swept

    def _sweep(self, url: str, keep: frozenset[AttemptKey]) -> Swept:
        # Results carry the wall clock of the site that made them; retention counts hours of it and compares it with nothing else.
        return ArtifactStore(url).sweep(time.time_ns() // 1_000, self._retention, keep=keep)
