"""When a job should begin and be done: instants for half and for nine tenths of such jobs.

Decides how predictions become times that people are told. Must not know how predictions are made, nor change anything.
"""

from __future__ import annotations

from typing import Final

from atoll.model.attempt import AttemptState
from atoll.model.modelspec import Modality
from atoll.model.quote import Eta
from orchestrator.core.context import Context
from orchestrator.core.placement.registry import EXECUTION, OUTPUT
from orchestrator.core.state import LiveAttempt

# 300 years: what is further away is never, and fits into every message.
_NEVER_US: Final = 10**16


def spread(ctx: Context, predicted_us: int, *, cold: bool, modality: Modality) -> tuple[int, int]:
    """(P50, P90) of a completion that is predicted to take this long from its decision on."""
    p50_us, p90_us = ctx.book.quote(min(predicted_us, _NEVER_US), cold, modality)
    return min(max(p50_us, 0), _NEVER_US), min(max(p90_us, 0), _NEVER_US)


def ahead_of_us(now_us: int, begin_us: int, whole: tuple[int, int], predicted_us: int) -> Eta:
    """The times of what is decided `now_us`: predicted to begin after `begin_us` of `predicted_us`, which has the quantiles `whole`."""
    p50_us, p90_us = whole
    of = max(predicted_us, 1)
    return Eta(
        begin_p50_us=now_us + begin_us * p50_us // of,
        begin_p90_us=now_us + begin_us * p90_us // of,
        end_p50_us=now_us + p50_us,
        end_p90_us=now_us + p90_us,
    )


def of_attempt(ctx: Context, live: LiveAttempt, now_us: int) -> Eta:
    """The times of a live attempt: by the steps that are left once it executes, before that by what was told at its decision."""
    attempt = live.attempt
    explanation = attempt.explanation
    model = ctx.state.models.get(live.model_id)
    modality = model.modality if model is not None else Modality.IMAGE
    terms_us = explanation.chosen.terms_us if explanation is not None else ()
    output_us = terms_us[OUTPUT] if len(terms_us) > OUTPUT else 0
    if attempt.state in (AttemptState.RUNNING, AttemptState.UPLOADING):
        steps = live.spec.shape.steps
        left_us = output_us
        if attempt.state is AttemptState.RUNNING:
            # Between two steps as much may have passed since the last one as a step takes: the steps done are what is known.
            left_us += live.exec_us * (steps - attempt.steps_done) // steps
        p50_us, p90_us = spread(ctx, left_us, cold=False, modality=modality)
        return Eta(begin_p50_us=0, begin_p90_us=0, end_p50_us=now_us + p50_us, end_p90_us=now_us + p90_us)
    whole = (explanation.p50_us, explanation.p90_us) if explanation is not None and explanation.p90_us else None
    if whole is None:
        whole = spread(ctx, attempt.predicted_us, cold=attempt.cold, modality=modality)
    execution_us = terms_us[EXECUTION] if len(terms_us) > EXECUTION else live.exec_us
    begin_us = max(attempt.predicted_us - execution_us - output_us, 0)
    return ahead_of_us(attempt.leased_us, begin_us, whole, attempt.predicted_us)
