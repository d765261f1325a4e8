"""Retention of inputs: files that clients uploaded are forgotten when they are old and no job needs them.

Decides which. A file counts from its last upload, by the clock of the store that holds it; while a job names it that has not ended it
stays. A sweep that fails is said and changes nothing. Must not know where files lie.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import structlog

from orchestrator.artifacts import ArtifactStore
from orchestrator.readers import ReadModel

_log = structlog.get_logger(__name__)


async def sweep_inputs(store: ArtifactStore, readers: ReadModel, *, retention_ms: int) -> tuple[str, ...]:
    """One sweep off the event loop; the digests of what was forgotten."""
    before = datetime.now(UTC) - timedelta(milliseconds=retention_ms)
    try:
        aged = await asyncio.to_thread(store.aged, before)
        # Asked only now, so that hardly any time is left for a new job to name one of them.
        needed = readers.inputs_needed() if aged else set[str]()
        gone = tuple(digest for digest in aged if digest not in needed)
        freed = await asyncio.to_thread(store.drop, gone)
    except (OSError, NotImplementedError) as error:
        _log.warning("inputs_not_swept", error=str(error))
        return ()
    if gone:
        _log.info("inputs_swept", inputs=len(gone), freed_bytes=freed)
    return gone
