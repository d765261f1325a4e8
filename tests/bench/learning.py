"""How far predictions are off, over jobs, with learning and without it: the same jobs against the same hidden truth.

The reference fleet (36 sites), a core alone, and a world in which every site's execution, fetches and loads are off by hidden factors
(`atoll.physics.hidden`: x0.5 to x2 for nineteen sites in twenty, loads in two modes). Jobs belong to one of twelve groups of three sites,
so that every site gets work. Writes a plot, as SVG, to `out/learning.svg`.
"""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from atoll.model.attempt import Attempt
from atoll.model.ids import JobId
from atoll.model.job import Constraints, JobSpec
from atoll.model.learned import Calibration, Component
from atoll.model.site import SiteRuntime
from atoll.packaged import load_packaged
from atoll.physics.hidden import HiddenWorld
from orchestrator.core import events
from orchestrator.core.events import RequestRef, Submission
from orchestrator.core.learning.observation import LEAST_US, RULES, predicted
from orchestrator.core.outputs import AttemptSettled, Step
from orchestrator.core.placement.policy import Policy
from tests.bench.core import models_of, short, sites_of
from tests.bench.truth import TrueSites
from tests.unit.fleet_of_machines import Fleet, spec

JOBS: Final = 8_000
_MODELS: Final = 150
_GROUPS: Final = 12
_GAP_US: Final = 500_000
_WINDOW: Final = 250
TOTAL: Final = "total"


@dataclass(slots=True)
class Judged(TrueSites):
    """Jobs of all groups at such sites. `errors`: logs of actual over predicted by component, in order."""

    errors: dict[str, list[float]] = field(default_factory=dict)

    def take(self, step: Step, now_us: int) -> None:
        """Note how far off what has ended was, too."""
        TrueSites.take(self, step, now_us)
        for decision in step.decisions:
            if isinstance(decision, AttemptSettled):
                self._note(decision.attempt)

    def _note(self, attempt: Attempt) -> None:
        assert attempt.explanation is not None
        for rule, factor in zip(RULES, attempt.factors_milli, strict=True):
            predicted_us, actual_us = predicted(attempt.explanation, rule), rule.actual_us(attempt.times)
            if predicted_us >= LEAST_US and actual_us >= LEAST_US and factor:
                self.errors.setdefault(rule.component, []).append(math.log(actual_us / predicted_us))
        total_us = attempt.ended_us - attempt.leased_us
        self.errors.setdefault(TOTAL, []).append(math.log(total_us / attempt.predicted_us))

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
    """Errors by component, and what the fleet thinks of its own predictions at the end."""

    errors: dict[str, list[float]]
    calibration: Calibration


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
    return Outcome(errors=load.errors, calibration=fleet.machine.calibration())


def bias(errors: list[float]) -> float:
    """Mean of |log(actual / predicted)|."""
    return statistics.mean(map(abs, errors)) if errors else 0.0


def _print(on: Outcome, off: Outcome) -> None:
    print("mean |log(actual / predicted)| of the first and the last thousand, learning on and off in the same world:", flush=True)
    for name in (*Component, TOTAL):
        learned, prior = on.errors.get(name, []), off.errors.get(name, [])
        count = min(1_000, len(learned) // 3, len(prior) // 3)
        if count < 100:
            continue
        first, last = bias(learned[:count]), bias(learned[-count:])
        without = bias(prior[-count:])
        median = statistics.median(learned[-count:])
        print(
            f"  {name:<10} on {first:.3f} -> {last:.3f}   off {bias(prior[:count]):.3f} -> {without:.3f}   "
            f"on / off at the end {last / without:.2f}   median then {median:+.3f}   ({count} each of {len(learned)})",
            flush=True,
        )
    for gate in on.calibration.gates:
        if gate.enough:
            verdict = "pass" if gate.passed else "fail"
            figures = f"median {gate.median_milli / 1_000:+.3f}  P90 holds for {gate.coverage_milli / 10:.1f} %"
            print(f"  gate {gate.name:<10} {figures}: {verdict}", flush=True)


# --- the plot ------------------------------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _MARGIN = 860, 420, 60
_COLOURS: Final = {Component.EXECUTION: "#0b6e99", TOTAL: "#b5542b"}


def svg(on: Outcome, off: Outcome) -> str:
    """Bias over jobs, a line each for execution and the whole, with learning and (dashed) without."""
    lines = [(name, kind, _windows(outcome.errors[name])) for name in _COLOURS for kind, outcome in (("on", on), ("off", off))]
    most = max(value for _, _, values in lines for value in values) * 1.1
    count = max(len(values) for _, _, values in lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_MARGIN}" y="24" font-size="15">How far predictions are off, over jobs</text>',
        f'<text x="{_MARGIN}" y="42" fill="#555">mean |log(actual / predicted)| of {_WINDOW} jobs; dashed: without learning</text>',
    ]
    for step in range(6):
        value = most * step / 5
        y = _y(value, most)
        parts.append(f'<line x1="{_MARGIN}" x2="{_WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_MARGIN - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    for window in range(0, count + 1, max(count // 8, 1)):
        x = _x(window, count)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _MARGIN + 20}" text-anchor="middle">{window * _WINDOW:,}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 14}" text-anchor="middle">jobs</text>')
    for row, (name, kind, values) in enumerate(lines):
        points = " ".join(f"{_x(index + 1, count):.1f},{_y(value, most):.1f}" for index, value in enumerate(values))
        dash = ' stroke-dasharray="5 4"' if kind == "off" else ""
        parts.append(f'<polyline points="{points}" fill="none" stroke="{_COLOURS[name]}" stroke-width="2"{dash}/>')
        label = f"{name}, learning {kind}"
        parts.append(f'<text x="{_WIDTH - 190}" y="{24 + 16 * row}" fill="{_COLOURS[name]}">{label}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _windows(errors: list[float]) -> list[float]:
    return [bias(errors[first : first + _WINDOW]) for first in range(0, len(errors) - _WINDOW + 1, _WINDOW)]


def _x(window: float, count: int) -> float:
    return _MARGIN + (_WIDTH - 20 - _MARGIN) * window / max(count, 1)


def _y(value: float, most: float) -> float:
    return _HEIGHT - _MARGIN - (_HEIGHT - _MARGIN - 110) * value / most


def main() -> None:
    """Both runs, the table and the plot."""
    on, off = (simulate(1, JOBS, learning=learning) for learning in (True, False))
    _print(on, off)
    path = Path("out") / "learning.svg"
    path.parent.mkdir(exist_ok=True)
    path.write_text(svg(on, off), encoding="utf-8")
    print(f"  plot: {path}", flush=True)
