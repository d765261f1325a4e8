"""Whether one policy beats another: differences over the same seeds, their confidence interval, and how likely chance alone is.

Decides what counts as known. Runs of one seed see the same jobs, speeds and losses, so they are compared seed by seed, and what the seeds
have in common drops out. Intervals and probabilities are those of Student's t on the differences; with many policies the probabilities are
corrected by Holm's procedure, which holds however they depend on one another. Must not know what the values measure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from atoll.model.errors import FieldError

# Two differences have a spread, but an interval of 12.7 standard errors that no one would act on; from three on it says something.
PAIRS_MIN: Final = 3
CONFIDENCE_MILLI: Final = 950
# A probability below this is called significant: one wrong claim in twenty, over all policies compared at once.
SIGNIFICANT: Final = 0.05
# Terms of the continued fraction: it converges in some 20, and in O(sqrt(pairs)) for very many.
_FRACTION_TERMS: Final = 10_000
_FRACTION_TINY: Final = 1e-300
_HALVINGS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What `other` minus `baseline` is over the seeds that both ran. `p`: how often chance alone would differ as much, both ways."""

    n: int
    baseline_mean: float
    other_mean: float
    mean: float
    low: float
    high: float
    p: float
    p_adjusted: float  # as p, over all policies that were compared together

    @property
    def is_significant(self) -> bool:
        return self.p_adjusted < SIGNIFICANT


def compare(baseline: Mapping[int, float], other: Mapping[int, float], *, confidence_milli: int = CONFIDENCE_MILLI) -> Difference:
    """The difference over the seeds of both. FieldError where they are fewer than three, or a value is no number."""
    seeds = sorted(baseline.keys() & other.keys())
    if len(seeds) < PAIRS_MIN:
        raise FieldError("seeds", seeds, f"at least {PAIRS_MIN} that both policies ran: of fewer, nothing can be said about chance")
    for seed in seeds:
        for name, value in (("baseline", baseline[seed]), ("other", other[seed])):
            if not math.isfinite(value):
                raise FieldError(f"{name}[{seed}]", value, "a finite number")
    if not 0 < confidence_milli < 1000:
        raise FieldError("confidence_milli", confidence_milli, "1 to 999")
    n = len(seeds)
    differences = [other[seed] - baseline[seed] for seed in seeds]
    mean = math.fsum(differences) / n
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in differences) / (n - 1) / n)
    reach = t_quantile(1 - (1 - confidence_milli / 1000) / 2, n - 1) * error
    p = _chance(mean, error, n)
    return Difference(
        n=n,
        baseline_mean=math.fsum(baseline[seed] for seed in seeds) / n,
        other_mean=math.fsum(other[seed] for seed in seeds) / n,
        mean=mean,
        low=mean - reach,
        high=mean + reach,
        p=p,
        p_adjusted=p,
    )


def compare_all(baseline: Mapping[int, float], others: Mapping[str, Mapping[int, float]]) -> dict[str, Difference]:
    """Each policy against one baseline, with what is said about chance corrected for their number."""
    found = {name: compare(baseline, values) for name, values in others.items()}
    return adjusted(found)


def adjusted(found: Mapping[str, Difference]) -> dict[str, Difference]:
    """The same differences, their probabilities corrected for how many they are."""
    corrected = holm([difference.p for difference in found.values()])
    return {
        name: Difference(
            n=one.n, baseline_mean=one.baseline_mean, other_mean=one.other_mean, mean=one.mean, low=one.low, high=one.high,
            p=one.p, p_adjusted=p,
        )
        for (name, one), p in zip(found.items(), corrected, strict=True)
    }  # fmt: skip


def holm(probabilities: Sequence[float]) -> list[float]:
    """Probabilities corrected for how many they are, by Holm's step-down procedure, in the order given."""
    count = len(probabilities)
    found = [0.0] * count
    worst = 0.0
    for rank, index in enumerate(sorted(range(count), key=probabilities.__getitem__)):
        worst = max(worst, min((count - rank) * probabilities[index], 1.0))
        found[index] = worst
    return found


def t_quantile(share: float, freedom: int) -> float:
    """The value that so large a share of Student's t with so many degrees of freedom stays below."""
    if share < 0.5:
        return -t_quantile(1 - share, freedom)
    low, high = 0.0, 1.0
    while 1 - t_tail(high, freedom) / 2 < share:
        low, high = high, high * 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in {low, high}:
            break
        low, high = (middle, high) if 1 - t_tail(middle, freedom) / 2 < share else (low, middle)
    return high


def t_tail(t: float, freedom: int) -> float:
    """How often Student's t is further from zero than `t`, on either side."""
    return _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def _chance(mean: float, error: float, n: int) -> float:
    if error:
        return t_tail(mean / error, n - 1)
    # The same difference at every seed, as coarse values have it: of no spread t makes certainty. That all seeds agree in
    # sign happens by chance this often.
    return 2.0 ** (1 - n) if mean else 1.0


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function."""
    if x <= 0 or x >= 1:
        return min(max(x, 0.0), 1.0)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    # The fraction converges quickly on this side of the mean only; the other side is its mirror image.
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1 - front * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """Its continued fraction, by Lentz's method."""
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for term in range(1, _FRACTION_TERMS):
        even = term * (b - term) * x / ((a + 2 * term - 1) * (a + 2 * term))
        odd = -(a + term) * (a + b + term) * x / ((a + 2 * term) * (a + 2 * term + 1))
        before = value
        for factor in (even, odd):
            d = 1 / _away_from_zero(1 + factor * d)
            c = _away_from_zero(1 + factor / c)
            value *= c * d
        if value == before:
            break
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _FRACTION_TINY else _FRACTION_TINY
