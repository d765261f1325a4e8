"""Prometheus metrics. Every label set is bounded: enumerations of ours, names of terms and methods, never a tenant's or a model's.

Decides names and buckets. Must not know why something was counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, assert_never
from wsgiref.simple_server import WSGIServer

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from atoll.model.address import Address
from atoll.model.attempt import Attempt, PhaseTimes
from atoll.model.job import TERMINAL, JobState, Priority
from atoll.model.learned import Calibration
from atoll.model.residency import TIER_NAMES
from atoll.model.views import FleetView
from orchestrator.core.claimed import ClaimDropped
from orchestrator.core.health import BreakerTurned
from orchestrator.core.outputs import (
    AttemptPreempted,
    AttemptSettled,
    CopyMoved,
    CopyWanted,
    Decision,
    EstimateShifted,
    JobPlaced,
    JobsDeferred,
    JobSettled,
    LateResultRefused,
    RetryScheduled,
    SubmissionRefused,
)
from orchestrator.inbox import Lane
from orchestrator.store.base import CommitOutcome

# From a fifth of a millisecond (SQLite's quickest commit) to what a stalled disk takes.
_COMMIT_BUCKETS_S: Final = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_RECORD_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000)
# Actual over predicted, symmetric in the logarithm: what placement learns is clipped to [1/4, 4].
_RATIO_BUCKETS: Final = (0.25, 0.5, 0.67, 0.8, 0.9, 0.95, 1.05, 1.11, 1.25, 1.5, 2.0, 4.0)
_JOB_BUCKETS_S: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3_600, 14_400, 86_400)
# Shorter than this a phase is all overhead, and its ratio says nothing.
_RESIDUAL_FROM_US: Final = 1_000

# Which measured phases are the actual of which predicted terms. Terms of one phase are compared as their sum.
_PHASES: Final[tuple[tuple[str, tuple[str, ...], Callable[[PhaseTimes], int]], ...]] = (
    ("queue", ("queue",), lambda times: times.waiting_us),
    ("fetch", ("fetch",), lambda times: times.fetch_us),
    ("load", ("stage", "init"), lambda times: times.load_us),
    ("compile", ("compile",), lambda times: times.compile_us),
    ("execution", ("execution",), lambda times: times.run_us),
    ("output", ("output",), lambda times: times.upload_us),
)


class Metrics:
    """All metrics of one orchestrator, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self._calls = Histogram("atoll_call_seconds", "Calls by method and status", ["method", "code"], registry=r)
        self._decisions = Counter("atoll_decisions", "Decisions of the core by kind", ["decision"], registry=r)
        self._rejections = Counter("atoll_rejections", "Pools rejected when a job was placed or deferred", ["reason"], registry=r)
        self._cold = Counter("atoll_placements", "Placements by whether the replica had to be loaded", ["start"], registry=r)
        self._attempts = Counter("atoll_attempts", "Attempts by how they ended, and why", ["outcome", "cause"], registry=r)
        self._jobs = Histogram("atoll_job_seconds", "From acceptance to the end, fleet time", ["state"], buckets=_JOB_BUCKETS_S, registry=r)
        self._retries = Counter("atoll_retries", "Jobs sent back to the queue by cause", ["cause"], registry=r)
        self._residual = Histogram("atoll_residual_ratio", "Actual over predicted, by term", ["term"], buckets=_RATIO_BUCKETS, registry=r)
        self._shifts = Counter("atoll_estimate_shifts", "Sites that became lastingly slower or faster", ["component"], registry=r)
        self._median = Gauge("atoll_residual_median", "Median log residual; the gate is 0.05", ["component"], registry=r)
        self._coverage = Gauge("atoll_p90_coverage", "Share of actuals within P90; the gate is 0.87 to 0.93", ["component"], registry=r)
        self._gates = Gauge("atoll_gate_passed", "1: this component's predictions may be believed", ["component"], registry=r)
        self._factors = Gauge("atoll_learned_factors", "Cells that the corrections are made of", registry=r)
        self._commit_s = Histogram("atoll_commit_seconds", "Commits by outcome", ["outcome"], buckets=_COMMIT_BUCKETS_S, registry=r)
        self._commit_records = Histogram("atoll_commit_records", "Records per commit", buckets=_RECORD_BUCKETS, registry=r)
        self._inbox = Gauge("atoll_inbox_events", "Events waiting to be handled", ["lane"], registry=r)
        self._pending = Gauge("atoll_submits_pending", "Jobs handed in and not yet answered", registry=r)
        self._live_jobs = Gauge("atoll_live_jobs", "Jobs that are not terminal", ["priority", "state"], registry=r)
        self._copies_wanted = Counter("atoll_copies_wanted", "Copies wanted ahead of demand", ["tier", "cause"], registry=r)
        self._prefetches = Counter("atoll_prefetches", "Fetches begun ahead of demand", ["cause"], registry=r)
        self._prefetched_bytes = Counter("atoll_prefetch_bytes", "Bytes asked for ahead of demand", ["cause"], registry=r)
        self._copies_moved = Counter("atoll_copies_moved", "Copies that came or left, and why", ["tier", "movement", "cause"], registry=r)
        self._copies = Gauge("atoll_copies", "Copies by tier: as wanted, as there are", ["tier", "which"], registry=r)
        self._sessions = Gauge("atoll_sessions", "Streams of agents that are open", registry=r)
        self._gpus = Gauge("atoll_gpus", "GPUs of connected sites", ["which"], registry=r)
        self._sites = Gauge("atoll_sites", "Sites", ["which"], registry=r)
        self._preemptions = Counter("atoll_preemptions", "Attempts stopped to make room for a higher priority", registry=r)
        self._breakers = Counter("atoll_breaker_turns", "Pools closed to new work, probed, opened to it again", ["to"], registry=r)
        self._refused = Counter("atoll_submits_refused", "Jobs not accepted because of a bound of the queue", ["bound"], registry=r)
        self._full = Gauge("atoll_store_full", "1: nothing new is accepted because the store is nearly full", registry=r)
        self._leading = Gauge("atoll_leading", "1: this orchestrator leads; 0: it stands by", registry=r)
        self._shed = Counter("atoll_shed", "Requests turned away because too much was waiting", ["lane"], registry=r)

    def called(self, method: str, code: grpc.StatusCode, elapsed_s: float) -> None:
        """A call ended."""
        self._calls.labels(method, code.name).observe(elapsed_s)

    def committed(self, outcome: CommitOutcome, elapsed_s: float, records: int) -> None:
        """A commit ended."""
        self._commit_s.labels(outcome.value).observe(elapsed_s)
        self._commit_records.observe(records)

    def store_full(self, full: bool) -> None:
        """Whether the store has no room for new jobs."""
        self._full.set(full)

    def leads(self, yes: bool) -> None:
        """Whether this orchestrator leads."""
        self._leading.set(yes)

    def depths(self, inbox: Mapping[Lane, int], pending_jobs: int) -> None:
        """What waits just now."""
        for lane, depth in inbox.items():
            self._inbox.labels(lane.name.lower()).set(depth)
        self._pending.set(pending_jobs)

    def shed(self, lane: Lane) -> None:
        """A request was turned away."""
        self._shed.labels(lane.name.lower()).inc()

    def decided(self, decision: Decision) -> None:  # noqa: C901 - one case per decision and nothing else
        """Count one decision."""
        self._decisions.labels(type(decision).__name__).inc()
        match decision:
            case JobPlaced(explanation=explanation):
                self._cold.labels("cold" if explanation.chosen.cold else "warm").inc()
                for rejection in explanation.rejections:
                    self._rejections.labels(rejection.reason.value).inc(rejection.pools)
            case JobsDeferred(deferral=deferral):
                for rejection in deferral.rejections:
                    self._rejections.labels(rejection.reason.value).inc(rejection.pools)
            case AttemptSettled(attempt=attempt):
                self._settled(attempt)
            case JobSettled(state=state, queued_to_end_us=elapsed_us):
                self._jobs.labels(state.value).observe(elapsed_us / 1_000_000)
            case RetryScheduled(kind=kind):
                self._retries.labels(kind.value).inc()
            case SubmissionRefused(bound=bound):
                self._refused.labels(bound.value).inc()
            case AttemptPreempted():
                self._preemptions.inc()
            case EstimateShifted(shift=shift):
                self._shifts.labels(shift.component.value).inc()
            case CopyWanted(tier=tier, cause=cause, fetch_bytes=fetch_bytes):
                self._copies_wanted.labels(TIER_NAMES[tier], cause.value).inc()
                if fetch_bytes:
                    self._prefetches.labels(cause.value).inc()
                    self._prefetched_bytes.labels(cause.value).inc(fetch_bytes)
            case CopyMoved(event=event):
                self._copies_moved.labels(TIER_NAMES[event.tier], event.movement.value, event.cause.value).inc()
            case BreakerTurned(to=to):
                self._breakers.labels(to.value).inc()
            case LateResultRefused() | ClaimDropped():
                pass  # counted above, by its name
            case _:
                assert_never(decision)

    def _settled(self, attempt: Attempt) -> None:
        cause = attempt.failure.kind.value if attempt.failure is not None else ""
        self._attempts.labels(attempt.state.value, cause).inc()
        if attempt.explanation is None or attempt.failure is not None:
            return
        predicted = dict(zip(attempt.explanation.term_names, attempt.explanation.chosen.terms_us, strict=False))
        for name, terms, actual_of in _PHASES:
            predicted_us = sum(predicted.get(term, 0) for term in terms)
            actual_us = actual_of(attempt.times)
            if predicted_us >= _RESIDUAL_FROM_US and actual_us >= _RESIDUAL_FROM_US:
                self._residual.labels(name).observe(actual_us / predicted_us)
        if attempt.predicted_us and attempt.ended_us > attempt.leased_us:
            self._residual.labels("total").observe((attempt.ended_us - attempt.leased_us) / attempt.predicted_us)

    def calibrated(self, calibration: Calibration) -> None:
        """Gates as they stand."""
        for gate in calibration.gates:
            self._median.labels(gate.name).set(gate.median_milli / 1_000)
            self._coverage.labels(gate.name).set(gate.coverage_milli / 1_000)
            self._gates.labels(gate.name).set(gate.passed)
        self._factors.set(calibration.factors)

    def counted_copies(self, counts: Iterable[tuple[str, int, int]]) -> None:
        """Of each tier: its name, copies wanted, copies there."""
        for tier, wanted, there in counts:
            self._copies.labels(tier, "wanted").set(wanted)
            self._copies.labels(tier, "there").set(there)

    def sampled(self, *, jobs: Mapping[tuple[Priority, JobState], int], sessions: int, fleet: FleetView | None) -> None:
        """Figures that are set now and then rather than counted: the scraping thread may not touch what the loop changes."""
        for priority in Priority:
            for state in JobState:
                if state not in TERMINAL:
                    self._live_jobs.labels(priority.value, state.value).set(jobs.get((priority, state), 0))
        self._sessions.set(sessions)
        if fleet is not None:
            self._gpus.labels("all").set(fleet.gpus)
            self._gpus.labels("used").set(fleet.gpus_used)
            self._sites.labels("all").set(fleet.sites)
            self._sites.labels("connected").set(fleet.sites_connected)

    def serve(self, host: str, port: int) -> MetricsServer:
        """Answer scrapes on this address, on a thread of its own. Raises OSError when the port is in use."""
        server, _ = start_http_server(port, addr=host, registry=self.registry)
        return MetricsServer(server, Address(host=host, port=server.server_port))


class MetricsServer:
    """The listener for scrapes."""

    def __init__(self, server: WSGIServer, address: Address) -> None:
        self._server = server
        self.address = address

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
