"""What came and left where, when and why: a bounded ring of residency events, for those who ask why a model is (not) somewhere.

Decides the cause of a movement from what was placed, wanted or removed. Must not decide what should move.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from atoll.model.ids import JobId, ModelId, NodeId
from atoll.model.replica import ReplicaState, Tier
from atoll.model.residency import Cause, Movement, ResidencyEvent
from orchestrator.core import bettered
from orchestrator.core.context import Context
from orchestrator.core.moves import Bettering
from orchestrator.core.outputs import CopyMoved, JobPlaced
from orchestrator.core.placement.column import Column
from orchestrator.core.state import Node, Replica, Site, Slot

# Events kept: at two movements a second a quarter of an hour, of a calm fleet days; half a megabyte.
EVENTS_MAX: Final = 2_048
_RESIDENT: Final = (ReplicaState.WARM, ReplicaState.BUSY)

Ring = deque[ResidencyEvent]


def new_ring() -> Ring:
    """An empty ring."""
    return deque(maxlen=EVENTS_MAX)


def resident(slot: Slot) -> list[ModelId]:
    """Models that are in a slot's memory, not those on their way."""
    return [replica.model_id for replica in slot.replicas.values() if replica.state in _RESIDENT]


def slot_reported(ctx: Context, column: Column, slot: Slot, before: list[ModelId]) -> None:
    """A report told what a slot holds; `before` is what was known to be resident."""
    now = resident(slot)
    if now == before:
        return
    held = {replica.model_id for replica in slot.replicas.values()}
    for model_id in before:
        if model_id not in held:
            cause = _why_it_left(ctx, column.site, slot.ref.node_id, Tier.GPU, model_id)
            _note(ctx, column.site, slot.ref.node_id, model_id, Tier.GPU, Movement.LEFT, cause)
    for replica in list(slot.replicas.values()):
        if replica.state in _RESIDENT and replica.model_id not in before:
            came_to_slot(ctx, column, slot, replica)


def came_to_slot(ctx: Context, column: Column, slot: Slot, replica: Replica) -> None:
    """A model is resident in a slot from now on."""
    site = column.site
    if not site.reported:
        return  # it was there before we were
    replica.warm_us = ctx.now_us
    bettered.better(ctx, column, Bettering.MODEL_WARM, replica.model_id)
    lives = [site.attempts[key] for key in slot.attempts if key in site.attempts]
    job_id = next((live.key.job_id for live in lives if live.model_id == replica.model_id), None)
    cause = Cause.JOB if job_id is not None else _why_wanted(site, slot.ref.node_id, replica.model_id, Tier.GPU)
    _note(ctx, site, slot.ref.node_id, replica.model_id, Tier.GPU, Movement.CAME, cause, job_id=job_id)


def came_with(ctx: Context, column: Column, slot: Slot, replica: Replica, job_id: JobId) -> None:
    """A job ran to its end on a model of which no report has told yet."""
    replica.warm_us = ctx.now_us
    bettered.better(ctx, column, Bettering.MODEL_WARM, replica.model_id)
    _note(ctx, column.site, slot.ref.node_id, replica.model_id, Tier.GPU, Movement.CAME, Cause.JOB, job_id=job_id)


def tier_reported(ctx: Context, column: Column, node: Node, tier: Tier, model_id: ModelId, *, present: bool) -> None:
    """A report told that a model came to, or left, a node's disk or memory."""
    site = column.site
    if present:
        if not site.reported:
            return
        bettered.site_better(ctx, site, Bettering.WEIGHTS_THERE, model_id)
        keys = [key for slot in node.slots for key in slot.attempts if key in site.attempts]
        job_id = next((key.job_id for key in keys if site.attempts[key].model_id == model_id), None)
        cause = Cause.JOB if job_id is not None else _why_wanted(site, node.node_id, model_id, tier)
        if tier is Tier.HOST and cause is Cause.SITE:
            cause = Cause.CACHE  # what left a GPU stays in memory
        _note(ctx, site, node.node_id, model_id, tier, Movement.CAME, cause, job_id=job_id)
    else:
        cause = _why_it_left(ctx, site, node.node_id, tier, model_id)
        cause = Cause.CACHE if cause is Cause.SITE and site.reported else cause
        _note(ctx, site, node.node_id, model_id, tier, Movement.LEFT, cause)


def placed(ctx: Context) -> None:
    """Jobs were placed in this step: what makes room for them leaves, at the price that was reckoned with."""
    for decision in [one for one in ctx.decisions if isinstance(one, JobPlaced) and one.explanation.evicted]:
        explanation, job_id = decision.explanation, decision.key.job_id
        site = ctx.state.sites[explanation.chosen.site_id]
        for gone in explanation.evicted:
            _note(
                ctx,
                site,
                explanation.node_id,
                gone.model_id,
                Tier.GPU,
                Movement.LEFT,
                Cause.JOB,
                job_id=job_id,
                price_us=gone.price_us,
            )


def _why_wanted(site: Site, node_id: NodeId, model_id: ModelId, tier: Tier) -> Cause:
    """Why a copy came that no attempt asked for: a copy nearer to the GPU brings the ones below it."""
    found = [one.cause for one in site.wanted.values() if (one.desired.node_id, one.desired.model_id) == (node_id, model_id)]
    exact = [one.cause for one in site.wanted.values() if one.desired.key[:2] == (node_id, tier) and one.desired.model_id == model_id]
    return (exact or found or [Cause.SITE])[0]


def _why_it_left(ctx: Context, site: Site, node_id: NodeId, tier: Tier, model_id: ModelId) -> Cause:
    if model_id not in ctx.state.models:
        return Cause.OPERATOR
    makers = [
        one.cause
        for one in site.wanted.values()
        if one.desired.node_id == node_id and one.desired.tier is tier and model_id in one.desired.evict
    ]
    return makers[0] if makers else Cause.SITE


def _note(
    ctx: Context,
    site: Site,
    node_id: NodeId,
    model_id: ModelId,
    tier: Tier,
    movement: Movement,
    cause: Cause,
    *,
    job_id: JobId | None = None,
    price_us: int = 0,
) -> None:
    event = ResidencyEvent(
        at_us=ctx.now_us,
        model_id=model_id,
        site_id=site.site_id,
        node_id=node_id,
        tier=tier,
        movement=movement,
        cause=cause,
        job_id=job_id,
        price_us=price_us,
    )
    ctx.residency.ring.append(event)
    ctx.decisions.append(CopyMoved(event=event))
