"""How near a simulated run comes to what real programs did with the same jobs: latencies by class, beside what noise alone does.

Decides what counts as near, and what may be chance. Must not know how the programs were run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from atoll.model.errors import FieldError
from sims.play.player import Player
from sims.play.scenario import Scenario
from sims.results.figures import quantile_us
from sims.results.rows import KINDS
from sims.study.paired import CONFIDENCE_MILLI, PAIRS_MIN, t_quantile
from sims.traces.job import TraceJob
from sims.whatif.figures import Rows

# What a simulator that is to stand for the fleet has to keep to, in thousandths of what was measured.
WITHIN_MILLI: Final = 50
QUANTILES_PER_MILLE: Final = (500, 990)


class Verdict(StrEnum):
    """What may be said of a class."""

    WITHIN = "within 5 %"
    NOISE = "may be noise"
    DIFFERS = "differs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """One job that succeeded."""

    kind: str
    arrival_us: int
    latency_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Nearness:
    """A quantile of a class: live, and simulated as the mean over noise seeds. Shares are in thousandths of the live one.

    `noise_milli`: how far one run with other noise lies from that mean, 95 times of 100, were the live one such a run.
    """

    per_mille: int
    live_us: int
    simulated_us: int
    difference_milli: int
    noise_milli: int

    @property
    def verdict(self) -> Verdict:
        """Within what is promised; beyond it and beyond noise; or beyond it, as noise would be too."""
        if abs(self.difference_milli) <= WITHIN_MILLI:
            return Verdict.WITHIN
        return Verdict.NOISE if abs(self.difference_milli) <= self.noise_milli else Verdict.DIFFERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """A class of jobs. `simulated`: how many of them ended, over all noise seeds."""

    kind: str
    n: int
    simulated: int
    quantiles: tuple[Nearness, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of its quantiles."""
        return worst(one.verdict for one in self.quantiles)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Of several; of none it is within."""
    order = tuple(Verdict)
    return max(verdicts, key=order.index, default=Verdict.WITHIN)


def simulated(scenario: Scenario, jobs: Sequence[TraceJob], noise_seed: int, told: Callable[[int], None] | None = None) -> list[Latency]:
    """The same jobs, played with this noise; of those that succeeded."""
    rows = Rows()
    Player(replace(scenario, noise_seed=noise_seed), jobs, rows, told=told).play()
    return [
        Latency(kind=row.kind, arrival_us=row.arrival_us, latency_us=row.ended_us - row.arrival_us)
        for row in rows.jobs
        if row.state == "succeeded"
    ]


def likenesses(live: Sequence[Latency], runs: Sequence[Sequence[Latency]], warm_up_us: int = 0) -> tuple[Likeness, ...]:
    """Each class that the live run has, of what arrived after the warm-up. FieldError for too few runs to know their noise."""
    if len(runs) < PAIRS_MIN:
        raise FieldError("noise seeds", len(runs), f"at least {PAIRS_MIN}: of fewer nothing can be said about noise")
    measured = _by_kind(live, warm_up_us)
    played = [_by_kind(run, warm_up_us) for run in runs]
    return tuple(_likeness(kind, measured[kind], [run[kind] for run in played]) for kind in KINDS if measured[kind])


def _likeness(kind: str, live: list[int], runs: list[list[int]]) -> Likeness:
    there = [run for run in runs if run]
    if len(there) < PAIRS_MIN:
        raise FieldError(f"simulated jobs of class {kind}", len(there), f"some in at least {PAIRS_MIN} runs, as there are some in life")
    quantiles = tuple(_nearness(per_mille, live, there) for per_mille in QUANTILES_PER_MILLE)
    return Likeness(kind=kind, n=len(live), simulated=sum(map(len, runs)), quantiles=quantiles)


def _nearness(per_mille: int, live: list[int], runs: list[list[int]]) -> Nearness:
    live_us, values = _quantile(live, per_mille), [_quantile(run, per_mille) for run in runs]
    count = len(values)
    mean = sum(values) / count
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    # Of one more run of the same kind: its own spread, and that of the mean of those that there are.
    reach = t_quantile(1 - (1 - CONFIDENCE_MILLI / 1_000) / 2, count - 1) * spread * math.sqrt(1 + 1 / count)
    return Nearness(
        per_mille=per_mille,
        live_us=live_us,
        simulated_us=round(mean),
        difference_milli=round((mean - live_us) * 1_000 / live_us),
        noise_milli=round(reach * 1_000 / live_us),
    )


def _quantile(latencies_us: list[int], per_mille: int) -> int:
    import numpy as np

    found = quantile_us(np.sort(np.array(latencies_us, dtype=np.int64)), per_mille)
    assert found is not None, "of a class that has jobs"
    return found


def _by_kind(latencies: Iterable[Latency], warm_up_us: int) -> Mapping[str, list[int]]:
    found: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for one in latencies:
        if one.arrival_us >= warm_up_us:
            found[one.kind].append(one.latency_us)
    return found
