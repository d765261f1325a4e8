"""What an attempt that has ended says about each component: a duration, at least a duration, or nothing.

Decides which measured phase is the actual of which predicted terms, and which durations are complete:

| the attempt | its complete phases | the phase it was in |
|---|---|---|
| succeeded | durations | - |
| stopped: cancelled, preempted, moved | durations | at least as long as it had lasted |
| lost | - (nobody measured them) | at least as long as the site was last heard in it |
| failed, hung | durations | nothing: what broke says nothing of what works; breaking is a hazard's business |
| refused | nothing | nothing |

Staging and building a pipeline are measured as one (`load`). Both grow with the bytes of the weights, so at one site their ratio is
nearly the same for every model, and one factor for the sum loses little. Must not know what is learned from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from atoll.model.attempt import AttemptState, FailureKind, PhaseTimes
from atoll.model.learned import Component
from atoll.model.placement import Explanation

# Shorter than this, predicted or measured, a phase is overhead and rounding, and its ratio says nothing.
LEAST_US: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentRule:
    """A component: the terms that predict it, the phase that measures it, the state (if any) in which an attempt is while it lasts."""

    component: Component
    terms: tuple[str, ...]
    actual_us: Callable[[PhaseTimes], int]
    phase: AttemptState | None


# In the order in which the phases follow one another, but for the last.
RULES: Final = (
    ComponentRule(component=Component.FETCH, terms=("fetch",), actual_us=lambda times: times.fetch_us, phase=AttemptState.FETCHING),
    ComponentRule(component=Component.LOAD, terms=("stage", "init"), actual_us=lambda times: times.load_us, phase=AttemptState.LOADING),
    # Patching goes on while an attempt is loading or compiling.
    ComponentRule(component=Component.ADAPT, terms=("adapt",), actual_us=lambda times: times.adapt_us, phase=None),
    ComponentRule(component=Component.COMPILE, terms=("compile",), actual_us=lambda times: times.compile_us, phase=AttemptState.COMPILING),
    ComponentRule(component=Component.EXECUTION, terms=("execution",), actual_us=lambda times: times.run_us, phase=AttemptState.RUNNING),
    ComponentRule(component=Component.UPLOAD, terms=("output",), actual_us=lambda times: times.upload_us, phase=AttemptState.UPLOADING),
    # The same term and the same phase: which of the two an attempt's fetch is, its decision says, and the other's factor is 0.
    ComponentRule(component=Component.PEER, terms=("fetch",), actual_us=lambda times: times.fetch_us, phase=AttemptState.FETCHING),
)
_FETCH, _PEER = 0, len(RULES) - 1
COMPONENTS: Final = tuple(Component)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One component of one attempt: what was predicted (with which factor), and what it took. `at_least`: it was cut off there."""

    component: Component
    predicted_us: int
    factor_milli: int
    actual_us: int
    at_least: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The phase in which an attempt was cut off, and how long it had lasted as far as is known."""

    phase: AttemptState
    lasted_us: int


# What cuts an attempt off that would have gone on; anything else broke it.
_CUT_SHORT: Final = frozenset({FailureKind.MOVED, FailureKind.PREEMPTED, FailureKind.LOST})


def is_cut(state: AttemptState, why: FailureKind | None) -> bool:
    """Whether an attempt that ended without a result was cut off in the midst of working; a cancelled one was `moved` away."""
    return state in {AttemptState.STOPPED, AttemptState.LOST} and why in _CUT_SHORT


def observed(
    explanation: Explanation | None, state: AttemptState, times: PhaseTimes, factors_milli: tuple[int, ...], cut: Cut | None
) -> tuple[Observation, ...]:
    """What an attempt that ended so says. `factors_milli` are those of its decision, by `COMPONENTS`; 0: not to be learned."""
    if explanation is None or len(factors_milli) != len(RULES) or state is AttemptState.REFUSED:
        return ()
    found = []
    for index, rule in enumerate(RULES):
        factor_milli = factors_milli[index]
        actual_us, at_least = _actual(state, times, index, cut)
        if actual_us < LEAST_US or factor_milli <= 0:
            continue
        predicted_us = predicted(explanation, rule)
        if predicted_us >= LEAST_US:
            found.append(
                Observation(
                    component=rule.component,
                    predicted_us=predicted_us,
                    factor_milli=factor_milli,
                    actual_us=actual_us,
                    at_least=at_least,
                )
            )
    return tuple(found)


def predicted(explanation: Explanation, rule: ComponentRule) -> int:
    """Microseconds that a decision predicted for a component, at the place that was chosen."""
    terms = explanation.chosen.terms_us
    names = explanation.term_names
    return sum(terms[names.index(name)] for name in rule.terms if name in names)


def _actual(state: AttemptState, times: PhaseTimes, index: int, cut: Cut | None) -> tuple[int, bool]:
    """(microseconds or -1, whether it was cut off)."""
    rule = RULES[index]
    measured_us = rule.actual_us(times)
    if state is AttemptState.SUCCEEDED:
        return measured_us, False
    if cut is not None and cut.phase is rule.phase:
        return max(measured_us, cut.lasted_us), True
    # Complete if something that follows it was begun.
    after = _FETCH if index == _PEER else index
    followed = any(later.actual_us(times) >= 0 for later in RULES[after + 1 : _PEER])
    return (measured_us, False) if followed else (-1, False)
