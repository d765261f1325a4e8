"""Attempts that were ordered and whose end is not surely kept by the agent yet; and what the artifact store knows of them.

Decides that a committed manifest is the truth about an attempt, whatever became of its process.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import structlog

from agents.objects import StoreError
from agents.results import ArtifactStore, CommittedResult
from agents.runtime.attempt_files import AttemptFiles
from atoll.model.ids import AttemptKey

_log = structlog.get_logger(__name__)

# A store that does not answer must not keep a dead slot from being told for long.
_STORE_TIMEOUT_S: Final = 10.0
_PRUNE_EVERY: Final = 100


class OpenAttempts:
    """The open attempts of a site; survives the agent."""

    def __init__(self, work_dir: Path) -> None:
        """Reads a folder: call it off the event loop."""
        self.files = AttemptFiles(work_dir)
        self.files.prune()
        self._open = self.files.open_attempts()
        self._opened = 0

    def open_keys(self) -> set[AttemptKey]:
        """All of them."""
        return set(self._open)

    def open(self, key: AttemptKey, artifacts_url: str) -> None:
        """An attempt is about to be ordered. OSError if that cannot be kept: then it must not begin."""
        self.files.open(key, artifacts_url)
        self._open[key] = artifacts_url
        self._opened += 1
        if self._opened % _PRUNE_EVERY == 0:
            self.files.prune()

    def settle(self, key: AttemptKey) -> None:
        """The agent has kept its end."""
        self._open.pop(key, None)
        self.files.settle(key)

    async def committed(self, key: AttemptKey) -> CommittedResult | None:
        """What an attempt committed; None: nothing, or its store does not tell in time (then the attempt counts as lost)."""
        url = self._open.get(key)
        if url is None:
            return None
        try:
            async with asyncio.timeout(_STORE_TIMEOUT_S):
                return await asyncio.to_thread(lambda: ArtifactStore(url).result(key))
        except (StoreError, TimeoutError) as error:
            _log.warning("manifest_unknown", attempt=str(key), store=url, error=str(error) or "no answer")
            return None
