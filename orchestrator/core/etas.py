"""When a job should begin and be done: instants for half and for nine tenths of such jobs.

Decides how predictions become times that people are told. Must not know how predictions are made, nor change anything.
"""

from __future__ import annotations

from typing import Final

from atoll.model.attempt import AttemptState
from atoll.model.modelspec import Modality
from atoll.model.quote import Eta
from atoll.physics.execution import decoding_milli
from orchestrator.core.context import Context
from orchestrator.core.learning.quotes import Spread
from orchestrator.core.learning.waits import WaitKey
from orchestrator.core.placement.registry import OUTPUT
from orchestrator.core.state import LiveAttempt

# 300 years: what is further away is never, and fits into every message.
NEVER_US: Final = 10**16
_WHOLE_MILLI: Final = 1_000


def spread(ctx: Context, predicted_us: int, execution_us: int, *, cold: bool, modality: Modality) -> Spread:
    """Quantiles of a completion that is predicted to take this long from its decision on, `execution_us` of it from when it executes."""
    predicted_us = min(max(predicted_us, 0), NEVER_US)
    execution_us = min(max(execution_us, 0), predicted_us)
    return _bounded(ctx.book.quote(predicted_us - execution_us, execution_us, cold, modality))


def _bounded(found: Spread) -> Spread:
    if found.p90_us <= NEVER_US:
        return found
    return Spread(
        begin_p50_us=min(found.begin_p50_us, NEVER_US),
        begin_p90_us=min(found.begin_p90_us, NEVER_US),
        p50_us=min(found.p50_us, NEVER_US),
        p90_us=min(found.p90_us, NEVER_US),
    )


def after_wait(ctx: Context, kind: WaitKey, wait_us: int, execution_us: int, *, cold: bool, modality: Modality) -> Spread:
    """Quantiles of a completion that waits for its place first, and is predicted to execute after `wait_us`."""
    wait = ctx.book.waits.quote(kind, min(max(wait_us, 0), NEVER_US))
    return _bounded(ctx.book.quotes.after_wait(wait, min(max(execution_us, 0), NEVER_US), cold, modality))


def parts_us(live: LiveAttempt) -> tuple[int, int]:
    """What was predicted of an attempt at its decision: until it executes, and from then to its result."""
    attempt = live.attempt
    execution_us = min(live.exec_us + _output_us(live), attempt.predicted_us)
    return attempt.predicted_us - execution_us, execution_us


def _output_us(live: LiveAttempt) -> int:
    explanation = live.attempt.explanation
    terms_us = explanation.chosen.terms_us if explanation is not None else ()
    return terms_us[OUTPUT] if len(terms_us) > OUTPUT else 0


def after_us(from_us: int, taken: Spread) -> Eta:
    """The times of what is decided at an instant."""
    return Eta(
        begin_p50_us=from_us + taken.begin_p50_us,
        begin_p90_us=from_us + taken.begin_p90_us,
        end_p50_us=from_us + taken.p50_us,
        end_p90_us=from_us + taken.p90_us,
    )


def of_attempt(ctx: Context, live: LiveAttempt, now_us: int) -> Eta:
    """The times of a live attempt: by the steps that are left once it executes, before that by what was told at its decision. The end of
    one that takes longer than was predicted is past."""
    attempt = live.attempt
    explanation = attempt.explanation
    model = ctx.state.models.get(live.model_id)
    modality = model.modality if model is not None else Modality.IMAGE
    if attempt.state in (AttemptState.RUNNING, AttemptState.UPLOADING):
        left_us = _output_us(live) + (_executing_us(ctx, live) if attempt.state is AttemptState.RUNNING else 0)
        left = spread(ctx, left_us, left_us, cold=False, modality=modality)
        # From when it was seen to get on: until it is again these instants stand, and what is past is late.
        seen_us = live.advanced_us or now_us
        return Eta(begin_p50_us=0, begin_p90_us=0, end_p50_us=seen_us + left.p50_us, end_p90_us=seen_us + left.p90_us)
    taken = spread(ctx, attempt.predicted_us, parts_us(live)[1], cold=attempt.cold, modality=modality)
    if explanation is not None and explanation.p90_us:
        p50_us, p90_us = explanation.p50_us, explanation.p90_us
        taken = Spread(
            begin_p50_us=min(taken.begin_p50_us, p50_us), begin_p90_us=min(taken.begin_p90_us, p90_us), p50_us=p50_us, p90_us=p90_us
        )
    # What has yet to begin begins now at the earliest.
    return after_us(max(attempt.leased_us + _late_us(ctx, live), now_us - taken.begin_p50_us), taken)


def _executing_us(ctx: Context, live: LiveAttempt) -> int:
    """What is left of an execution, as of when it was seen to get on: by the steps to come, and the decoding behind the last one."""
    spec, done = live.spec, live.attempt.steps_done
    model = ctx.state.models.get(spec.model_id)
    pool = ctx.state.sites[live.attempt.site_id].pools.get(live.attempt.slot.pool_id)
    milli = 0
    if model is not None and pool is not None:
        milli = decoding_milli(model, spec.denoised, pool.gpu, spec.precision, spec.gang_size)
    decoding_us = live.exec_us * milli // _WHOLE_MILLI
    return (live.exec_us - decoding_us) * (spec.shape.steps - done) // spec.shape.steps + decoding_us


def _late_us(ctx: Context, live: LiveAttempt) -> int:
    """By how much an attempt that has yet to execute is later, as its slots stand now, than they stood at its decision: what it waits for
    takes longer than was thought, or (less than nothing) is over sooner. After a restart only what is later is known."""
    pool = ctx.state.sites[live.attempt.site_id].pools.get(live.attempt.slot.pool_id)
    ends_us, attempts = 0, ctx.state.sites[live.attempt.site_id].attempts
    for slot in pool.members(live.attempt.slot, live.spec.gang_size) if pool is not None else ():
        behind = slot.attempts[slot.attempts.index(live.key) + 1 :]
        ends_us = max(ends_us, slot.busy_until_us - sum(attempts[key].exec_us for key in behind))
    if live.ends_us:
        return ends_us - live.ends_us if ends_us else 0
    return max(ends_us + _output_us(live) - live.attempt.leased_us - live.attempt.predicted_us, 0)
