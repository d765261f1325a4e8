"""Promises to jobs that wait: what was predicted of their wait when they came, held until it is known how long it was.

Decides which arrivals are sampled, and when a promise is settled: with the beginning of the last attempt, which made the result. Must not
know how a wait is predicted, nor what is learned from it.
"""

from __future__ import annotations

from typing import Final

from atoll.model.job import Job, JobState
from orchestrator.core.context import Context
from orchestrator.core.learning.waits import WaitKey
from orchestrator.core.promised import Promise

# A prediction takes about as long as a decision: of each kind one in so long.
_EACH_US: Final = 250_000
# Of each kind open at once: beyond it nobody is sampled until some are settled. All kinds together hold 4,096.
_OPEN_MAX: Final = 682


def is_due(ctx: Context, job: Job) -> bool:
    """Whether an arrival of this kind is to be sampled now."""
    kind = ctx.promises[_key(job)]
    return ctx.now_us - kind.last_us >= _EACH_US and len(kind.open) < _OPEN_MAX


def made(ctx: Context, job: Job, predicted_us: int) -> None:
    """A job that waits should execute after so long."""
    kind = ctx.promises[_key(job)]
    kind.last_us = ctx.now_us
    kind.open[job.job_id] = Promise(at_us=ctx.now_us, predicted_us=predicted_us)


def settled(ctx: Context, job: Job) -> None:
    """A job has ended. With a result it executed when its last attempt began; without any attempt it would have waited for longer."""
    promise = ctx.promises[_key(job)].open.pop(job.job_id, None)
    if promise is None:
        return
    last = job.attempts[-1] if job.attempts else None
    if job.state is JobState.SUCCEEDED and last is not None:
        begun_us = last.running_us or ctx.now_us - max(last.times.run_us, 0) - max(last.times.upload_us, 0)
        ctx.book.observe_wait(_key(job), promise.predicted_us, begun_us - promise.at_us)
    elif last is None:
        ctx.book.observe_wait(_key(job), promise.predicted_us, ctx.now_us - promise.at_us, at_least=True)


def _key(job: Job) -> WaitKey:
    return job.spec.priority, job.spec.gang_size > 1
