"""Suspicion: jobs over which the core failed, and when that is enough to set them aside.

Decides how often is enough: once where it was starting, for it would fail at each start; twice else, for the first time may have been
another's fault. A store with such a job would otherwise hold the fleet for ever: each start, and each event that places again, would end in
the same failure. Must not know what the core does with jobs that are set aside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from atoll.model.ids import JobId
from atoll.model.limits import QUEUED_JOBS_MAX

_TIMES_ENOUGH: Final = 2


class Suspicion:
    """What one process has seen of it. `aside`: jobs that the next core is to set aside; `reference`: the last failure's in the log."""

    __slots__ = ("_times", "aside", "reference")

    def __init__(self) -> None:
        self._times: Counter[JobId] = Counter()
        self.aside: dict[JobId, None] = {}
        self.reference = ""

    def failed(self, suspects: Iterable[JobId], reference: str, *, starting: bool) -> None:
        """The core failed while it was placing these."""
        self.reference = reference
        if len(self._times) > QUEUED_JOBS_MAX:
            self._times.clear()
        self._times.update(suspects)
        self.aside.update((job_id, None) for job_id in suspects if starting or self._times[job_id] >= _TIMES_ENOUGH)

    def forget_ended(self, live: Iterable[JobId]) -> None:
        """Of those that are set aside only these are left in the store."""
        if self.aside:
            self.aside = {job_id: None for job_id in live if job_id in self.aside}
