"""Jobs as answers hold them: as committed, with when they should be done as of now.

Decides what is added to a job on its way out. Must not wait: thousands of watchers hear of each change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from atoll.model.job import Job, JobState
from atoll.v1 import types_pb2 as pb
from atoll.wire.jobs import job_to_proto
from atoll.wire.quotes import eta_to_proto
from orchestrator.driver import Driver

_ON_ITS_WAY: Final = frozenset({JobState.PLACED, JobState.RUNNING})


class Shown:
    """Encodes jobs."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def job(self, job: Job) -> pb.Job:
        """The message. While the core is loaded anew there is no ETA."""
        message = job_to_proto(job)
        message.as_of_us = self._driver.clock.now_us()
        if job.state in _ON_ITS_WAY and self._driver.ready:
            eta = self._driver.machine.eta_of(job.job_id, message.as_of_us)
            if eta is not None:
                message.eta.CopyFrom(eta_to_proto(eta))
        return message

    def waiting(self, job: Job) -> pb.Job | None:
        """A queued job with why it waits; None where that is not known yet, or it waits no more."""
        if job.state is not JobState.QUEUED or not self._driver.ready:
            return None
        deferral = self._driver.machine.deferral_of(job.job_id)
        return self.job(replace(job, deferral=deferral)) if deferral is not None else None
