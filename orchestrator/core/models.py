"""Models: what may be served. Adding, replacing and removing them.

Decides what becomes of jobs whose model goes.
"""

from __future__ import annotations

from atoll.model import limits
from atoll.model.attempt import Failure, FailureKind
from atoll.model.job import JobState
from orchestrator.core import jobs, pins, wishes
from orchestrator.core.context import Context
from orchestrator.core.events import ModelRemoved, ModelsAdded
from orchestrator.core.outputs import DeleteModel, Done, PublishModel, PublishModelRemoved, PutModel, Refusal, RefusalCode


def added(ctx: Context, event: ModelsAdded) -> None:
    """Add or replace models; what is equal already stays untouched."""
    state = ctx.state
    new = sum(1 for model in event.models if model.model_id not in state.models)
    if len(state.models) + new > limits.MODELS_MAX:
        message = f"a fleet has at most {limits.MODELS_MAX} models"
        ctx.answer(event.request, Refusal(code=RefusalCode.QUOTA, field="models", message=message))
        return
    changed: list[str] = []
    for model in event.models:
        if state.models.get(model.model_id) == model:
            continue
        state.models[model.model_id] = model
        changed.append(model.model_id)
        ctx.records.append(PutModel(model=model))
        ctx.commands.append(PublishModel(model=model))
        ctx.demand.added(model.model_id, ctx.now_us)
        wishes.describe_again(ctx, model.model_id)
        ctx.columns.model_changed(model.model_id)
        ctx.queue.wake_model(model.model_id)
    if changed:
        detail = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        subject = f"model/{changed[0]}" if len(changed) == 1 else "models"
        ctx.audit("models_added", subject, actor=event.actor, detail=detail)
    ctx.answer(event.request, Done(changed=tuple(changed)))


def removed(ctx: Context, event: ModelRemoved) -> None:
    """Forget a model: jobs waiting for it fail, running ones end, sites drop its weights once idle."""
    if event.model_id not in ctx.state.models:
        ctx.refuse(event.request, RefusalCode.NOT_FOUND, f"no model {event.model_id!r}", "model_id")
        return
    message = f"model {event.model_id} was removed: {event.reason}"
    waiting = [entry for entry in ctx.state.jobs.values() if entry.job.state is JobState.QUEUED]
    for entry in waiting:
        if entry.job.spec.model_id == event.model_id:
            jobs.end(ctx, entry, JobState.FAILED, failure=Failure(kind=FailureKind.BAD_INPUT, message=message))
    pins.forget_model(ctx, event.model_id)
    del ctx.state.models[event.model_id]
    ctx.state.failing.pop(event.model_id, None)
    ctx.demand.removed(event.model_id)
    ctx.residency.busy_eighths.pop(event.model_id, None)
    ctx.columns.model_changed(event.model_id)
    for site in ctx.state.sites.values():
        site.evict[event.model_id] = None
        ctx.touch_assignment(site)
    ctx.records.append(DeleteModel(model_id=event.model_id))
    ctx.commands.append(PublishModelRemoved(model_id=event.model_id))
    ctx.audit("model_removed", f"model/{event.model_id}", actor=event.actor, reason=event.reason)
    ctx.answer(event.request, Done(changed=(event.model_id,)))
