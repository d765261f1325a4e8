"""Binding: the next attempt of a job is leased to a place, and everything that it needs there is reserved in the same step.

Decides what an attempt is told, and what leaves for it. Must not know why the place was chosen, nor who else waits.
"""

from __future__ import annotations

from atoll.model.attempt import Attempt, AttemptState
from atoll.model.ids import AttemptKey, Ordinal
from atoll.model.job import JobState
from atoll.model.modelspec import ModelSpec
from atoll.model.placement import Explanation
from orchestrator.core import breakers, etas, leases, preempting, sites, turnover, wishes
from orchestrator.core.context import Context
from orchestrator.core.outputs import JobPlaced
from orchestrator.core.placement.choose import Board, slots_of
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.registry import TERM_NAMES
from orchestrator.core.placement.rows import Out
from orchestrator.core.placement.victims import victims_in
from orchestrator.core.state import JobEntry, LiveAttempt, Replica, Slot


def bind(ctx: Context, entry: JobEntry, model: ModelSpec, board: Board, row: int) -> None:
    """Lease the next attempt of this job to the slot that the row means, and reserve everything it needs in the same step."""
    column, members = board.column(row), slots_of(board, row)
    assert members, "a bindable row has a slot"
    slot = members[0]
    victims = [victim for member in members for victim in victims_in(board, row, member)]
    evict = tuple({victim.model_id: None for victim in victims})
    exec_us = int(board.estimate.execution_us[row])
    delay_us = board.delay_us(row)
    chosen, others = board.told(row, ctx.policy.candidates_kept)
    executing_us = exec_us + int(board.estimate.output_us[row])
    told = etas.spread(ctx, delay_us, executing_us, cold=board.is_cold(row), modality=model.modality)
    job = entry.job
    key = AttemptKey(job_id=job.job_id, ordinal=Ordinal(len(job.attempts) + 1))
    explanation = Explanation(
        decided_us=ctx.now_us,
        policy=ctx.policy.name,
        rule=ctx.policy.rule,
        term_names=TERM_NAMES,
        chosen=chosen,
        node_id=slot.ref.node_id,
        others=others,
        rejections=board.rejections(),
        evicted=tuple(victim.told() for victim in victims),
        stopped=entry.stopped,
        deferrals=entry.deferrals,
        queued_us=ctx.now_us - max(job.accepted_us, entry.not_before_us),
        weights_bytes=model.weights_bytes,
        p50_us=told.p50_us,
        p90_us=told.p90_us,
        too_small=board.estimate.too_small,
    )
    attempt = Attempt(
        key=key,
        site_id=column.site.site_id,
        slot=slot.ref,
        state=AttemptState.LEASED,
        cold=board.is_cold(row),
        leased_us=ctx.now_us,
        predicted_us=delay_us,
        explanation=explanation,
    )
    live = LiveAttempt(
        attempt=attempt,
        spec=job.spec,
        request_id=job.request_id,
        evict=evict,
        exec_us=exec_us,
        charge_us=ctx.queue.charge(job.spec.tenant, exec_us, column.pool.gpu, job.spec.gang_size),
        lost_after_us=leases.lost_after_us(ctx, delay_us),
    )
    entry.stopped = ()
    entry.job = job.decided(JobState.PLACED, (*job.attempts, attempt), None)
    ctx.state.last_place = (column.site.site_id, column.pool.pool_id)
    ctx.queue.discard(job.job_id)
    ctx.save_job(entry)
    ctx.decisions.append(JobPlaced(key=key, explanation=explanation))
    _reserve(ctx, members, live, model, board, row)
    preempting.bound(ctx, column, slot, live, wait_us=board.wait_us(row), need_bytes=board.estimate.memory_bytes)
    breakers.bound(ctx, column, key)


def _reserve(ctx: Context, members: tuple[Slot, ...], live: LiveAttempt, model: ModelSpec, board: Board, row: int) -> None:
    """Every slot of the attempt is taken in this step, and what leaves it is gone from what can be promised."""
    column, cold = board.column(row), board.is_cold(row)
    site = column.site
    site.attempts[live.key] = live
    first_us = int(board.out[row, Out.FIRST])
    loading_us = board.delay_us(row) - live.exec_us - int(board.estimate.output_us[row]) if cold else first_us
    replica_key = live.replica
    adapters, gone = [use.adapter_id for use in live.spec.adapters], list[Replica]()
    for slot in members:
        was_free, begins_us = slot.ready and slot.idle, ctx.now_us if slot.idle else max(slot.busy_until_us, ctx.now_us)
        if slot.ready and not slot.attempts:
            gone += turnover.take_out(slot, live.evict, besides=replica_key)
        sites.reserve(slot, replica_key, model.resident_bytes)
        replica = slot.replicas[replica_key]
        replica.last_used_us = ctx.now_us
        if adapters:
            replica.adapters = tuple(sorted({*adapters, *replica.adapters}))
        slot.attempts.append(live.key)
        slot.busy_until_us = begins_us + live.exec_us + loading_us
        live.ends_us = max(live.ends_us, slot.busy_until_us)
        ctx.columns.slot_changed(column, slot, was_free)
    turnover.left(ctx, column, gone)
    if cold:
        _note_fetch(ctx, column, members[0], model, board, row)
    site.changed[live.key] = None
    ctx.touch_assignment(site)


def _note_fetch(ctx: Context, column: Column, slot: Slot, model: ModelSpec, board: Board, row: int) -> None:
    """Others that need this model on this node join the fetch; others at the site share its rate, as do those that read the same peers."""
    node, fetch_us = column.pool.nodes[slot.node_index], board.fetch_us(row)
    there = model.model_id in node.disk_models or model.model_id in node.host_models
    if fetch_us == 0 or there or model.model_id in node.fetching:
        return
    wishes.note_fetch(ctx, column, slot.node_index, model, fetch_us, board.fetch_from(row))
