"""Day zero: which sites a new model is pushed to, and what that takes.

Decides by speed for the model and by what bringing it costs, spread over regions: a region that has one already counts so many times
slower. Changes nothing. Must not know who asks.
"""

from __future__ import annotations

from collections import Counter
from heapq import heapify, heappop, heappush

from atoll.model.ids import ModelId, SiteId
from atoll.model.limits import PUSH_SITES_MAX
from atoll.model.modelspec import ModelSpec
from atoll.model.placement import MEANINGS, Reason
from atoll.model.residency import PushPlan, PushStep
from orchestrator.core import sitings
from orchestrator.core.context import Context
from orchestrator.core.outputs import Refusal, RefusalCode


def plan(ctx: Context, model_id: ModelId, count: int, warm: int, now_us: int) -> PushPlan | Refusal:
    """Where the model would go, the warm sites first; or why it cannot go to so many."""
    model = ctx.state.models.get(model_id)
    if model is None:
        return Refusal(code=RefusalCode.NOT_FOUND, field="model_id", message=f"no model {model_id!r}")
    if not 1 <= count <= PUSH_SITES_MAX:
        message = f"sites is {count}: expected a whole number from 1 to {PUSH_SITES_MAX}"
        return Refusal(code=RefusalCode.INVALID, field="sites", message=message)
    if not 0 <= warm <= count:
        return Refusal(code=RefusalCode.INVALID, field="warm", message=f"warm is {warm}: expected 0 to {count}, the number of sites")
    refused, best = _best_pools(ctx, model)
    hot: list[PushStep] = []
    cold: list[PushStep] = []
    spare = sitings.Spare(worth_us=None)
    for index in _spread(ctx, best):
        if len(hot) >= warm and len(hot) + len(cold) >= count:
            break
        step = _step(ctx, model, index, spare, warm=len(hot) < warm)
        if step is None:
            refused[Reason.DISK_TOO_SMALL] += 1
            continue
        (hot if step.warm else cold).append(step)
        if step.warm:
            spare.named.update(step.evicts)
    able = len(hot) + len(cold)
    if able < count:
        return _too_many("sites", count, able, f"can hold {model_id}", refused)
    if len(hot) < warm:
        return _too_many("warm", warm, len(hot), f"can load {model_id} into an idle GPU now", Counter())
    steps = (*hot, *cold[: count - len(hot)])
    return PushPlan(model_id=model_id, steps=steps, until_us=now_us + ctx.policy.push_hold_ms * 1_000, now_us=now_us)


def _too_many(field: str, asked: int, able: int, what: str, refused: Counter[Reason]) -> Refusal:
    why = "; ".join(f"{count}: {MEANINGS[reason]}" for reason, count in sorted(refused.items()))
    if able:
        sites = "site" if able == 1 else "sites"
        held = f"expected at most {able}, since {able} {sites} {what}" + (f" (of the others, {why})" if why else "")
    else:
        held = f"no site {what}" + (f" ({why})" if why else "")
    message = f"{field} is {asked}: {held}"
    return Refusal(code=RefusalCode.INVALID, field=field, message=message)


def _best_pools(ctx: Context, model: ModelSpec) -> tuple[Counter[Reason], dict[SiteId, tuple[int, int]]]:
    """Sites that cannot hold the model, by reason; for each other site its best pool as (cost, index)."""
    reasons = sitings.reasons(ctx, model)
    usable = [index for index, reason in enumerate(reasons) if reason is None]
    best: dict[SiteId, tuple[int, int]] = {}
    for index in usable:
        column = ctx.columns.columns[index]
        offered = (sitings.times(ctx, model, column).cost_us, index)
        best[column.site.site_id] = min(best.get(column.site.site_id, offered), offered)
    first: dict[SiteId, Reason] = {}
    for index, reason in enumerate(reasons):
        site_id = ctx.columns.site_ids[index]
        if reason is not None and site_id not in best:
            first.setdefault(site_id, reason)
    refused = Counter(first.values())
    bare = sum(1 for site in ctx.state.sites.values() if not site.pools)
    if bare:
        refused[Reason.NOT_CONNECTED] += bare
    return refused, best


def _spread(ctx: Context, best: dict[SiteId, tuple[int, int]]) -> list[int]:
    """Pools in the order of cost, each further one of a region counted once more."""
    regions: dict[str, list[tuple[int, int]]] = {}
    for site_id, offered in best.items():
        regions.setdefault(ctx.state.sites[site_id].record.spec.region, []).append(offered)
    waiting = {region: sorted(offers, reverse=True) for region, offers in regions.items()}
    heads = [(offers[-1][0], offers[-1][1], region, 1) for region, offers in waiting.items()]
    heapify(heads)
    order: list[int] = []
    while heads:
        _, index, region, times = heappop(heads)
        order.append(index)
        waiting[region].pop()
        if waiting[region]:
            cost, following = waiting[region][-1]
            heappush(heads, (cost * (times + 1), following, region, times + 1))
    return order


def _step(ctx: Context, model: ModelSpec, index: int, spare: sitings.Spare, *, warm: bool) -> PushStep | None:
    """What a push does at the site of this pool; without `warm`, or where no GPU is idle, its disk is enough."""
    column = ctx.columns.columns[index]
    gpu = sitings.on_gpu(ctx, model, column, spare) if warm else None
    found = gpu or sitings.on_disk(ctx, model, column, spare)
    if found is None:
        return None
    took = sitings.times(ctx, model, column)
    return PushStep(
        site_id=column.site.site_id,
        region=column.site.record.spec.region,
        pool_id=column.pool.pool_id,
        node_id=found.node.node_id,
        warm=gpu is not None,
        held=found.held,
        bytes=found.fetch_bytes,
        fetch_us=took.fetch_us if found.fetch_bytes else 0,
        load_us=took.load_us if gpu is not None and not found.held else 0,
        execution_us=took.execution_us,
        evicts=found.evict,
    )
