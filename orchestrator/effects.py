"""What the core's commands and decisions reach: readers, watchers, sessions, metrics.

Decides nothing: one command, one effect. The order is the driver's.
"""

from __future__ import annotations

from typing import assert_never

from orchestrator.core.durable import Stored
from orchestrator.core.ends import EndAttempt
from orchestrator.core.outputs import (
    Answer,
    CloseSession,
    Command,
    Decision,
    PublishAdapter,
    PublishAdapterRemoved,
    PublishAudit,
    PublishJob,
    PublishModel,
    PublishModelRemoved,
    PublishSite,
    PublishSiteRemoved,
    SendAssignment,
)
from orchestrator.readers import ReadModel
from orchestrator.refusals import RELOADING
from orchestrator.sessions import SessionTable
from orchestrator.telemetry.metrics import Metrics
from orchestrator.watchers import AuditWatchers, JobWatchers


class Surrounding:
    """The one implementation of `driver.Surroundings` in the live program."""

    def __init__(
        self, *, readers: ReadModel, watchers: JobWatchers, audit: AuditWatchers, sessions: SessionTable, metrics: Metrics
    ) -> None:
        self._readers = readers
        self._watchers = watchers
        self._audit = audit
        self._sessions = sessions
        self._metrics = metrics

    def load(self, stored: Stored) -> None:
        """A new core begins: readers start from the store, streams of the old core end."""
        self._readers.load(stored)
        self._watchers.restart(stored.term, RELOADING)
        self._audit.cut_all(RELOADING)
        self._sessions.close_all(RELOADING)

    def perform(self, command: Command) -> None:
        """One command whose records are durable."""
        match command:
            case PublishJob(job=job):
                self._readers.put_job(job)
                self._watchers.publish(job)
            case EndAttempt():
                told = self._readers.end_attempt(command)
                if told is not None:
                    self._watchers.publish(told)
            case SendAssignment(session=session, assignment=assignment):
                self._sessions.send(session, assignment)
            case CloseSession(session=session, refusal=refusal):
                self._sessions.close(session, refusal)
            case PublishSite(site=site):
                self._readers.sites[site.spec.site_id] = site
            case PublishSiteRemoved(site_id=site_id):
                self._readers.sites.pop(site_id, None)
            case PublishModel(model=model):
                self._readers.models[model.model_id] = model
            case PublishModelRemoved(model_id=model_id):
                self._readers.models.pop(model_id, None)
            case PublishAdapter(adapter=adapter):
                self._readers.adapters[adapter.adapter_id] = adapter
            case PublishAdapterRemoved(adapter_id=adapter_id):
                self._readers.adapters.pop(adapter_id, None)
            case PublishAudit(event=event):
                self._audit.publish(event)
            case Answer():
                raise AssertionError("answers are the driver's own")
            case _:
                assert_never(command)

    def observe(self, decision: Decision) -> None:
        """One decision, for the metrics."""
        self._metrics.decided(decision)
