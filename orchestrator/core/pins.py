"""What operators ask of copies: pin, unpin, push. Each is durable, audited with its reason, and answered.

Decides which are possible and when a push is over. Where copies go is decided by `sitings`; how they come is the sites' business.
"""

from __future__ import annotations

from typing import Final

from atoll.model.ids import ModelId
from atoll.model.modelspec import ModelSpec
from atoll.model.placement import MEANINGS
from atoll.model.residency import TIER_NAMES, Cause, Pin, Push
from atoll.model.words import count
from orchestrator.core import pushes, residency, sitings, wishes
from orchestrator.core.context import Context, TimerKind
from orchestrator.core.events import ModelPinned, ModelPushed, ModelUnpinned, RequestRef
from orchestrator.core.outputs import DeletePin, DeletePush, Done, PutPin, PutPush, Refusal, RefusalCode
from orchestrator.core.state import Site

# Pins are an operator's own work: more than ten thousand are a script's mistake.
PINS_MAX: Final = 10_000


def pinned(ctx: Context, event: ModelPinned) -> None:
    """Keep a model on a tier of a site. A second pin of the same model and site replaces the first."""
    model, site = _model(ctx, event.request, event.model_id), ctx.state.sites.get(event.site_id)
    if model is None:
        return
    if site is None:
        ctx.refuse(event.request, RefusalCode.NOT_FOUND, f"no site {event.site_id!r}", "site_id")
        return
    key = (event.model_id, event.site_id)
    old = ctx.state.pins.get(key)
    if old is not None and old.tier is event.tier:
        ctx.answer(event.request, Done())
        return
    if len(ctx.state.pins) >= PINS_MAX and old is None:
        ctx.refuse(event.request, RefusalCode.QUOTA, f"a fleet has at most {PINS_MAX} pins")
        return
    ctx.state.pins[key] = Pin(
        model_id=event.model_id, site_id=event.site_id, tier=event.tier, actor=event.actor, reason=event.reason, created_us=ctx.now_us
    )
    if old is not None:
        _end_wishes(ctx, site, event.model_id, Cause.PIN)
    if not wishes.ensure(ctx, model, site, event.tier, Cause.PIN):
        if old is None:
            del ctx.state.pins[key]
        else:
            ctx.state.pins[key] = old
            wishes.ensure(ctx, model, site, old.tier, Cause.PIN)
        message = f"model {event.model_id} cannot be kept on {TIER_NAMES[event.tier]} of site {event.site_id}: {_why_not(ctx, model, site)}"
        ctx.refuse(event.request, RefusalCode.WRONG_STATE, message, "site_id")
        return
    ctx.columns.model_changed(event.model_id)
    ctx.records.append(PutPin(pin=ctx.state.pins[key]))
    detail = f"{TIER_NAMES[event.tier]} of {event.site_id}"
    ctx.audit("model_pinned", f"model/{event.model_id}", actor=event.actor, reason=event.reason, detail=detail)
    residency.arm(ctx)
    ctx.answer(event.request, Done(changed=(event.site_id,)))


def _why_not(ctx: Context, model: ModelSpec, site: Site) -> str:
    """Why no node or slot of a site takes a copy."""
    reasons = sitings.reasons(ctx, model)
    found = sorted({MEANINGS[reason] for column in ctx.columns.of_site(site) if (reason := reasons[column.index]) is not None})
    if found:
        return ", ".join(found)
    return "no room; what is there is pinned, in use, or the last warm copy of a model in demand" if site.pools else "it has no pools yet"


def unpinned(ctx: Context, event: ModelUnpinned) -> None:
    """The copy stays until its room is needed."""
    if event.model_id not in ctx.state.models:
        ctx.refuse(event.request, RefusalCode.NOT_FOUND, f"no model {event.model_id!r}", "model_id")
        return
    pin = ctx.state.pins.pop((event.model_id, event.site_id), None)
    if pin is None:
        message = f"model {event.model_id} is not pinned at site {event.site_id!r}"
        ctx.refuse(event.request, RefusalCode.NOT_FOUND, message, "site_id")
        return
    site = ctx.state.sites.get(event.site_id)
    if site is not None:
        _end_wishes(ctx, site, event.model_id, Cause.PIN)
    ctx.columns.model_changed(event.model_id)
    ctx.records.append(DeletePin(model_id=event.model_id, site_id=event.site_id))
    detail = f"{TIER_NAMES[pin.tier]} of {event.site_id}"
    ctx.audit("model_unpinned", f"model/{event.model_id}", actor=event.actor, reason=event.reason, detail=detail)
    ctx.answer(event.request, Done(changed=(event.site_id,)))


def pushed(ctx: Context, event: ModelPushed) -> None:
    """Bring a model to sites before it is asked for. A second push of a model replaces the first."""
    model = _model(ctx, event.request, event.model_id)
    if model is None:
        return
    plan = pushes.plan(ctx, event.model_id, event.sites, event.warm, ctx.now_us)
    if isinstance(plan, Refusal):
        ctx.answer(event.request, plan)
        return
    push = Push(
        model_id=event.model_id,
        sites=tuple(step.site_id for step in plan.steps),
        warm=tuple(step.site_id for step in plan.steps if step.warm),
        actor=event.actor,
        reason=event.reason,
        created_us=ctx.now_us,
        until_us=plan.until_us,
    )
    ctx.state.pushes[event.model_id] = push
    ctx.columns.model_changed(event.model_id)
    ctx.records.append(PutPush(push=push))
    named = ", ".join(push.sites[:8]) + (", ..." if len(push.sites) > 8 else "")
    detail = f"{count(len(push.sites), 'site')}, warm on {len(push.warm)}: {named}"
    ctx.audit("model_pushed", f"model/{event.model_id}", actor=event.actor, reason=event.reason, detail=detail)
    wishes.review(ctx, event.model_id)
    wishes.keep_promises(ctx, model)
    ctx.arm(push.until_us, TimerKind.PUSH_OVER, event.model_id)
    residency.arm(ctx)
    ctx.answer(event.request, Done(changed=push.sites))


def push_over(ctx: Context, model_id: ModelId) -> None:
    """A push has stood for as long as it may: from now on its copies stay if they are asked for."""
    push = ctx.state.pushes.get(model_id)
    if push is not None and ctx.now_us >= push.until_us:
        _end_push(ctx, model_id)
        ctx.audit("push_over", f"model/{model_id}", detail=count(len(push.sites), "site"))


def _end_push(ctx: Context, model_id: ModelId) -> None:
    if ctx.state.pushes.pop(model_id, None) is not None:
        ctx.columns.model_changed(model_id)
        ctx.records.append(DeletePush(model_id=model_id))
        for site in [ctx.state.sites[site_id] for site_id in sorted(ctx.wishes.get(model_id, ()))]:
            _end_wishes(ctx, site, model_id, Cause.PUSH)


def _end_wishes(ctx: Context, site: Site, model_id: ModelId, cause: Cause | None) -> None:
    for wanted in wishes.of_model(site, model_id):
        if cause is None or wanted.cause is cause:
            wishes.unwant(ctx, site, wanted.desired.key)


def forget_model(ctx: Context, model_id: ModelId) -> None:
    """A model goes, and with it whatever was wanted of it."""
    for key in [key for key in ctx.state.pins if key[0] == model_id]:
        del ctx.state.pins[key]
        ctx.columns.model_changed(key[0])
        ctx.records.append(DeletePin(model_id=key[0], site_id=key[1]))
    _end_push(ctx, model_id)
    for site in [ctx.state.sites[site_id] for site_id in sorted(ctx.wishes.get(model_id, ()))]:
        _end_wishes(ctx, site, model_id, None)
    ctx.residency.targets.pop(model_id, None)
    ctx.residency.offers.pop(model_id, None)


def forget_site(ctx: Context, site: Site) -> None:
    """A site goes, and with it what was pinned and wanted there."""
    for key in [key for key in ctx.state.pins if key[1] == site.site_id]:
        del ctx.state.pins[key]
        ctx.columns.model_changed(key[0])
        ctx.records.append(DeletePin(model_id=key[0], site_id=key[1]))
    for wanted in list(site.wanted.values()):
        wishes.unwant(ctx, site, wanted.desired.key)


def _model(ctx: Context, request: RequestRef, model_id: ModelId) -> ModelSpec | None:
    model = ctx.state.models.get(model_id)
    if model is None:
        ctx.refuse(request, RefusalCode.NOT_FOUND, f"no model {model_id!r}", "model_id")
    return model
