"""Loads in flight: what a slot loads as its site tells, and when that should be over.

Decides the predicted end of a load: when it began and what loading takes by the rates and corrections that placing reckons with; one that
goes on although it should be over has some time left yet. A slot that loads is taken until then, whoever the load is for: a push, the
residency loop, an attempt that was stopped meanwhile. Must not know why anything is loaded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from atoll.model.attempt import AttemptState
from atoll.model.ids import ModelId
from atoll.model.learned import Component
from atoll.model.replica import ReplicaFact, ReplicaState
from atoll.model.report import SlotFacts
from atoll.physics.coldstart import init_us, stage_us
from orchestrator.core.context import Context
from orchestrator.core.drift import has_moved
from orchestrator.core.learning.observation import COMPONENTS
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.registry import TERM_NAMES
from orchestrator.core.state import LiveAttempt, Loading, ReplicaKey, Slot

# What goes on has an eighth of its time yet, at least: of durations that scatter by three tenths about their prediction, those that have
# not ended near it have a seventh to a quarter left on average. So it is never about to be over for ever, nor is it over never.
_LEFT_PARTS: Final = 8
_LOAD: Final = COMPONENTS.index(Component.LOAD)
# The attempt at the head of a slot has yet to load, or loads.
_BEFORE: Final = (AttemptState.LEASED, AttemptState.FETCHING, AttemptState.LOADING)
# It waits for its weights.
_AWAITING: Final = (AttemptState.LEASED, AttemptState.FETCHING)
# What comes between a load and the execution; and for whom something else is loaded first, its own load too.
_AFTER_LOAD: Final = tuple(TERM_NAMES.index(name) for name in ("adapt", "compile"))
_WITH_LOAD: Final = tuple(TERM_NAMES.index(name) for name in ("stage", "init", "adapt", "compile"))


def told(ctx: Context, column: Column, slot: Slot, facts: SlotFacts) -> bool:
    """A report tells what a slot holds: whether it loads, and until when it is taken by that and what is bound behind. Whether anything
    of it changed."""
    loading = _in_flight(ctx, column, slot, facts)
    changed = loading != slot.loading
    slot.loading = loading
    end_us = _end_us(column, slot, loading) if loading is not None else None
    if end_us is not None and has_moved(slot.busy_until_us, end_us, ctx.now_us):
        slot.busy_until_us, changed = end_us, True
    return changed


def _in_flight(ctx: Context, column: Column, slot: Slot, facts: SlotFacts) -> Loading | None:
    fact = next((fact for fact in facts.replicas if fact.state is ReplicaState.LOADING), None)
    if fact is None or not facts.ready:
        return None
    key, known = ReplicaKey(fact.model_id, fact.gang_size), slot.loading
    from_us = _from_us(ctx, fact, known if known is not None and known.key == key else None)
    until_us = max(from_us + _load_us(ctx, column, slot, fact.model_id), ctx.now_us + (ctx.now_us - from_us) // _LEFT_PARTS)
    found = Loading(model_id=fact.model_id, gang_size=fact.gang_size, from_us=from_us, until_us=until_us)
    if known is not None and known.key == key and known.until_us > ctx.now_us and not has_moved(known.until_us, until_us, ctx.now_us):
        return known
    return found


def _from_us(ctx: Context, fact: ReplicaFact, known: Loading | None) -> int:
    """When a load began: an agent that does not tell was heard of it first when it did."""
    if not fact.loading_us and known is not None:
        return known.from_us
    return ctx.now_us - fact.loading_us


def _load_us(ctx: Context, column: Column, slot: Slot, model_id: ModelId) -> int:
    """What loading a model into a slot takes in all, as a decision would predict it; 0 for one that has left the catalogue."""
    model = ctx.state.models.get(model_id)
    if model is None:
        return 0
    index, pool = column.index, column.pool
    from_host = model_id in pool.nodes[slot.node_index].host_models
    disk, h2d = int(ctx.columns.disk_rate[index]), int(ctx.columns.h2d_rate[index])
    prior_us = stage_us(model, disk, h2d, from_host=from_host) + init_us(model)
    return prior_us * ctx.book.factors_milli(model_id, pool.gpu.gpu_type, column.site.site_id)[_LOAD] // 1_000


def _end_us(column: Column, slot: Slot, loading: Loading) -> int | None:
    """Until when a slot is taken that loads; None where the load says nothing of it: the first that is bound there is past loading."""
    if not slot.attempts:
        return loading.until_us
    lives = [column.site.attempts[key] for key in slot.attempts]
    if lives[0].attempt.state not in _BEFORE:
        return None
    terms = _AFTER_LOAD if lives[0].replica == loading.key else _WITH_LOAD
    return loading.until_us + _terms_us(lives[0], terms) + sum(live.exec_us for live in lives)


def fetch_moved(ctx: Context, column: Column, node_index: int, model_id: ModelId) -> None:
    """A fetch should be over at another time than was thought: so are the slots whose first attempt waits for it."""
    node, attempts = column.pool.nodes[node_index], column.site.attempts
    for slot in node.slots:
        if not slot.attempts or slot.loading is not None:
            continue
        lives = [attempts[key] for key in slot.attempts if key in attempts]
        if len(lives) < len(slot.attempts):
            continue  # one of them ends in this very step: then its slot is reckoned anew
        if lives[0].model_id != model_id or lives[0].attempt.state not in _AWAITING:
            continue
        end_us = node.fetching[model_id] + _terms_us(lives[0], _WITH_LOAD) + sum(live.exec_us for live in lives)
        if has_moved(slot.busy_until_us, end_us, ctx.now_us):
            slot.busy_until_us = end_us
            ctx.columns.slot_changed(column, slot, was_free=False)


def _terms_us(live: LiveAttempt, terms: tuple[int, ...]) -> int:
    explanation = live.attempt.explanation
    return sum(explanation.chosen.terms_us[term] for term in terms) if explanation is not None else 0


def overdue(ctx: Context, slot: Slot) -> None:
    """Nothing is bound to a slot that should have loaded by now: it has some time left yet."""
    loading = slot.loading
    if loading is None:
        return
    left_us = max((ctx.now_us - loading.from_us) // _LEFT_PARTS, ctx.policy.recheck_min_ms * 1_000)
    slot.loading = replace(loading, until_us=ctx.now_us + left_us)
    slot.busy_until_us = slot.loading.until_us


def left_us(ctx: Context, slot: Slot) -> int:
    """What is left of the load in a slot."""
    return max(slot.loading.until_us - ctx.now_us, 0) if slot.loading is not None else 0
