"""History that nobody reads, taken away as it is written: etcd keeps every value that was superseded until it is told otherwise.

Decides how much of it there may be, and for how long. Must not know what was written.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.errors import EtcdDeniedError, EtcdError, EtcdTokenError
from orchestrator.store.etcd.writing import Writer

_log = structlog.get_logger(__name__)

# What was superseded is history; beyond this much of it, or this long, it is compacted away.
HISTORY_BYTES_MAX: Final = 64 * 1024 * 1024
HISTORY_S_MAX: Final = 300.0
_LET_ETCD_COMPACT: Final = "start etcd with --auto-compaction-mode=periodic --auto-compaction-retention=5m: this user may not compact"


class History:
    """What one writer's values have superseded."""

    def __init__(self) -> None:
        self._compacting: asyncio.Task[None] | None = None
        self._compacted_s = 0.0
        self._copying = 0

    def hold(self) -> None:
        """Somebody reads as of a revision: nothing is taken away until they `release` it."""
        self._copying += 1

    def release(self) -> None:
        """They have read it."""
        self._copying -= 1

    def compact_when_due(self, client: EtcdClient, writer: Writer) -> None:
        """Begin to, unless somebody reads it, or it is being done."""
        now_s = asyncio.get_running_loop().time()
        due = writer.written_bytes > HISTORY_BYTES_MAX or now_s - self._compacted_s > HISTORY_S_MAX
        if not due or self._copying or (self._compacting is not None and not self._compacting.done()):
            return
        writer.written_bytes, self._compacted_s = 0, now_s
        self._compacting = asyncio.create_task(_compact(client, writer.revision))

    async def close(self) -> None:
        """Give up what was begun."""
        if self._compacting is not None:
            self._compacting.cancel()
            await asyncio.gather(self._compacting, return_exceptions=True)
            self._compacting = None


async def _compact(client: EtcdClient, revision: int) -> None:
    try:
        await client.compact(revision)
    except EtcdDeniedError as error:
        if isinstance(error, EtcdTokenError):
            return
        # From 3.5.28 and 3.6.9 on etcd may keep this for the role root.
        _log.warning("history_not_compacted", store=str(client.target), advice=_LET_ETCD_COMPACT)
    except EtcdError as error:
        _log.warning("not_compacted", revision=revision, error=str(error))
