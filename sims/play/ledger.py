"""The books of a run: no job, no GPU-second and no byte comes from nowhere or goes there.

Decides what has to add up, and ends the run loudly where it does not: then the run shows a mistake of the simulator, and no figure of it
counts. It hears what sites' machines handle and command, as the collector does, and keeps its own account; must not know rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from agents.core.events import (
    AdapterDeleted,
    AdapterFetched,
    AgentEvent,
    AttemptErrored,
    AttemptFinished,
    AttemptHalted,
    ReplicaAdapted,
    ReplicaEvicted,
    ReplicaLoaded,
    ReplicaLoadFailed,
    SlotLost,
    SlotReady,
    WeightsDeleted,
    WeightsFetched,
)
from agents.core.gangs import block
from agents.core.outputs import AdaptReplica, AgentCommand, EvictReplica, LoadReplica, RunAttempt
from agents.twin.plant import Plant
from atoll.model.errors import AtollError
from atoll.model.ids import AdapterId, AttemptKey, JobId, ModelId, NodeId, SiteId, SlotRef
from atoll.model.job import Job, JobState

# Work on a link is counted in floats of microseconds: what they lose over a run, in parts of what was carried, and for short runs.
_LOST_PARTS: Final = 1e-9
_LOST_US: Final = 1.0
# An answer, and an end that all may see, wait for the commit of their step, and before it for the one in flight.
_COMMITS_MOST: Final = 2


class NotConserved(AtollError):  # noqa: N818 - it names what was found, not what went wrong in finding it
    """Something came from nowhere, or went there: a bug of ours."""


def _must(holds: bool, law: str, detail: object) -> None:
    if not holds:
        raise NotConserved(f"{law}: {detail}")


class Doing(StrEnum):
    """What a GPU does. Each of its microseconds is one of these."""

    IDLE = "idle"
    EXECUTING = "executing"
    LOADING = "loading"
    ADAPTING = "adapting"
    EVICTING = "evicting"
    LOST = "lost"


# What a disk holds: a model's weights or an adapter's, which may have one name.
_Held = tuple[NodeId, type[WeightsFetched | AdapterFetched], ModelId | AdapterId]


@dataclass(slots=True)
class _Gpu:
    since_us: int
    doing: Doing = Doing.IDLE
    evictions: int = 0  # under way, which are the one thing of which there may be several at once


@dataclass(slots=True, kw_only=True)
class _SiteBooks:
    """Of one site. `told_us`: what its plant said that things took, against what passed by the clock."""

    plant: Plant
    gpus: dict[SlotRef, _Gpu]
    disks: dict[NodeId, int]
    spent_us: Counter[Doing] = field(default_factory=Counter)
    told_us: Counter[Doing] = field(default_factory=Counter)
    passed_us: Counter[Doing] = field(default_factory=Counter)
    runs: dict[AttemptKey, tuple[SlotRef, ...]] = field(default_factory=dict)
    held: dict[_Held, int] = field(default_factory=dict)  # bytes


class Ledger:
    """The books of one run. `now` says what time it is, `commit_us` how long a commit takes."""

    def __init__(self, now: Callable[[], int], commit_us: int = 0) -> None:
        self._now = now
        self._commit_us = commit_us
        self._sites: dict[SiteId, _SiteBooks] = {}
        self._began_us: dict[SiteId, int] = {}
        self._accepted: dict[JobId, int] = {}  # and not ended; since when
        # Job-microseconds: of the number of jobs in the fleet over time, and of the times that those that ended say they were in it.
        self._present_us = self._stayed_us = 0
        self._counted_us = 0
        self.accepted = self.refused = 0
        self.ended: Counter[JobState] = Counter()

    # --- jobs ------------------------------------------------------------------------------------------------------------------

    def took(self, job_id: JobId, *, accepted: bool) -> None:
        """The orchestrator answered."""
        if not accepted:
            self.refused += 1
            return
        _must(job_id not in self._accepted, "a job is accepted once", job_id)
        self._count()
        self.accepted += 1
        self._accepted[job_id] = self._counted_us

    def published(self, job: Job) -> None:
        """A job has ended, for all to see."""
        _must(job.job_id in self._accepted, "a job that ends was accepted, and ends once", (job.job_id, job.state))
        self._count()
        del self._accepted[job.job_id]
        self.ended[job.state] += 1
        self._stayed_us += job.ended_us - job.accepted_us

    def _count(self) -> None:
        """So many jobs there were since the last of them came or went."""
        now_us = self._now()
        self._present_us += len(self._accepted) * (now_us - self._counted_us)
        self._counted_us = now_us

    # --- sites -----------------------------------------------------------------------------------------------------------------

    def watch(self, site_id: SiteId, plant: Plant) -> Callable[[AgentEvent | AgentCommand], None]:
        """Who hears what a site's machine handles and commands, from now on."""
        now_us = self._began_us[site_id] = self._now()
        gpus = {recovered.slot: _Gpu(now_us) for recovered in plant.started().slots}
        self._sites[site_id] = books = _SiteBooks(plant=plant, gpus=gpus, disks=plant.weights.held_bytes())
        books.held = {(node_id, WeightsFetched, model_id): size for node_id, model_id, size in plant.weights.held_models()}
        handlers: dict[type, Callable[..., None]] = {
            RunAttempt: self._runs,
            AttemptFinished: self._finished,
            AttemptErrored: self._ran,
            AttemptHalted: self._ran,
            LoadReplica: self._loads,
            ReplicaLoaded: self._loaded,
            ReplicaLoadFailed: self._load_failed,
            AdaptReplica: self._adapts,
            ReplicaAdapted: self._adapted,
            EvictReplica: self._evicts,
            ReplicaEvicted: self._evicted,
            SlotLost: self._lost,
            SlotReady: self._ready,
            WeightsFetched: self._fetched,
            WeightsDeleted: self._deleted,
            AdapterFetched: self._adapter_fetched,
            AdapterDeleted: self._adapter_deleted,
        }

        def heard(what: AgentEvent | AgentCommand) -> None:
            handler = handlers.get(type(what))
            if handler is not None:
                handler(books, what)

        return heard

    def _turn(self, books: _SiteBooks, ref: SlotRef, before: Doing, after: Doing) -> int:
        """A GPU does something else from now on; for how long it did what it did."""
        gpu, now_us = books.gpus[ref], self._now()
        _must(gpu.doing is before, "a GPU does one thing at a time", (ref, gpu.doing, before, after))
        passed_us = now_us - gpu.since_us
        books.spent_us[gpu.doing] += passed_us
        gpu.doing, gpu.since_us = after, now_us
        return passed_us

    def _over(self, books: _SiteBooks, ref: SlotRef, what: Doing, told_us: int) -> None:
        books.passed_us[what] += self._turn(books, ref, what, Doing.IDLE)
        books.told_us[what] += told_us

    def _runs(self, books: _SiteBooks, command: RunAttempt) -> None:
        slots = books.runs[command.key] = block(command.slot, command.spec.gang_size)
        for ref in slots:
            self._turn(books, ref, Doing.IDLE, Doing.EXECUTING)

    def _finished(self, books: _SiteBooks, event: AttemptFinished) -> None:
        times = event.times
        took_us = sum(max(us, 0) for us in (times.compile_us, times.run_us, times.upload_us))
        for ref in books.runs.pop(event.key):
            self._over(books, ref, Doing.EXECUTING, took_us)

    def _ran(self, books: _SiteBooks, event: AttemptErrored | AttemptHalted) -> None:
        """An attempt came to nothing: nobody says how long it took."""
        for ref in books.runs.pop(event.key):
            self._turn(books, ref, Doing.EXECUTING, Doing.IDLE)

    def _loads(self, books: _SiteBooks, command: LoadReplica) -> None:
        self._turn(books, command.slot, Doing.IDLE, Doing.LOADING)

    def _loaded(self, books: _SiteBooks, event: ReplicaLoaded) -> None:
        self._over(books, event.slot, Doing.LOADING, event.elapsed_us)

    def _load_failed(self, books: _SiteBooks, event: ReplicaLoadFailed) -> None:
        self._turn(books, event.slot, Doing.LOADING, Doing.IDLE)

    def _adapts(self, books: _SiteBooks, command: AdaptReplica) -> None:
        self._turn(books, command.slot, Doing.IDLE, Doing.ADAPTING)

    def _adapted(self, books: _SiteBooks, event: ReplicaAdapted) -> None:
        self._over(books, event.slot, Doing.ADAPTING, event.elapsed_us)

    def _evicts(self, books: _SiteBooks, command: EvictReplica) -> None:
        gpu = books.gpus[command.slot]
        gpu.evictions += 1
        if gpu.evictions == 1:
            self._turn(books, command.slot, Doing.IDLE, Doing.EVICTING)

    def _evicted(self, books: _SiteBooks, event: ReplicaEvicted) -> None:
        gpu = books.gpus[event.slot]
        gpu.evictions -= 1
        if gpu.evictions == 0:
            self._turn(books, event.slot, Doing.EVICTING, Doing.IDLE)

    def _lost(self, books: _SiteBooks, event: SlotLost) -> None:
        gpu = books.gpus[event.slot]
        self._turn(books, event.slot, gpu.doing, Doing.LOST)
        gpu.evictions = 0
        for key, slots in [(key, slots) for key, slots in books.runs.items() if event.slot in slots]:
            del books.runs[key]
            for ref in slots:
                if books.gpus[ref].doing is Doing.EXECUTING:
                    self._turn(books, ref, Doing.EXECUTING, Doing.IDLE)

    def _ready(self, books: _SiteBooks, event: SlotReady) -> None:
        self._turn(books, event.slot, Doing.LOST, Doing.IDLE)

    # --- disks -----------------------------------------------------------------------------------------------------------------

    def _fetched(self, books: _SiteBooks, event: WeightsFetched) -> None:
        self._came(books, (event.node_id, WeightsFetched, event.model_id), event.bytes)

    def _adapter_fetched(self, books: _SiteBooks, event: AdapterFetched) -> None:
        self._came(books, (event.node_id, AdapterFetched, event.adapter_id), event.bytes)

    def _deleted(self, books: _SiteBooks, event: WeightsDeleted) -> None:
        self._went(books, (event.node_id, WeightsFetched, event.model_id))

    def _adapter_deleted(self, books: _SiteBooks, event: AdapterDeleted) -> None:
        self._went(books, (event.node_id, AdapterFetched, event.adapter_id))

    def _came(self, books: _SiteBooks, what: _Held, size_bytes: int) -> None:
        _must(what not in books.held, "a disk gets a file once", what)
        books.held[what] = size_bytes
        books.disks[what[0]] += size_bytes

    def _went(self, books: _SiteBooks, what: _Held) -> None:
        books.disks[what[0]] -= books.held.pop(what, 0)

    # --- the end ---------------------------------------------------------------------------------------------------------------

    def gpu_us(self) -> dict[Doing, int]:
        """GPU-microseconds of the fleet so far, by what was done."""
        now_us, found = self._now(), Counter[Doing]()
        for books in self._sites.values():
            found.update(books.spent_us)
            for gpu in books.gpus.values():
                found[gpu.doing] += now_us - gpu.since_us
        return {doing: found[doing] for doing in Doing}

    def close(self, arrived: int, pending: Iterable[JobId]) -> None:
        """The run is over, and `arrived` jobs came. `pending`: those that the orchestrator has not told the end of. NotConserved unless all
        adds up."""
        left = set(pending)
        _must(arrived == self.accepted + self.refused, "jobs that arrived were accepted or refused", (arrived, self.accepted, self.refused))
        _must(left == self._accepted.keys(), "a job that was accepted ended, or is pending", left ^ self._accepted.keys())
        _must(self.accepted == sum(self.ended.values()) + len(left), "accepted jobs add up", (self.accepted, self.ended, len(left)))
        self._little()
        now_us = self._now()
        capacity_us = sum(len(books.gpus) * (now_us - self._began_us[site_id]) for site_id, books in self._sites.items())
        _must(sum(self.gpu_us().values()) == capacity_us, "GPU-seconds add up to those there were", (self.gpu_us(), capacity_us))
        for site_id, books in self._sites.items():
            _must(books.told_us == books.passed_us, "what GPUs did took as long as was said", (site_id, books.told_us, books.passed_us))
            _must(books.disks == books.plant.weights.held_bytes(), "disks hold what came and was not deleted", site_id)
            for carried_us, came_us in books.plant.weights.books():
                _must(
                    abs(carried_us - came_us) <= _LOST_US + _LOST_PARTS * carried_us,
                    "what left a link came",
                    (site_id, carried_us, came_us),
                )

    def _little(self) -> None:
        """L = lambda W, times the length of the run: job-seconds counted by the clock are those that jobs were there, one by one.

        Of those that are pending it is the time so far; of the others their own record, which all may see by a commit or two later.
        """
        self._count()
        so_far_us = sum(self._counted_us - since_us for since_us in self._accepted.values())
        beyond_us = self._present_us - self._stayed_us - so_far_us
        most_us = _COMMITS_MOST * self._commit_us * sum(self.ended.values())
        _must(abs(beyond_us) <= most_us, "as many jobs are there as come, times how long they stay", (self._present_us, beyond_us, most_us))
