"""From decisions and ends of attempts to what is learned of them: which place, which factors, what was cut off when.

Decides when the book hears of an attempt, when its news are published, and when it is checkpointed. Must not know how factors follow
from observations (`learning`), nor what places are chosen with them.
"""

from __future__ import annotations

from atoll.model.attempt import AttemptState, FailureKind, PhaseTimes
from atoll.model.audit import Severity
from atoll.model.compiled import needed_form
from atoll.model.learned import Component, Shift, Start
from atoll.model.modelspec import Modality
from atoll.model.placement import Candidate
from orchestrator.core.context import Context
from orchestrator.core.demand import PutDemand
from orchestrator.core.etas import parts_us
from orchestrator.core.events import EstimatesResetRequested
from orchestrator.core.learning.corrections import Place
from orchestrator.core.learning.observation import COMPONENTS, Cut, is_cut, observed
from orchestrator.core.learning.quotes import Completion
from orchestrator.core.outputs import Done, EstimateShifted, JobPlaced, PutEstimates, RefusalCode
from orchestrator.core.placement import rates
from orchestrator.core.placement.registry import FETCH, QUEUE
from orchestrator.core.state import LiveAttempt, Pool, Site

_FETCH = COMPONENTS.index(Component.FETCH)
_PEER = COMPONENTS.index(Component.PEER)
_COMPILE = COMPONENTS.index(Component.COMPILE)
_ADAPT = COMPONENTS.index(Component.ADAPT)
_LOAD = COMPONENTS.index(Component.LOAD)
_EXECUTION = COMPONENTS.index(Component.EXECUTION)


def note_placed(ctx: Context) -> None:
    """Keep with each attempt that this step bound the factors of its decision: the prior is its prediction without them."""
    for decision in ctx.decisions:
        if not isinstance(decision, JobPlaced):
            continue
        chosen = decision.explanation.chosen
        site = ctx.state.sites[chosen.site_id]
        live = site.attempts.get(decision.key)
        if live is None:
            continue
        pool = site.pools[chosen.pool_id]
        factors = ctx.book.factors_milli(live.model_id, pool.gpu.gpu_type, site.site_id)
        # What comes from a peer says nothing of the origin store, and the other way round.
        unheard = {_FETCH if _reads_peers(chosen) else _PEER}
        if chosen.cold and (_joins_fetch(ctx, site, pool, live) or _is_copied(pool, live)):
            # What is left of a fetch that began before is not what a fetch takes, nor is a copy from another node of the site.
            unheard |= {_FETCH, _PEER}
        if _expects_a_mean(ctx, site, pool, live):
            # The job compiles or it does not: neither is what a mean of the two predicted, and only the first would be heard of.
            unheard.add(_COMPILE)
        if _comes_beside(pool, live, chosen):
            unheard.add(_ADAPT)
        if any(slot.fresh and slot.attempts[:1] == [live.key] for slot in pool.members(live.attempt.slot, live.spec.gang_size)):
            # What the first generation of a process adds is predicted with the load, and measured with the execution.
            unheard |= {_LOAD, _EXECUTION}
        live.start = _start_of(pool, live, chosen)
        live.factors_milli = tuple(0 if index in unheard else factor for index, factor in enumerate(factors))
        ctx.book.decided(live.model_id, ctx.now_us)


def _expects_a_mean(ctx: Context, site: Site, pool: Pool, live: LiveAttempt) -> bool:
    """Whether some of the pool's nodes hold the code that it needs, and others do not."""
    model = ctx.state.models.get(live.model_id)
    if model is None or not model.compiled:
        return False
    used = (ctx.state.adapters.get(use.adapter_id) for use in live.spec.adapters)
    form = needed_form(model, live.spec.shape, live.spec.gang_size, (adapter.rank for adapter in used if adapter is not None))
    held = sum(form in node.compiled for node in pool.nodes)
    return 0 < held < len(pool.nodes)


def _start_of(pool: Pool, live: LiveAttempt, chosen: Candidate) -> Start:
    """Where the weights are that it begins with."""
    if not chosen.cold:
        return Start.WARM
    if _reads_peers(chosen) or _is_copied(pool, live):
        return Start.PEER
    if chosen.terms_us[FETCH]:
        return Start.ORIGIN
    node = pool.nodes[pool.node_index[live.attempt.slot.node_id]]
    return Start.HOST if live.model_id in node.host_models else Start.DISK


def _comes_beside(pool: Pool, live: LiveAttempt, chosen: Candidate) -> bool:
    """Whether adapters come while the attempt waits for its slot or its weights: only what is left of that is measured, while all of it was
    predicted, one after the other."""
    near = pool.nodes[pool.node_index[live.attempt.slot.node_id]].disk_adapters
    return bool(chosen.lacks) and (chosen.cold or (chosen.terms_us[QUEUE] > 0 and not near.issuperset(chosen.lacks)))


def _reads_peers(chosen: Candidate) -> bool:
    """Whether its weights come from peer sites, perhaps beside the origin store."""
    return chosen.fetch_from is not None and bool(chosen.fetch_from.sites)


def _is_copied(pool: Pool, live: LiveAttempt) -> bool:
    """Whether its weights come from another node of the site."""
    return live.model_id in pool.nodes[pool.node_index[live.attempt.slot.node_id]].copying


def _joins_fetch(ctx: Context, site: Site, pool: Pool, live: LiveAttempt) -> bool:
    """Whether the fetch was under way, or others of its model, bound before it, wait on the same node: then it is theirs."""
    node = pool.nodes[pool.node_index[live.attempt.slot.node_id]]
    flight = node.flights.get(live.model_id)
    if flight is not None and flight.from_us < ctx.now_us:
        return True
    others = (site.attempts[key] for slot in node.slots for key in slot.attempts if key in site.attempts)
    # Those that this step bound after it have no factors yet.
    return any(other.model_id == live.model_id and other.factors_milli for other in others)


def settled(ctx: Context, site: Site, live: LiveAttempt, state: AttemptState, times: PhaseTimes) -> None:
    """A site said how an attempt ended. One that was given up as lost has been learned from when it was."""
    if live.on_stop is FailureKind.LOST:
        return
    cut = state is not AttemptState.SUCCEEDED and is_cut(state, live.on_stop)
    _learn(ctx, site, live, state, times, ctx.now_us if cut else 0)


def lost(ctx: Context, site: Site, live: LiveAttempt) -> None:
    """An attempt is given up with its silent site: it was still at work when the site was last heard."""
    _learn(ctx, site, live, AttemptState.LOST, PhaseTimes(), site.last_heard_us)


def _learn(ctx: Context, site: Site, live: LiveAttempt, state: AttemptState, times: PhaseTimes, cut_us: int) -> None:
    """`cut_us`: until when it is known to have been at work, if it was cut off then."""
    pool = site.pools.get(live.attempt.slot.pool_id)
    model = ctx.state.models.get(live.model_id)
    if pool is None or model is None:
        return
    place = Place(model_id=live.model_id, gpu_type=pool.gpu.gpu_type, site_id=site.site_id)
    cut = Cut(phase=live.phase, lasted_us=cut_us - live.phase_us) if cut_us and live.phase is not None else None
    for one in observed(live.attempt.explanation, state, times, live.factors_milli, cut):
        shift = ctx.book.observe(place, one, ctx.now_us)
        if shift is not None:
            _report(ctx, shift)
    if state is AttemptState.SUCCEEDED or (cut is not None and cut.lasted_us > 0):
        ctx.book.observe_total(_completion(live, model.modality, times, cut_us or ctx.now_us, at_least=cut is not None))
    if ctx.book.refresh(ctx.now_us):
        # Each makes estimates be computed anew, and they correct each other: what is measured of rates counts when what is learned does.
        rates.take(ctx.columns, ctx.state.sites.values())
    checkpoint = ctx.book.checkpoint(ctx.now_us)
    if checkpoint is not None:
        ctx.records.append(PutEstimates(estimates=checkpoint))


def stopping(ctx: Context) -> None:
    """The process ends in good order: what came since the last checkpoints is worth a last one."""
    if ctx.book.unsaved:
        ctx.records.append(PutEstimates(estimates=ctx.book.save(ctx.now_us)))
    if ctx.demand.unsaved:
        ctx.records.append(PutDemand(demand=ctx.demand.save(ctx.now_us)))


def _completion(live: LiveAttempt, modality: Modality, times: PhaseTimes, until_us: int, *, at_least: bool) -> Completion:
    """A decision that was carried out until an instant, in its two parts."""
    attempt = live.attempt
    before_us, execution_us = parts_us(live)
    # After a restart from the store nobody knows how it began: cold, most came from the origin store.
    start = live.start or (Start.ORIGIN if attempt.cold else Start.WARM)
    total_us = until_us - attempt.leased_us
    begun_us = -1
    if not at_least and times.run_us >= 0:
        begun_us = total_us - times.run_us - max(times.upload_us, 0)
    elif attempt.running_us:
        begun_us = attempt.running_us - attempt.leased_us
    return Completion(
        start=start,
        modality=modality,
        model_id=live.model_id,
        pool=(attempt.site_id, attempt.slot.pool_id),
        decided_us=attempt.leased_us,
        before_us=before_us,
        execution_us=execution_us,
        actual_us=total_us,
        actual_before_us=min(max(begun_us, -1), total_us),
        at_least=at_least,
    )


def _report(ctx: Context, shift: Shift) -> None:
    detail = f"{shift.component}: factor {shift.from_milli / 1_000:.2f} -> {shift.to_milli / 1_000:.2f}"
    ctx.audit("estimate_shifted", f"site/{shift.site_id}", severity=Severity.WARNING, detail=detail)
    ctx.decisions.append(EstimateShifted(shift=shift))


def reset_requested(ctx: Context, event: EstimatesResetRequested) -> None:
    """An operator wants something forgotten; it is durable at once, since a restart must not bring it back."""
    if event.site_id is not None and event.site_id not in ctx.state.sites:
        ctx.refuse(event.request, RefusalCode.NOT_FOUND, f"site {event.site_id} is not known", "site_id")
        return
    ctx.book.forget(event.component, event.site_id)
    subject = "fleet" if event.site_id is None else f"site/{event.site_id}"
    what = "all components" if event.component is None else str(event.component)
    ctx.audit("estimates_reset", subject, actor=event.actor, reason=event.reason, detail=what, severity=Severity.WARNING)
    ctx.records.append(PutEstimates(estimates=ctx.book.save(ctx.now_us)))
    ctx.answer(event.request, Done(changed=(subject,)))
