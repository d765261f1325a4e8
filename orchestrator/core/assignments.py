"""What each site is told: its assignment as a snapshot or a delta, made from the attempts and copies that it should hold.

Decides form and generation. Must not know how it travels; a lost one is noticed by the generation in the site's reports.
"""

from __future__ import annotations

from dataclasses import replace

from atoll.model.assignment import AdapterPeer, AssignedAttempt, Assignment, DesiredReplica, Peer, Sources
from atoll.model.attempt import AttemptState
from atoll.model.ids import AdapterId, Generation, ModelId
from atoll.model.placement import FetchFrom
from orchestrator.core.context import Context
from orchestrator.core.outputs import SendAssignment
from orchestrator.core.placement.peers import serves
from orchestrator.core.state import LiveAttempt, Site, Wanted


def send_touched(ctx: Context) -> None:
    """Send every touched site with a session what changed since it was last told."""
    for site_id in ctx.touched_sites:
        site = ctx.state.sites.get(site_id)
        if site is None or site.session is None:
            continue
        changes = (site.changed, site.removed, site.evict, site.wanted_changed, site.unwanted)
        nothing_new = not any(changes) and site.acked_sent == site.acked_event_seq
        if nothing_new and not site.needs_snapshot:
            continue
        assignment = _make(ctx, site)
        ctx.commands.append(SendAssignment(site_id=site.site_id, session=site.session, assignment=assignment))
    ctx.touched_sites = {}


def _make(ctx: Context, site: Site) -> Assignment:
    full = site.needs_snapshot
    base = Generation(0) if full else site.generation
    site.generation = Generation(site.generation + 1)
    lives = site.attempts.values() if full else [site.attempts[key] for key in site.changed if key in site.attempts]
    attempts = tuple(_assigned(ctx, live) for live in lives)
    keys = list(site.wanted) if full else [key for key in site.wanted_changed if key in site.wanted]
    replicas = tuple(_desired(ctx, site.wanted[key]) for key in keys)
    wanted: dict[ModelId, None] = {live.model_id: None for live in lives} | {desired.model_id: None for desired in replicas}
    models = tuple(ctx.state.models[model_id] for model_id in wanted if model_id in ctx.state.models)
    used: dict[AdapterId, None] = {use.adapter_id: None for live in lives for use in live.spec.adapters}
    adapters = tuple(ctx.state.adapters[adapter_id] for adapter_id in used if adapter_id in ctx.state.adapters)
    assignment = Assignment(
        fleet_id=ctx.state.fleet_id,
        term=ctx.state.term,
        generation=site.generation,
        base_generation=base,
        attempts=attempts,
        removed=() if full else tuple(site.removed),
        models=models,
        adapters=adapters,
        evict=tuple(site.evict),
        acked_event_seq=site.acked_event_seq,
        confirm_shrink=full and site.dropped,
        replicas=replicas,
        unwanted=() if full else tuple(site.unwanted.values()),
    )
    site.needs_snapshot = False
    site.changed, site.removed, site.evict = {}, {}, {}
    site.wanted_changed, site.unwanted = {}, {}
    site.sent_us, site.acked_sent = ctx.now_us, site.acked_event_seq
    return assignment


def _sources(ctx: Context, chosen: FetchFrom | None) -> Sources | None:
    """Peer sites as their weights can be read now, without those that fell silent or went meanwhile; None: as the site sees fit."""
    if chosen is None:
        return None
    if not chosen.sites:
        return Sources(peers=(), origin_too=True)
    sites = [ctx.state.sites[site_id] for site_id in chosen.sites if site_id in ctx.state.sites]
    peers = tuple(Peer(site_id=site.site_id, url=site.record.spec.weights_url) for site in sites if serves(site))
    return Sources(peers=peers, origin_too=chosen.origin_too) if peers else None


def _adapters_from(ctx: Context, live: LiveAttempt) -> tuple[AdapterPeer, ...]:
    """The peers of adapters that its node lacks, where these are nearer than the origin store."""
    slot = live.attempt.slot
    column = ctx.columns.by_pool.get((live.attempt.site_id, slot.pool_id))
    number = column.pool.node_index.get(slot.node_id) if column is not None else None
    if column is None or number is None:
        return ()
    lacking = [use.adapter_id for use in live.spec.adapters if use.adapter_id not in column.pool.nodes[number].disk_adapters]
    found = []
    for adapter_id in lacking:
        adapter = ctx.state.adapters.get(adapter_id)
        site_id = ctx.estimator.adapter_ways(adapter).source(column.index) if adapter is not None else None
        if site_id is not None:
            url = ctx.state.sites[site_id].record.spec.weights_url
            found.append(AdapterPeer(adapter_id=adapter_id, peer=Peer(site_id=site_id, url=url)))
    return tuple(found)


def _desired(ctx: Context, wanted: Wanted) -> DesiredReplica:
    return wanted.desired if wanted.fetch_from is None else replace(wanted.desired, fetch_from=_sources(ctx, wanted.fetch_from))


def _assigned(ctx: Context, live: LiveAttempt) -> AssignedAttempt:
    return AssignedAttempt(
        key=live.key,
        spec=live.spec,
        slot=live.attempt.slot,
        evict=live.evict,
        stop=live.attempt.state is AttemptState.STOPPING,
        stop_reason=live.stop_reason,
        stop_after_ms=ctx.policy.stop_after_ms,
        request_id=live.request_id,
        fetch_from=_sources(ctx, live.fetch_from),
        adapters_from=_adapters_from(ctx, live) if live.spec.adapters else (),
    )
