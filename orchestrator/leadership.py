"""Leadership: how this process becomes the one that may write, what it does until then, and what when it no longer is.

Decides which failures of the store end the process and which are waited out. The fence itself, the term that every commit
compares, is the store's.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from atoll.model.errors import AtollError, StateError
from orchestrator.core.durable import Stored
from orchestrator.store.base import HeldError, Store, StoreError

_log = structlog.get_logger(__name__)

# A full disk or a store that restarts is back within seconds, mostly; asked more often than this it would only be slowed down.
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0


class DeposedError(AtollError):
    """Another orchestrator took over: whatever this process would still do is not to be done."""


async def succeed(store: Store, stopping: asyncio.Event) -> Stored | None:
    """Everything the store holds, once its leader is heard no more and this process leads in its place; None when stopped while waiting.

    Waits as long as the store fails. Raises StateError when what is there now can be led by nobody here.
    """
    pause_s = _FIRST_PAUSE_S
    while not stopping.is_set():
        silent = asyncio.create_task(store.stand_by())
        stopped = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({silent, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                return None
            await silent
            return await store.take_over()
        except HeldError as error:
            _log.info("standing_by", reason=str(error))
            pause_s = _FIRST_PAUSE_S
            continue
        except (StoreError, OSError) as error:
            _log.warning("store_unavailable", error=str(error), error_type=type(error).__name__, retry_in_s=pause_s)
        finally:
            for task in (silent, stopped):
                task.cancel()
            await asyncio.gather(silent, stopped, return_exceptions=True)
        await _wait(stopping, pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
    return None


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
        await _wait(stopping, pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
    return None


async def _wait(stopping: asyncio.Event, pause_s: float) -> None:
    try:
        async with asyncio.timeout(pause_s):
            await stopping.wait()
    except TimeoutError:
        pass
