"""Leadership: how this process becomes the one that may write, and what it does when it no longer is.

Decides which failures of the store end the process and which are waited out. The fence itself, the term that every commit
compares, is the store's.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from atoll.model.errors import AtollError, StateError
from orchestrator.core.durable import Stored
from orchestrator.store.base import Store

_log = structlog.get_logger(__name__)

# A full disk or a store that restarts is back within seconds, mostly; asked more often than this it would only be slowed down.
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0


class DeposedError(AtollError):
    """Another orchestrator took over: whatever this process would still do is not to be done."""


async def regain(store: Store, stopping: asyncio.Event) -> Stored | None:
    """Everything the store holds, under a new term, after a commit of unknown outcome; None when stopped while waiting.

    Waits as long as the store fails: accepted jobs are in it and nowhere else. Raises DeposedError when another process holds it.
    """
    pause_s = _FIRST_PAUSE_S
    while not stopping.is_set():
        try:
            return await store.take_over()
        except StateError as error:
            raise DeposedError(f"the store is no longer this orchestrator's: {error}") from error
        except Exception as error:  # noqa: BLE001 - a store fails in its own ways; each means: not now
            _log.error("store_unavailable", error=str(error), error_type=type(error).__name__, retry_in_s=pause_s)
        try:
            async with asyncio.timeout(pause_s):
                await stopping.wait()
        except TimeoutError:
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
    return None
