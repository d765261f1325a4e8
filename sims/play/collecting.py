"""What a run leaves: a row for each job as it ends, and one for each site and interval.

Decides how the seconds of a job are told apart: those of phases are what the site measured, of the attempt that ended it; all the rest (the
queue, messages, commits, attempts that came to nothing) is waiting, so that the terms add up to the latency. Money of a job is that of the
GPUs that its attempts held; money of a site that of all its GPUs and of what left it. Must not know who reads rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from agents.core.events import AdapterFetched, AgentEvent, AttemptFinished, ReplicaEvicted, WeightsFetched
from agents.core.outputs import AdaptReplica, AgentCommand, LoadReplica, RunAttempt
from agents.core.state import State as AgentState
from agents.twin.peers import TwinPeers
from agents.twin.truth import Truth
from atoll.model.adapter import AdapterSpec
from atoll.model.attempt import Attempt, AttemptState, FailureKind, PhaseTimes
from atoll.model.gpu import GpuType
from atoll.model.ids import AttemptKey, GpuTypeId, JobId, PoolId, SiteId, SlotRef
from atoll.model.job import TERMINAL, Job, JobSpec, JobState
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import ReplicaState
from atoll.model.shape import Precision, Shape
from atoll.model.site import LinkSpec, PoolSpec, SiteAdmin, SiteSpec
from atoll.physics.execution import Likeness, execution_us, likeness
from atoll.physics.joint import FetchKey
from atoll.physics.output import output_bytes
from orchestrator.core.state import Site
from sims.play.truths import NotedTruth
from sims.results.rows import NEVER_US, REFUSED, JobRow, SiteRow
from sims.traces.job import TraceJob, kind_of

_HOUR_US: Final = 3_600_000_000
_GB: Final = 10**9
_NO_TIMES: Final = PhaseTimes()


class Sink(Protocol):
    """Where rows go."""

    def job(self, row: JobRow) -> None:
        """A job has ended, or the run has."""

    def site(self, row: SiteRow) -> None:
        """An interval has ended."""


@dataclass(slots=True, kw_only=True)
class Open:
    """A job that has not ended."""

    number: int
    arrival_us: int
    job: TraceJob
    model: ModelSpec
    spec: JobSpec


@dataclass(slots=True)
class _Counts:
    """Of one site since its last row."""

    cold_starts: int = 0
    evictions: int = 0
    fetched_bytes: int = 0
    egress_bytes: int = 0


@dataclass(slots=True, kw_only=True)
class _Fastest:
    """The fastest type of GPU of the fleet for a shape: once for all fine-tunes of a model, which take equally long and as much memory."""

    gpus: tuple[GpuType, ...]
    known: dict[tuple[Likeness, int, Shape, Precision, int], int] = field(default_factory=dict)

    def us(self, model: ModelSpec, spec: JobSpec) -> int:
        key = (likeness(model), model.resident_bytes, spec.shape, spec.precision, spec.gang_size)
        found = self.known.get(key)
        if found is None:
            able = [gpu for gpu in self.gpus if gpu.memory_bytes >= model.resident_bytes] or list(self.gpus)
            times = (execution_us(model, spec.shape, gpu, spec.precision, gang_size=spec.gang_size) for gpu in able)
            found = self.known[key] = min(times)
        return found


class Collector:
    """Makes the rows of one run. Moments are counted from `from_us` of the timeline."""

    def __init__(
        self,
        sites: tuple[SiteSpec, ...],
        gpus: Mapping[GpuTypeId, GpuType],
        truth: NotedTruth,
        sink: Sink,
        *,
        from_us: int,
        peers: CountedPeers,
    ) -> None:
        self.open: dict[JobId, Open] = {}
        self.ended: dict[str, int] = {}
        self._sites = {site.site_id: site for site in sites}
        self._sink = sink
        self._truth = truth
        self._from_us = from_us
        self._peers = peers
        peers.gave = self._gave
        self._pools: dict[tuple[SiteId, PoolId], PoolSpec] = {(site.site_id, pool.pool_id): pool for site in sites for pool in site.pools}
        self._usd_micros = {
            key: pool.usd_micros_per_gpu_hour or gpus[pool.gpu_type].usd_micros_per_hour for key, pool in self._pools.items()
        }
        types = {pool.gpu_type for pool in self._pools.values()}
        self._fastest = _Fastest(gpus=tuple(gpus[name] for name in sorted(types)))
        self._counts = {site.site_id: _Counts() for site in sites}
        self._adapted: dict[tuple[SiteId, SlotRef], int] = {}
        self._misses: dict[AttemptKey, int] = {}

    # --- jobs ------------------------------------------------------------------------------------------------------------------

    def published(self, job: Job) -> None:
        """Readers see a job so from now on."""
        if job.state not in TERMINAL:
            return
        known = self.open.pop(job.job_id, None)
        if known is not None:
            self._write(known, job.state.value, job)

    def refused(self, job_id: JobId) -> None:
        """The orchestrator did not take it."""
        self._write(self.open.pop(job_id), REFUSED, None)

    def left_over(self, jobs: Mapping[JobId, Job]) -> None:
        """The run is over: these have not ended."""
        for job_id, known in sorted(self.open.items()):
            job = jobs.get(job_id)
            self._write(known, job.state.value if job is not None else JobState.QUEUED.value, job)
        self.open.clear()

    def _write(self, known: Open, state: str, job: Job | None) -> None:
        self.ended[state] = self.ended.get(state, 0) + 1
        attempts = job.attempts if job is not None else ()
        last = attempts[-1] if attempts else None
        times = last.times if last is not None and last.state is AttemptState.SUCCEEDED else _NO_TIMES
        over = job is not None and job.state in TERMINAL
        ended_us = job.ended_us if job is not None and over else NEVER_US
        load_us = max(times.load_us, 0)
        stage_us, init_us = self._truth.split(last.site_id, known.model.model_id, load_us) if last is not None else (0, 0)
        # An agent measures as one how long it read the job's files, and executed.
        site = self._sites[last.site_id] if last is not None and times.run_us > 0 else None
        input_us = self._peers.input_us(self._truth, site, known.spec) if site is not None else 0
        spent_us = {
            "fetch_us": max(times.fetch_us, 0),
            "stage_us": stage_us,
            "init_us": init_us,
            "compile_us": max(times.compile_us, 0),
            "adapt_us": max(times.adapt_us, 0),
            "input_us": input_us,
            "execution_us": max(times.run_us, 0) - input_us,
            "output_us": max(times.upload_us, 0),
        }
        latency_us = ended_us - known.arrival_us if over else 0
        late = not over or state != JobState.SUCCEEDED.value or latency_us > known.spec.deadline_ms * 1_000
        pool = self._pools[(last.site_id, last.slot.pool_id)] if last is not None else None
        explained = attempts[0].explanation if attempts else None
        queued_us = attempts[0].leased_us - known.arrival_us if attempts else 0
        misses = sum(self._misses.pop(attempt.key, 0) for attempt in attempts)
        self._sink.job(
            JobRow(
                number=known.number,
                model_id=known.model.model_id,
                tenant=known.spec.tenant,
                origin=known.job.origin,
                priority=known.spec.priority.value,
                kind=kind_of(known.spec.shape),
                gang_size=known.spec.gang_size,
                arrival_us=known.arrival_us - self._from_us,
                placed_us=attempts[0].leased_us - self._from_us if attempts else NEVER_US,
                started_us=job.started_us - self._from_us if job is not None and job.started_us else NEVER_US,
                ended_us=ended_us - self._from_us if over else NEVER_US,
                state=state,
                site_id=last.site_id if last is not None else "",
                pool_id=last.slot.pool_id if last is not None else "",
                gpu_type=pool.gpu_type if pool is not None else "",
                attempts=len(attempts),
                moves=sum(_moved(attempt) for attempt in attempts),
                cold=load_us > 0,
                fetched=times.fetch_us > 0,
                adapter_misses=misses,
                predicted_us=queued_us + attempts[0].predicted_us if attempts else 0,
                quoted_p90_us=queued_us + explained.p90_us if explained is not None and explained.p90_us else 0,
                queue_us=max(latency_us - sum(spent_us.values()), 0),
                **spent_us,
                deadline_ms=known.spec.deadline_ms,
                deadline_missed=known.spec.deadline_ms > 0 and late,
                ideal_execution_us=self._fastest.us(known.model, known.spec),
                price_usd_micros=sum(self._price(attempt, known.spec.gang_size) for attempt in attempts),
            )
        )

    def _price(self, attempt: Attempt, gang_size: int) -> int:
        times = attempt.times
        phases = (times.load_us, times.adapt_us, times.compile_us, times.run_us, times.upload_us)
        held_us = sum(max(us, 0) for us in phases)
        return held_us * gang_size * self._usd_micros[(attempt.site_id, attempt.slot.pool_id)] // _HOUR_US

    # --- sites -----------------------------------------------------------------------------------------------------------------

    def watch(self, site_id: SiteId) -> Callable[[AgentEvent | AgentCommand], None]:
        """Who hears what a site's machine handles and commands."""
        counts, adapted = self._counts[site_id], self._adapted

        def heard(what: AgentEvent | AgentCommand) -> None:
            match what:
                case RunAttempt():
                    missed = adapted.pop((site_id, what.slot), 0)
                    if missed:
                        self._misses[what.key] = missed
                case AttemptFinished():
                    counts.egress_bytes += sum(one.bytes for one in what.manifest.artifacts)
                case LoadReplica():
                    counts.cold_starts += 1
                case ReplicaEvicted():
                    counts.evictions += 1
                case WeightsFetched() | AdapterFetched():
                    counts.fetched_bytes += what.bytes
                case AdaptReplica():
                    adapted[(site_id, what.slot)] = len(what.adapters)
                case _:
                    pass

        return heard

    def _gave(self, site_id: SiteId, size_bytes: int) -> None:
        """A site was read by another one."""
        self._counts[site_id].egress_bytes += size_bytes

    def sample(self, spec: SiteSpec, agent: AgentState, site: Site | None, now_us: int, interval_us: int) -> None:
        """The interval of a site is over."""
        site_id, counts = spec.site_id, self._counts[spec.site_id]
        busy = loading = warm = 0
        for slot in agent.slots.values():
            states = [replica.state for replica in slot.replicas.values()]
            busy += slot.executing is not None
            loading += ReplicaState.LOADING in states
            warm += sum(state in (ReplicaState.WARM, ReplicaState.BUSY) for state in states)
        usd_micros = (
            sum(pool.slots * interval_us * self._usd_micros[(site_id, pool.pool_id)] // _HOUR_US for pool in spec.pools)
            + counts.egress_bytes * spec.egress_usd_micros_per_gb // _GB
        )
        self._sink.site(
            SiteRow(
                at_us=now_us - self._from_us,
                site_id=site_id,
                slots=len(agent.slots),
                slots_busy=busy,
                slots_loading=loading,
                queued_work_us=_queued_us(site) if site is not None else 0,
                replicas_warm=warm,
                cold_starts=counts.cold_starts,
                evictions=counts.evictions,
                fetched_bytes=counts.fetched_bytes,
                egress_bytes=counts.egress_bytes,
                state=_state(site),
                usd_micros=usd_micros,
            )
        )
        counts.cold_starts = counts.evictions = counts.fetched_bytes = counts.egress_bytes = 0


class CountedPeers(TwinPeers):
    """The ways between the sites of a run, counting what each gives: of a fetch that reads several, by how fast each is."""

    gave: Callable[[SiteId, int], None]

    def __init__(
        self, sites: Iterable[SiteSpec] = (), links: Mapping[tuple[SiteId, SiteId], LinkSpec] | None = None, *, here: Iterable[SiteId] = ()
    ) -> None:
        super().__init__(sites, links, here=here)
        self._begun: dict[FetchKey, tuple[int, float, dict[SiteId, float]]] = {}  # bytes, the share to come, the share of each site in that

    def begin(
        self, key: FetchKey, size_bytes: int, peers: Mapping[SiteId, int], origin_us: int, *, origin_too: bool, left: float = 1.0
    ) -> int:
        """As the twins' own."""
        rates = {site_id: 1 / max(peer_us, 1) for site_id, peer_us in peers.items()}
        whole = sum(rates.values()) + (1 / max(origin_us, 1) if origin_too else 0)
        self._begun[key] = (size_bytes, left, {site_id: rate / whole for site_id, rate in rates.items()})
        return super().begin(key, size_bytes, peers, origin_us, origin_too=origin_too, left=left)

    def end(self, key: FetchKey, *, left: float = 0.0) -> bool:
        """As the twins' own. What has come since it began was given."""
        size_bytes, to_come, shares = self._begun.pop(key, (0, 0.0, {}))
        for site_id, share in shares.items():
            self.gave(site_id, round(size_bytes * (to_come - left) * share))
        return super().end(key, left=left)

    def adapter_us(self, truth: Truth, src: SiteId, dst: SiteId, adapter: AdapterSpec, key: str) -> int | None:
        """As the twins' own. An adapter is given at once: it is small, and its fetch never yields."""
        found = super().adapter_us(truth, src, dst, adapter, key)
        if found is not None:
            self.gave(src, adapter.weights_bytes)
        return found


def result_bytes(command: RunAttempt) -> int:
    """What a run leaves behind, for who counts it."""
    return output_bytes(command.model, command.spec.shape)


def _moved(attempt: Attempt) -> bool:
    return attempt.failure is not None and attempt.failure.kind is FailureKind.MOVED


def _queued_us(site: Site) -> int:
    """Work that is bound to it and has not begun."""
    return sum(live.exec_us for live in site.attempts.values() if live.attempt.state not in (AttemptState.RUNNING, AttemptState.UPLOADING))


def _state(site: Site | None) -> str:
    if site is None or site.connection is None:
        return "never connected"
    return site.connection.value if site.record.admin is SiteAdmin.OPEN else site.record.admin.value
