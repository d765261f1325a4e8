"""Says once, each way, that the store is nearly full and that it is not any more.

Decides what an operator is advised. Refusing is the submitter's.
"""

from __future__ import annotations

import structlog

from orchestrator.store.base import Store
from orchestrator.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)
_ADVICE = "forget ended jobs sooner (--retention-hours), defragment etcd, or raise its quota"


class Shedding:
    """Whether new jobs are turned away for want of room, as it was when last looked at."""

    def __init__(self) -> None:
        self._full = False

    def look(self, store: Store, metrics: Metrics) -> None:
        """Look again."""
        why = store.why_shed()
        metrics.store_full(bool(why))
        if why and not self._full:
            _log.error("store_nearly_full", reason=why, advice=_ADVICE)
        elif self._full and not why:
            _log.info("store_has_room")
        self._full = bool(why)
