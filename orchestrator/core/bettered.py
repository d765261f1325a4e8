"""What became a better place for who is bound elsewhere: pools are noted, each once, and looked at when the step's jobs are placed.

Decides what is worth a look. A slot more where one could be had already offers a load nothing new, only those models that it holds. Must
not know who is moved, nor what a place costs.
"""

from __future__ import annotations

from atoll.model.ids import ModelId
from orchestrator.core.context import Context
from orchestrator.core.moves import Bettered, Bettering
from orchestrator.core.placement.column import Column, is_free
from orchestrator.core.placement.policy import Rule
from orchestrator.core.state import Site, Slot


def better(ctx: Context, column: Column, through: Bettering, model_id: ModelId | None = None) -> None:
    """A pool became a better place: for this model, or (None) for all. Nothing to look at where nobody waits behind others."""
    behind = ctx.bound.behind
    if not behind or not ctx.policy.moves_max or ctx.policy.rule is not Rule.COST or (model_id is not None and model_id not in behind):
        return
    known = ctx.state.bettered.get(column.place)
    ctx.state.bettered[column.place] = (known or Bettered()).and_(through, model_id)


def site_better(ctx: Context, site: Site, through: Bettering, model_id: ModelId | None = None) -> None:
    """All pools of a site did."""
    for column in ctx.columns.of_site(site):
        better(ctx, column, through, model_id)


def takes_loads(column: Column) -> bool:
    """Whether a free slot holds nothing that must stay."""
    return column.top(column.free.cheap) is not None


def slot_free(ctx: Context, column: Column, slot: Slot, *, took_loads: bool) -> None:
    """A slot came free, and is indexed as that; `took_loads`: another one was free before, for whoever has to load. The placing round goes
    first."""
    if not ctx.bound.behind or not is_free(slot):
        return
    if not took_loads:
        better(ctx, column, Bettering.SLOT_FREE)
        return
    for key in slot.replicas:
        if key.gang_size == 1:
            better(ctx, column, Bettering.SLOT_FREE, key.model_id)
