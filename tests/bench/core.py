"""Decisions per second of `orchestrator.core` alone: no network, no store, one process.

The reference fleet (36 sites, 10,008 GPUs) and copies of it under other names; models made from the catalogue's by copying, asked for with
Zipf popularity. Jobs arrive so that about half of the fleet is at work and end when they were predicted to; nodes keep on disk what they
loaded. A decision is a job bound or a class of jobs told to wait; its cost is the time of the placing round. A job's cost is everything
the core does for it: submit, place, end, report. Seconds are of this process's CPU, so that a busy machine changes them little.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Final

from atoll.catalog.fleet import parse_fleet
from atoll.data import fleet_wan_csv
from atoll.model.attempt import AttemptState, ResultManifest
from atoll.model.ids import AttemptKey, EventSeq, Generation, JobId, ModelId, SiteId, TenantId
from atoll.model.job import Constraints, JobSpec
from atoll.model.modelspec import ModelSpec
from atoll.model.quote import Quote, Verdict
from atoll.model.replica import ReplicaFact, ReplicaState
from atoll.model.report import AttemptEvent, NodeFacts, SiteReport, SlotFacts
from atoll.model.shape import Shape
from atoll.model.site import SiteRuntime, SiteSpec
from atoll.packaged import load_packaged
from orchestrator.core import events, placing
from orchestrator.core.context import Context
from orchestrator.core.events import RequestRef, Submission
from orchestrator.core.outputs import JobPlaced, SendAssignment, Step
from orchestrator.core.placement.policy import Policy
from orchestrator.garbage import look_less_often
from tests.unit.fleet_of_machines import Fleet, spec

_FLEET = Path(__file__).parents[2] / "clusters.yaml"
_MODEL_BYTES_MAX = 60 * 10**9
_GB = 10**9
_ON_EVERY_DISK = 60
_SIZES = 100
_ALMOST_FULL = 990_000  # of the million that the queue holds: what arrives while it is measured must find room
_TENANTS = 4  # one alone may fill half of the queue


class Rounds:
    """Counts and times placing rounds in the place of `placing.place_ready`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.waits = 0
        self._place, self._rest = placing.place_ready, placing._rest

    def __enter__(self) -> Rounds:
        placing.place_ready, placing._rest = self._timed, self._counted  # type: ignore[assignment]  # a bound method of the same shape
        return self

    def __exit__(self, *_: object) -> None:
        placing.place_ready, placing._rest = self._place, self._rest

    def _timed(self, ctx: Context, arrivals: int = 0) -> None:
        begun = time.process_time()
        self._place(ctx, arrivals)
        self.seconds += time.process_time() - begun

    def _counted(self, *arguments: object) -> None:
        self.waits += 1
        self._rest(*arguments)  # type: ignore[arg-type]  # handed on as they came


@dataclass(slots=True)
class Load:
    """A stream of jobs against one machine, and what became of it."""

    fleet: Fleet
    models: tuple[ModelSpec, ...]
    gap_us: int
    gang_every: int = 0  # each so many-th job is a gang of two; 0: none is
    placed: int = 0
    ends: list[tuple[int, SiteId, AttemptKey]] = field(default_factory=list)
    seqs: dict[SiteId, int] = field(default_factory=dict)
    reports: dict[SiteId, int] = field(default_factory=dict)
    noise: random.Random | None = None  # rates are measured anew at each report, 30 % off; None: they stand

    def take(self, step: Step, now_us: int) -> None:
        """Count decisions, and note when what was bound will end."""
        self.placed += sum(1 for decision in step.decisions if isinstance(decision, JobPlaced))
        for command in step.commands:
            if isinstance(command, SendAssignment):
                for told in command.assignment.attempts:
                    site = self.fleet.machine.context.state.sites[command.site_id]
                    live = site.attempts[told.key]
                    heappush(self.ends, (now_us if told.stop else now_us + live.attempt.predicted_us, command.site_id, told.key))

    def run(self, first: int, jobs: int, choice: random.Random) -> float:
        """CPU seconds that the core took for this many jobs."""
        weights = [1 / (rank + 1) ** 0.9 for rank in range(len(self.models))]
        picks = choice.choices(self.models, weights, k=jobs)
        begun = time.process_time()
        for number, model in enumerate(picks, first):
            self.fleet.now_us += self.gap_us
            self._end_due()
            gang_size = 2 if self.gang_every and number % self.gang_every == 0 else 1
            job = spec(model.model_id, simulated=True, shape=short(model.default_shape), gang_size=gang_size)
            submission = Submission(job_id=JobId(f"j{number}"), spec=job, idempotency_key=f"k{number}", payload_digest="", request_id="")
            event = events.JobsSubmitted(request=RequestRef(number), submissions=(submission,))
            self.take(self.fleet.machine.handle(event, self.fleet.now_us), self.fleet.now_us)
        return time.process_time() - begun

    def _end_due(self) -> None:
        now_us = self.fleet.now_us
        while self.ends and self.ends[0][0] <= now_us:
            _, site_id, key = heappop(self.ends)
            live = self.fleet.machine.context.state.sites[site_id].attempts.get(key)
            if live is None:
                continue
            self._report(site_id, key)
            self.seqs[site_id] = self.seqs.get(site_id, 0) + 1
            stopped = live.attempt.state is AttemptState.STOPPING
            state = AttemptState.STOPPED if stopped else AttemptState.SUCCEEDED
            manifest = None if stopped else ResultManifest(key=key, artifacts=(), seed=0, simulated=True)
            end = AttemptEvent(seq=EventSeq(self.seqs[site_id]), key=key, state=state, manifest=manifest)
            event = events.AttemptsEnded(site_id=site_id, session=self.fleet.agents[site_id].session, events=(end,))
            self.take(self.fleet.machine.handle(event, now_us), now_us)

    def _report(self, site_id: SiteId, key: AttemptKey) -> None:
        """The node of a cold attempt says that the model is on its disk and in its slot."""
        site = self.fleet.machine.context.state.sites[site_id]
        live = site.attempts[key]
        if not live.attempt.cold:
            return
        ref = live.attempt.slot
        node = site.pools[ref.pool_id].nodes[site.pools[ref.pool_id].node_index[ref.node_id]]
        slots = tuple(
            SlotFacts(
                index=slot.index,
                memory_free_bytes=0,
                replicas=tuple(
                    ReplicaFact(model_id=held.model_id, state=ReplicaState.WARM, memory_bytes=held.memory_bytes, gang_size=held.gang_size)
                    for held in slot.replicas.values()
                ),
            )
            for slot in node.slots[ref.index : ref.index + live.spec.gang_size]
        )
        facts = NodeFacts(
            pool_id=ref.pool_id,
            node_id=ref.node_id,
            host_free_bytes=_GB,
            disk_free_bytes=_GB,
            disk_models=tuple(sorted({*node.disk_models, live.model_id})),
            slots=slots,
        )
        self.reports[site_id] = self.reports.get(site_id, 1) + 1
        rates = site.rates
        if self.noise is not None:
            rates = replace(rates, origin_bytes_per_s=int(site.record.spec.origin_bytes_per_s * self.noise.uniform(0.7, 1.3)))
        report = SiteReport(seq=self.reports[site_id], full=False, generation=Generation(site.generation), nodes=(facts,), rates=rates)
        event = events.SiteReported(site_id=site_id, session=self.fleet.agents[site_id].session, report=report)
        self.take(self.fleet.machine.handle(event, self.fleet.now_us), self.fleet.now_us)


def short(shape: Shape) -> Shape:
    """Videos of one frame: the fleet is to be half busy with many jobs, not with a few long ones."""
    return replace(shape, frames=1)


def sites_of(copies: int) -> tuple[SiteSpec, ...]:
    known = parse_fleet(_FLEET.read_text(encoding="utf-8"), _FLEET.name, load_packaged().gpus, fleet_wan_csv()).sites
    return tuple(one if copy == 0 else replace(one, site_id=SiteId(f"{one.site_id}-{copy}")) for copy in range(copies) for one in known)


def models_of(count: int) -> tuple[ModelSpec, ...]:
    known = [model for model in load_packaged().models if model.resident_bytes < _MODEL_BYTES_MAX]
    return tuple(replace(known[number % len(known)], model_id=ModelId(f"m{number}")) for number in range(count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is measured: copies of the reference fleet, models, whether decisions are explained, jobs in a hundred sizes that wait
    meanwhile (impossible ones, and such as one small site could run, was it free), jobs of one tenant, each of another size, that wait
    for that site, and which part of the jobs are gangs. `noisy`: every report moves the rate of a site's link."""

    copies: int = 1
    models: int = 600
    explained: bool = True
    queued: int = 0
    waiting: int = 0
    kinds: int = 0
    noisy: bool = False
    gang_every: int = 0
    warm_up: int = 4_000
    jobs: int = 6_000


def prepare(case: Case, changes: Mapping[str, int] = MappingProxyType({})) -> Load:
    """A fleet that has worked for a while. `changes`: of the policy."""
    look_less_often()
    models = models_of(case.models)
    # Agents report nothing of themselves while the core is measured: silence must not count.
    policy = replace(Policy(silent_after_ms=10**9, candidates_kept=8 if case.explained else 0), **changes)  # type: ignore[arg-type]  # by name
    load_reports: dict[SiteId, int] = {}
    fleet = Fleet(
        *sites_of(case.copies),
        models=models,
        policy=policy,
        gpus=load_packaged().gpus,
        runtime=SiteRuntime.TWIN,
        checked=False,
        arrival_window_ms=policy.arrival_window_ms,
    )
    for number, agent in enumerate(fleet.agents.values()):
        # Each node has the most popular models on its disk, and each site some of the others.
        agent.disk = {model.model_id for rank, model in enumerate(models) if rank < _ON_EVERY_DISK or rank % len(fleet.agents) == number}
        fleet.report(agent.site.site_id)
        load_reports[agent.site.site_id] = agent.report_seq
    noise = random.Random(3) if case.noisy else None
    load = Load(fleet=fleet, models=models, gap_us=2_000, gang_every=case.gang_every, reports=load_reports, noise=noise)
    load.run(0, case.warm_up, random.Random(1))
    # Of no place: real results of a model that has no weights.
    _queue(fleet, [spec("m0", shape=_one_of(_SIZES, number), tenant=_one_of_crowd(number)) for number in range(case.queued)])
    if case.waiting or case.kinds:
        only = _smallest(fleet)
        some = [
            spec("m0", simulated=True, constraints=only, shape=_one_of(_SIZES, number), tenant=_one_of_crowd(number))
            for number in range(case.waiting)
        ]
        _queue(fleet, some)
        _queue(
            fleet,
            [
                spec("m0", simulated=True, constraints=only, shape=_one_of(case.kinds, number), tenant=TenantId("crowd"))
                for number in range(case.kinds)
            ],
        )
        load.run(case.warm_up, case.jobs, random.Random(2))
    waiting = len(fleet.machine.context.queue)
    assert waiting > (case.queued + case.waiting + case.kinds) * 0.95, f"{waiting:,} wait"
    return load


def _queue(fleet: Fleet, specs: list[JobSpec]) -> None:
    for first in range(0, len(specs), 1_000):
        jobs = tuple(
            Submission(job_id=JobId(f"q{number}"), spec=one, idempotency_key=f"q{number}", payload_digest="", request_id="")
            for number, one in enumerate(specs[first : first + 1_000], len(fleet.machine.context.state.jobs) + first)
        )
        fleet.machine.handle(events.JobsSubmitted(request=RequestRef(1), submissions=jobs), fleet.now_us)


def _smallest(fleet: Fleet) -> Constraints:
    """The smallest site that can run such jobs: it has work for longer than the measurement takes."""

    def may_run(only: Constraints) -> bool:
        quote = fleet.machine.quote_job(spec("m0", simulated=True, constraints=only), fleet.now_us)
        return isinstance(quote, Quote) and quote.verdict is not Verdict.IMPOSSIBLE

    by_size = sorted(fleet.agents.values(), key=lambda agent: sum(pool.slots for pool in agent.site.pools))
    return next(filter(may_run, (Constraints(sites=(agent.site.site_id,)) for agent in by_size)))


def _one_of(sizes: int, number: int) -> Shape:
    number %= sizes
    return Shape(width=64 + 8 * (number % 200), height=64 + 8 * (number // 200 % 200), steps=20)


def _one_of_crowd(number: int) -> TenantId:
    return TenantId(f"crowd{number % _TENANTS}")


def measure(case: Case) -> tuple[float, float]:
    """Print the figures of a case; (microseconds a decision, microseconds a job)."""
    load = prepare(case)
    load.placed = 0
    with Rounds() as rounds:
        seconds = load.run(case.warm_up + case.jobs, case.jobs, random.Random(2))
    gpus = sum(pool.slots for agent in load.fleet.agents.values() for pool in agent.site.pools)
    decisions = load.placed + rounds.waits
    queued = f", {case.queued:,} impossible ones queued" if case.queued else ""
    queued += f", {case.waiting:,} waiting for one site" if case.waiting else ""
    queued += f", {case.kinds:,} of as many kinds waiting for one site" if case.kinds else ""
    queued += ", rates that move" if case.noisy else ""
    queued += f", one of {case.gang_every} a gang of two" if case.gang_every else ""
    explained = "" if case.explained else ", explain off"
    print(
        f"core alone, {36 * case.copies:,} sites, {gpus:,} GPUs, {case.models:,} models{explained}{queued}: "
        f"{decisions / rounds.seconds:,.0f} decisions/s ({load.placed:,} bound, {rounds.waits:,} told to wait), "
        f"{seconds / case.jobs * 1e6:.0f} us a job from submit to end, {len(load.ends):,} at work",
        flush=True,
    )
    return rounds.seconds / decisions * 1e6, seconds / case.jobs * 1e6


# By the names that `python -m tests.bench` takes. The first is what the others are compared with.
_ONE_BY_ONE: Final = {
    "36-sites": Case(),
    "not-explained": Case(explained=False),
    "10000-models": Case(models=10_000),
    "million-queued": Case(queued=_ALMOST_FULL),
    "million-waiting": Case(waiting=_ALMOST_FULL),
    "20000-kinds": Case(kinds=20_000),
    "moving-rates": Case(noisy=True),
    "gangs": Case(gang_every=33),
    "360-sites": Case(copies=10),
    "3600-sites": Case(copies=100, jobs=2_000, warm_up=1_000),
}
_SITES: Final = ("", "360-sites", "3600-sites")
_QUEUES: Final = ("", "million-queued", "million-waiting")


def _combinations() -> dict[str, Case]:
    """Each size of the fleet with each number of models, explained or not, and each queue, by names such as `360-sites+not-explained`."""
    found = {}
    for sites, models, explained, queue in product(_SITES, ("", "10000-models"), ("", "not-explained"), _QUEUES):
        waits = _ONE_BY_ONE[queue or "36-sites"]
        found["+".join(filter(None, (sites, models, explained, queue)))] = replace(
            _ONE_BY_ONE[sites or "36-sites"],
            models=_ONE_BY_ONE[models or "36-sites"].models,
            explained=not explained,
            queued=waits.queued,
            waiting=waits.waiting,
        )
    return {name: case for name, case in found.items() if "+" in name}


USUAL: Final = tuple(_ONE_BY_ONE)
CASES: Final = {**_ONE_BY_ONE, **_combinations()}


def main(names: Iterable[str] = USUAL) -> None:
    """The table of cases, and how the cost grows from that of the first."""
    found = {name: measure(CASES[name]) for name in names}
    first = USUAL[0]
    if first not in found:
        return
    decision_us, job_us = found.pop(first)
    for name, (other_decision_us, other_job_us) in found.items():
        decision, job = other_decision_us / decision_us, other_job_us / job_us
        print(f"{name}: a decision costs {decision:.1f} and a job {job:.1f} times what it does with {first}", flush=True)
