"""The bias of predictions over jobs, with learning and without it: the same jobs against the same hidden truth.

The reference fleet (36 sites), a core alone, and a world in which every site's execution, fetches and loads are off by hidden factors
(`atoll.physics.hidden`: x0.5 to x2 for nineteen sites in twenty, loads and fetches in two modes). Jobs belong to one of twelve groups of
three sites, so that every site gets work. Writes a plot, as SVG, to `out/learning.svg`.

Bias is what is lastingly wrong, so chance has to go: how, depends on what the world knows.

| component | the bias of one decision |
|---|---|
| execution | log(hidden factors of site and of model on GPU type / learned correction) |
| load | log(stage and init as their hidden factors have them / prior / learned correction), the mean over the modes of staging |
| fetch | log(a fetch alone on its way as the hidden factor has it / prior / learned correction); the mean log of the modes is 0 |
| total | log(actual / quoted P50): what waits for others has no factor that the world could know |

With learning the prior of a fetch is at the rate that its site had measured and told until then. Without it nothing is told either:
predictions are as declared, and the bias is the absolute log of the hidden factor. The learned correction is the one that the decision was
made with, without the share by which means lie above middles: what is compared are mean logs.
The |bias| of a component is the mean of the absolute values over the decisions of so many jobs in a row, so places count as often as they
are chosen, and no model makes good for another. That of totals is the mean over sites of the absolute median at the site, weighted by
attempts: a median of few attempts is never 0, so this one has a floor of chance. Fetches that are another's, or come from another node of
the site, are predicted without corrections, and are left out.
"""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from atoll.model.attempt import Attempt
from atoll.model.ids import JobId, SiteId
from atoll.model.job import Constraints, JobSpec
from atoll.model.learned import TOTAL, Calibration, Component
from atoll.model.site import SiteRuntime
from atoll.packaged import load_packaged
from atoll.physics import coldstart
from atoll.physics.hidden import MODES_MILLI, HiddenWorld
from orchestrator.core import events
from orchestrator.core.events import RequestRef, Submission
from orchestrator.core.learning.corrections import Place
from orchestrator.core.learning.logs import ONE
from orchestrator.core.learning.observation import COMPONENTS
from orchestrator.core.outputs import AttemptSettled, JobPlaced, Step
from orchestrator.core.placement.policy import Policy
from orchestrator.core.state import LiveAttempt, Site
from tests.bench import chart
from tests.bench.core import models_of, short, sites_of
from tests.bench.truth import Flight, TrueSites
from tests.unit.fleet_of_machines import Fleet, spec

JOBS: Final = 8_000
_MODELS: Final = 150
_GROUPS: Final = 12
_GAP_US: Final = 500_000
# Jobs of one point of the plot: with fewer, sites have too few attempts for a median; with more, the beginning is not seen.
_WINDOW: Final = 400
# Hidden worlds of the table, by their seeds: one says little of another. The plot is of the first.
WORLDS: Final = (1, 2)
# What is compared in the table.
_MANY: Final = 1_000
NAMES: Final = (Component.FETCH, Component.LOAD, Component.EXECUTION, TOTAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bias:
    """Of one decision: the number of its job, its site, and by how much the middle of the truth lies above what was predicted, as a log."""

    job: int
    site_id: SiteId
    log: float


@dataclass(slots=True)
class Judged(TrueSites):
    """Jobs of all groups at such sites. `biases` by component."""

    biases: dict[str, list[Bias]] = field(default_factory=lambda: {name: [] for name in NAMES})

    def take(self, step: Step, now_us: int) -> None:
        """Note how far off what was decided is, and the totals of what has ended."""
        for decision in step.decisions:
            match decision:
                case JobPlaced():
                    site = self._site(decision.explanation.chosen.site_id)
                    self._decided(site, site.attempts[decision.key])
                case AttemptSettled():
                    self._ended_after(decision.attempt)
                case _:
                    pass
        TrueSites.take(self, step, now_us)

    def _measured(self, site_id: SiteId, flight: Flight) -> None:
        """A rate that is told corrects predictions, too: without learning they are to be as declared."""
        if self.fleet.machine.context.book.learning:
            TrueSites._measured(self, site_id, flight)

    def _decided(self, site: Site, live: LiveAttempt) -> None:
        pool = site.pools[live.attempt.slot.pool_id]
        place = Place(model_id=live.model_id, gpu_type=pool.gpu.gpu_type, site_id=site.site_id)
        book = self.fleet.machine.context.book
        for component, hidden_log in self._hidden_logs(site, live).items():
            if not live.factors_milli[COMPONENTS.index(component)]:
                continue
            learned_log = book.components[component].published_log(place) * math.log(2) / ONE if book.learning else 0.0
            self._note(component, live.attempt, hidden_log - learned_log)

    def _hidden_logs(self, site: Site, live: LiveAttempt) -> dict[Component, float]:
        """By what the middle of the truth lies above the prior, of what the attempt needs."""
        model = self.fleet.machine.context.state.models[live.model_id]
        pool = site.pools[live.attempt.slot.pool_id]
        factors = {name: self.truth.factor_milli(name, site.site_id) / 1_000 for name in ("execution", "fetch", "stage", "init")}
        found = {Component.EXECUTION: math.log(factors["execution"] * self.truth.fit_milli(model, pool.gpu) / 1_000)}
        if live.attempt.cold:
            h2d = pool.spec.node.h2d_bytes_per_s or pool.gpu.h2d_bytes_per_s
            stage_us = coldstart.stage_us(model, pool.spec.node.disk_bytes_per_s, h2d, False)
            init_us = coldstart.init_us(model)
            loads_us = (stage_us * factors["stage"] * mode / 1_000 + init_us * factors["init"] for mode in MODES_MILLI)
            found[Component.LOAD] = statistics.mean(map(math.log, loads_us)) - math.log(stage_us + init_us)
            if model.model_id not in self._disk(site.site_id, live.attempt.slot.node_id):
                declared = self.fleet.agents[site.site_id].site
                rate = min(declared.origin_bytes_per_s, declared.wan_bytes_per_s)
                # With twice the rate the prior is half.
                told = (site.rates.origin_bytes_per_s or declared.origin_bytes_per_s) / rate
                found[Component.FETCH] = math.log(factors["fetch"] * told)
        return found

    def _ended_after(self, attempt: Attempt) -> None:
        assert attempt.explanation is not None
        self._note(TOTAL, attempt, math.log((attempt.ended_us - attempt.leased_us) / attempt.explanation.p50_us))

    def _note(self, name: str, attempt: Attempt, log: float) -> None:
        self.biases[name].append(Bias(job=int(attempt.key.job_id.removeprefix("j")), site_id=attempt.site_id, log=log))

    def live(self, jobs: int, chance: random.Random) -> None:
        """Let jobs of all groups come, one each half second, and most of them end."""
        groups = [tuple(sorted(self.fleet.agents))[number::_GROUPS] for number in range(_GROUPS)]
        weights = [1 / (rank + 1) ** 0.9 for rank in range(len(self.models))]
        for number in range(jobs):
            self.fleet.now_us += _GAP_US
            self.pass_time(self.fleet.now_us)
            model = chance.choices(self.models, weights)[0]
            job = spec(
                model.model_id, simulated=True, shape=short(model.default_shape), constraints=Constraints(sites=chance.choice(groups))
            )
            self.take(self._submit(number, job), self.fleet.now_us)

    def _submit(self, number: int, job: JobSpec) -> Step:
        submission = Submission(job_id=JobId(f"j{number}"), spec=job, idempotency_key=f"k{number}", payload_digest="", request_id="")
        event = events.JobsSubmitted(request=RequestRef(number), submissions=(submission,))
        return self.fleet.machine.handle(event, self.fleet.now_us)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Biases by component, and what the fleet thinks of its own predictions at the end."""

    jobs: int
    biases: dict[str, list[Bias]]
    calibration: Calibration

    def bias(self, name: str, first: int, end: int) -> float | None:
        """The |bias| of a component over the jobs from one number to (without) another; None: there is nothing to judge."""
        found = [one for one in self.biases[name] if first <= one.job < end]
        if not found:
            return None
        if name != TOTAL:
            return statistics.mean(abs(one.log) for one in found)
        by_site: dict[SiteId, list[float]] = {}
        for one in found:
            by_site.setdefault(one.site_id, []).append(one.log)
        return sum(len(logs) * abs(statistics.median(logs)) for logs in by_site.values()) / len(found)

    def first(self, name: str) -> float:
        """Of the first thousand jobs."""
        return self.bias(name, 0, _MANY) or 0.0

    def last(self, name: str) -> float:
        """Of the last thousand jobs."""
        return self.bias(name, self.jobs - _MANY, self.jobs) or 0.0


def simulate(seed: int, jobs: int, *, learning: bool) -> Outcome:
    """One run."""
    gpus = load_packaged().gpus
    policy = Policy(silent_after_ms=10**9, learning=learning)
    models = models_of(_MODELS)
    fleet = Fleet(*sites_of(1), models=models, policy=policy, gpus=gpus, runtime=SiteRuntime.TWIN, checked=False)
    load = Judged(fleet=fleet, models=models, gap_us=_GAP_US, truth=HiddenWorld(seed))
    for agent in fleet.agents.values():
        load.reports[agent.site.site_id] = agent.report_seq
    load.live(jobs, random.Random(seed))
    return Outcome(jobs=jobs, biases=load.biases, calibration=fleet.machine.calibration())


def _print(seed: int, on: Outcome, off: Outcome) -> None:
    print(f"|bias| of predictions (log) over the first and the last {_MANY:,} of {on.jobs:,} jobs, in hidden world {seed}:", flush=True)
    for name in NAMES:
        print(
            f"  {name:<10} learning on {on.first(name):.3f} -> {on.last(name):.3f}   off {off.first(name):.3f} -> {off.last(name):.3f}   "
            f"on / off at the end {on.last(name) / off.last(name):.2f}   ({len(on.biases[name]):,} attempts)",
            flush=True,
        )
    for gate in on.calibration.gates:
        if gate.enough:
            verdict = "pass" if gate.passed else "fail"
            figures = f"median {gate.median_milli / 1_000:+.3f}  P90 holds for {gate.coverage_milli / 10:.1f} %"
            print(f"  gate {gate.name:<10} {figures}: {verdict}", flush=True)


def _chart(on: Outcome, off: Outcome) -> chart.Chart:
    return chart.Chart(
        title="How far predictions are lastingly off, over jobs",
        subtitle=f"36 sites, each component of each site off by a hidden factor; each point is {_WINDOW} jobs",
        x_axis="jobs",
        y_axis="|bias| (natural log; 0.1: some 10 %)",
        x_most=on.jobs,
        x_step=2_000,
        y_step=0.1,
        panels=tuple(
            chart.Panel(
                title="quoted total (P50; median at each site)" if name == TOTAL else name,
                lines=(
                    chart.Line(name="measured and learned", colour="#0b6e99", dashed=False, points=_points(on, name)),
                    chart.Line(name="as declared", colour="#b5542b", dashed=True, points=_points(off, name)),
                ),
            )
            for name in NAMES
        ),
    )


def _points(outcome: Outcome, name: str) -> tuple[tuple[float, float], ...]:
    windows = ((first, outcome.bias(name, first, first + _WINDOW)) for first in range(0, outcome.jobs - _WINDOW + 1, _WINDOW))
    return tuple((first + _WINDOW / 2, bias) for first, bias in windows if bias is not None)


def main() -> None:
    """Both runs of each world, the table and the plot."""
    path = Path("out") / "learning.svg"
    path.parent.mkdir(exist_ok=True)
    for seed in WORLDS:
        on, off = (simulate(seed, JOBS, learning=learning) for learning in (True, False))
        _print(seed, on, off)
        if seed == WORLDS[0]:
            path.write_text(chart.svg(_chart(on, off)), encoding="utf-8")
    print(f"  plot of world {WORLDS[0]}: {path}", flush=True)
