"""Sites as they speak: connecting, reporting, going away; the pools they say they have.

Decides what is believed of a report, and when a site takes part in placing. Must not know what operators want (`operators`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from atoll.model.attempt import AttemptState
from atoll.model.ids import PoolId, SlotRef
from atoll.model.replica import ReplicaFact, ReplicaState, Tier
from atoll.model.report import PROTOCOL_VERSION, AttemptProgress, NodeFacts, SiteHello, SiteReport, SlotFacts
from atoll.model.site import PoolSpec, SiteAdmin
from orchestrator.core import attempts, bettered, flights, leases, loading, movements, turnover, wishes
from orchestrator.core.context import Context
from orchestrator.core.events import ResyncRequested, SiteConnected, SiteDisconnected, SiteReported
from orchestrator.core.moves import Bettering
from orchestrator.core.outputs import CloseSession, Refusal, RefusalCode
from orchestrator.core.placement import rates
from orchestrator.core.placement.column import Column, is_free
from orchestrator.core.queue import NO_POOL
from orchestrator.core.state import LiveAttempt, Node, Pool, Replica, ReplicaKey, Site, Slot

_RESIDENT: Final = (ReplicaState.LOADING, ReplicaState.WARM, ReplicaState.BUSY)


def connected(ctx: Context, event: SiteConnected) -> None:
    """An agent's stream begins: refused, or the site's one session from now on."""
    site = ctx.state.sites.get(event.site_id)
    refusal = _refusal(ctx, site, event)
    if refusal is not None or site is None:
        assert refusal is not None
        ctx.commands.append(CloseSession(site_id=event.site_id, session=event.session, refusal=refusal))
        return
    if event.credential_sha256:
        site.record = replace(site.record, join_token_sha256="", credential_sha256=event.credential_sha256, updated_us=ctx.now_us)
        ctx.save_site(site)
        ctx.audit("site_joined", f"site/{site.site_id}", actor=f"site/{site.site_id}")
    told = event.hello.pools
    if not site.record.joined_us or site.record.pools != told:
        # Kept, so that sites which come back after a takeover find their pools made: each that does not costs a look at the whole fleet.
        found = told if told != site.record.spec.pools else ()
        site.record = replace(site.record, joined_us=site.record.joined_us or ctx.now_us, found=found)
        ctx.save_site(site)
    pools_changed = {pool_id: pool.spec for pool_id, pool in site.pools.items()} != {spec.pool_id: spec for spec in told}
    site.session, site.hello, site.reported = event.session, event.hello, False
    site.last_report_seq = 0
    site.needs_snapshot = True
    attempts.acknowledge_from(site)
    leases.heard(ctx, site)
    if pools_changed:
        build_pools(ctx, site, event.hello)
    ctx.columns.refresh_site(site)
    ctx.touch_assignment(site)


def _refusal(ctx: Context, site: Site | None, event: SiteConnected) -> Refusal | None:
    hello = event.hello
    if site is None or site.record.admin is SiteAdmin.REMOVED:
        return Refusal(code=RefusalCode.NOT_FOUND, field="site_id", message=f"no site {event.site_id!r}: add it first (atoll sites add)")
    if hello.protocol_version != PROTOCOL_VERSION:
        message = f"the agent speaks protocol {hello.protocol_version}, this orchestrator {PROTOCOL_VERSION}: install the same version"
        return Refusal(code=RefusalCode.WRONG_STATE, field="protocol_version", message=message)
    if hello.fleet_id not in ("", ctx.state.fleet_id):
        message = f"the agent belongs to fleet {hello.fleet_id}, this is {ctx.state.fleet_id}"
        return Refusal(code=RefusalCode.WRONG_STATE, field="fleet_id", message=message)
    alive_us = site.last_heard_us + ctx.policy.silent_after_ms * 1_000
    same_agent = site.hello is not None and site.hello.boot_id == hello.boot_id
    if site.session is not None and not same_agent and ctx.now_us < alive_us:
        message = f"another agent speaks as site {event.site_id}: stop it first, or make this host a site of its own (atoll sites add)"
        return Refusal(code=RefusalCode.CONFLICT, field="site_id", message=message, retry_after_ms=ctx.policy.silent_after_ms)
    for pool in hello.pools:
        if pool.gpu_type not in ctx.state.gpus:
            known = ", ".join(sorted(ctx.state.gpus)[:6])
            message = f"pool {pool.pool_id} has GPU type {pool.gpu_type!r}, which the catalogue lacks (it knows {known}, ...)"
            return Refusal(code=RefusalCode.INVALID, field="pools.gpu_type", message=message)
    return None


def declare_pools(ctx: Context, site: Site) -> None:
    """Pools as they were found, or declared, while no agent has said what there is; live attempts hold their slots."""
    _make_pools(ctx, site, site.record.pools)


def build_pools(ctx: Context, site: Site, hello: SiteHello) -> None:
    """Make the pools anew from what the agent has; live attempts keep their slots."""
    _make_pools(ctx, site, hello.pools)
    ctx.columns.rebuild(list(ctx.state.sites.values()))
    ctx.estimator.forget()
    ctx.queue.forget_pools()


def _make_pools(ctx: Context, site: Site, specs: tuple[PoolSpec, ...]) -> None:
    site.pools = {spec.pool_id: make_pool(ctx, site, spec) for spec in specs if spec.gpu_type in ctx.state.gpus}
    site.fetches = site.copies = 0
    site.breakers = {pool_id: breaker for pool_id, breaker in site.breakers.items() if pool_id in site.pools}
    for live in site.attempts.values():
        pool = site.pools.get(live.attempt.slot.pool_id)
        for slot in pool.members(live.attempt.slot, live.spec.gang_size) if pool is not None else ():
            slot.attempts.append(live.key)
            slot.busy_until_us = max(slot.busy_until_us, ctx.now_us) + live.exec_us
            reserve(slot, live.replica, ctx.state.models[live.model_id].resident_bytes if live.model_id in ctx.state.models else 0)
    ctx.bound.count_behind(site)


def make_pool(ctx: Context, site: Site, spec: PoolSpec) -> Pool:
    """An empty pool of this shape; its slots are not ready until reported."""
    gpu = ctx.state.gpus[spec.gpu_type]
    memory = spec.gpu_memory_bytes or gpu.memory_bytes
    nodes = []
    for node_index in range(spec.nodes):
        node_id = spec.node_id(node_index)
        slots = [
            Slot(
                ref=SlotRef(pool_id=spec.pool_id, node_id=node_id, index=index),
                node_index=node_index,
                index=index,
                memory_bytes=memory,
            )
            for index in range(spec.gpus_per_node)
        ]
        nodes.append(Node(node_id=node_id, slots=slots))
    index = {node.node_id: position for position, node in enumerate(nodes)}
    return Pool(site_id=site.site_id, spec=spec, gpu=gpu, nodes=nodes, node_index=index)


def reserve(slot: Slot, key: ReplicaKey, memory_bytes: int) -> None:
    """The slot's memory holds, or will hold, this replica for a bound attempt."""
    if key not in slot.replicas:
        model_id, gang_size = key
        slot.replicas[key] = Replica(model_id=model_id, gang_size=gang_size, memory_bytes=memory_bytes, state=ReplicaState.ABSENT)


def disconnected(ctx: Context, event: SiteDisconnected) -> None:
    """A stream ended: nothing new goes there, and silence is counted from the last word."""
    site = ctx.state.sites.get(event.site_id)
    if site is None or site.session != event.session:
        return
    site.session, site.reported = None, False
    ctx.columns.refresh_site(site)


def resync(ctx: Context, event: ResyncRequested) -> None:
    """The agent wants a snapshot. It is no report: leases and silence are counted from those."""
    site = ctx.state.sites.get(event.site_id)
    if site is not None and site.session == event.session:
        site.needs_snapshot = True
        ctx.touch_assignment(site)


def reported(ctx: Context, event: SiteReported) -> None:
    """Take over the facts of a report of the current session; an older report than the last is ignored."""
    site, report = ctx.state.sites.get(event.site_id), event.report
    if site is None or site.session != event.session or report.seq <= site.last_report_seq:
        return
    site.last_report_seq = report.seq
    leases.heard(ctx, site)
    for facts in report.nodes:
        pool = site.pools.get(facts.pool_id)
        node_index = pool.node_index.get(facts.node_id) if pool is not None else None
        if pool is not None and node_index is not None and not _says_nothing_new(pool.nodes[node_index], facts):
            column = ctx.columns.by_pool[(site.site_id, PoolId(facts.pool_id))]
            _node_reported(ctx, column, node_index, facts)
            _fetches_reported(ctx, column, node_index, facts, current=report.generation == site.generation)
    _progress_reported(ctx, site, report.progress)
    attempts.stop_hanging(ctx, site)
    site.rates = report.rates
    if report.full:
        for live in site.attempts.values():
            live.adopted = False
    first = report.full and not site.reported
    site.reported = site.reported or report.full
    ctx.columns.refresh_site(site)
    if first:
        rates.take(ctx.columns, (site,))
        ctx.queue.wake_all()
        bettered.site_better(ctx, site, Bettering.CONNECTED)
    _check_generation(ctx, site, report)


def _progress_reported(ctx: Context, site: Site, told: tuple[AttemptProgress, ...]) -> None:
    if told is site.told:
        return
    was, site.told = site.told, told
    if len(told) == len(was):  # mostly nobody came or went, and who got no further is told as the same object
        news = [now for now, before in zip(told, was, strict=True) if now is not before]
    else:
        known = {progress.key: progress for progress in was}
        news = [progress for progress in told if known.get(progress.key) is not progress]
    for progress in news:
        attempts.progressed(ctx, site, progress)


def _says_nothing_new(node: Node, facts: NodeFacts) -> bool:
    """Whether a report says of a node what the last one said, and nothing has changed here since then; as most of a report does."""
    told = node.told
    if told is None or told[1] != node.version or node.fetching:
        return False
    return told[0] is facts or told[0] == facts


def _check_generation(ctx: Context, site: Site, report: SiteReport) -> None:
    """A site that still holds another generation than was sent a while ago, or runs what it should not, or whose full report is
    missing, gets a snapshot: it answers one with a full report."""
    overdue, renumbered = ctx.now_us - site.sent_us > ctx.policy.resend_after_ms * 1_000, report.generation > site.generation
    if renumbered:
        # It was removed and added again within this term: go on counting where the site is, or it takes all we say for old.
        site.generation, overdue = report.generation, True
    if not overdue:
        return
    unknown = renumbered or any(progress.key not in site.attempts for progress in report.progress)
    if report.generation != site.generation or unknown or not site.reported:
        site.needs_snapshot = True
        ctx.touch_assignment(site)


def _node_reported(ctx: Context, column: Column, node_index: int, facts: NodeFacts) -> None:
    node = column.pool.nodes[node_index]
    node.host_free_bytes, node.disk_free_bytes = facts.host_free_bytes, facts.disk_free_bytes
    node.pinned, node.host_tier = facts.pinned, facts.host_tier
    for kind, tier, known, told in (
        ("disk", Tier.DISK, node.disk_models, facts.disk_models),
        ("host", Tier.HOST, node.host_models, facts.host_models),
    ):
        now_there = set(told)
        if now_there == known:
            continue
        for model_id in sorted(now_there - known):
            known.add(model_id)
            movements.tier_reported(ctx, column, node, tier, model_id, present=True)
            ctx.columns.node_changed(column, node_index, kind, model_id, present=True)
            ctx.queue.wake_model(model_id)
        for model_id in sorted(known - now_there):
            known.discard(model_id)
            movements.tier_reported(ctx, column, node, tier, model_id, present=False)
            ctx.columns.node_changed(column, node_index, kind, model_id, present=False)
    if node.disk_adapters != set(facts.disk_adapters):
        for adapter_id in sorted(node.disk_adapters.symmetric_difference(facts.disk_adapters)):
            ctx.columns.adapter_peers.held(column.site.site_id, adapter_id, 1 if adapter_id in facts.disk_adapters else -1)
        node.disk_adapters = set(facts.disk_adapters)
        ctx.columns.adapters_changed(column)
    if node.shares_compiled != facts.shares_compiled:
        node.shares_compiled = facts.shares_compiled
        ctx.columns.version += 1
    if node.compiled != set(facts.compiled):
        held, node.compiled = node.compiled, set(facts.compiled)
        ctx.columns.code.changed(column, held, node.compiled)
    for model_id in [model_id for model_id in node.fetching if model_id in node.disk_models]:
        attempts.forget_fetch(ctx, column, node_index, model_id)
    listed = [one for one in facts.slots if 0 <= one.index < len(node.slots)]
    news = [one for one in listed if not _is_known(column.site, node.slots[one.index], one)]
    unsettled = 0
    for slot_facts in news:
        unsettled += not _slot_reported(ctx, column, node.slots[slot_facts.index], slot_facts)
    node.told = None if unsettled or facts.fetching else (facts, node.version)


def _fetches_reported(ctx: Context, column: Column, node_index: int, facts: NodeFacts, *, current: bool) -> None:
    """Flows as the site sees them. What it does not fetch though it knows all that it should (`current`) is no flow, unless an attempt
    that waits for it has not begun."""
    node = column.pool.nodes[node_index]
    told = {fact.model_id: fact for fact in facts.fetching if fact.model_id not in node.disk_models}
    for model_id, fact in told.items():
        model, left_bytes = ctx.state.models.get(model_id), max(fact.bytes_total - fact.bytes_done, 0)
        if model_id in node.fetching:
            flights.told(ctx, column, node_index, model_id, left_bytes, fact.bytes_total)
        elif model is not None:
            wishes.told_fetch(ctx, column, node_index, model, left_bytes)
    lives = [column.site.attempts[key] for slot in node.slots for key in slot.attempts if key in column.site.attempts]
    awaited = {live.model_id for live in lives}
    for model_id in [model_id for model_id in node.fetching if model_id not in told and model_id not in awaited]:
        if current:
            attempts.forget_fetch(ctx, column, node_index, model_id)


def _is_known(site: Site, slot: Slot, facts: SlotFacts) -> bool:
    """As `_as_known`, which is not asked again for what was known when it was last told."""
    told = slot.told
    if told is not None and told[1] == slot.version and (told[0] is facts or told[0] == facts):
        return True
    known = _as_known(site, slot, facts)
    slot.told = (facts, slot.version) if known else None
    return known


def _as_known(site: Site, slot: Slot, facts: SlotFacts) -> bool:
    """Whether a report says of a slot only what is believed, as most do: `_slot_reported` would change nothing."""
    held = slot.replicas
    if slot.loading is not None or facts.ready is not slot.ready or facts.fresh is not slot.fresh or len(held) != len(facts.replicas):
        return False
    lives = [site.attempts[key] for key in slot.attempts if key in site.attempts]
    if any(live.evict or live.replica not in held for live in lives) or (len(held) > 1 and sorted(held) != list(held)):
        return False
    for fact in facts.replicas:
        replica = held.get(ReplicaKey(fact.model_id, fact.gang_size))
        if replica is None or replica.state is not fact.state or fact.state not in _RESIDENT or replica.memory_bytes != fact.memory_bytes:
            return False
        adapters = {use.adapter_id for live in lives if live.replica == replica.key for use in live.spec.adapters}
        if replica.adapters != tuple(sorted(adapters.union(fact.adapters))):
            return False
    return True


def _slot_reported(ctx: Context, column: Column, slot: Slot, facts: SlotFacts) -> bool:
    """Believe what is resident, but for victims that bound attempts will evict, and keep room for models they will load. Whether all of
    it was believed before: the same facts change nothing then until something else changes the slot."""
    lives = [column.site.attempts[key] for key in slot.attempts if key in column.site.attempts]
    leaving = {model_id for live in lives if live.attempt.state is not AttemptState.STOPPING for model_id in live.evict}
    told: dict[ReplicaKey, ReplicaFact] = {
        ReplicaKey(fact.model_id, fact.gang_size): fact
        for fact in facts.replicas
        if fact.state in _RESIDENT and fact.model_id not in leaving
    }
    before = {key: (replica.memory_bytes, replica.adapters) for key, replica in slot.replicas.items()}
    was_free, took_loads = slot.ready and slot.idle, bettered.takes_loads(column)
    resident, known = movements.resident(slot), slot.replicas
    present = sorted({*told, *(live.replica for live in lives)})
    slot.replicas = {key: _believed(known.get(key), key, told.get(key), lives) for key in present}
    movements.slot_reported(ctx, column, slot, resident)
    after = {key: (replica.memory_bytes, replica.adapters) for key, replica in slot.replicas.items()}
    changed = before != after or (facts.ready, facts.fresh) != (slot.ready, slot.fresh)
    taken = loading.told(ctx, column, slot, facts)
    if not changed and not taken:
        # What loads goes on for longer at each look, and victims stay out only until their attempt is stopped.
        if slot.loading is not None or leaving:
            return False
        slot.told = (facts, slot.version)
        return True
    slot.ready, slot.fresh = facts.ready, facts.fresh
    ctx.columns.slot_changed(column, slot, was_free)
    if not changed and not is_free(slot):
        return False
    if slot.ready and column.site.reported:  # else it is no turnover: the site, or the slot, begins anew
        gone = (replica for key, replica in known.items() if key not in slot.replicas and key.model_id in ctx.state.models)
        turnover.left(ctx, column, turnover.counted(slot, gone))
    for key in sorted(told):
        ctx.queue.wake_model(key.model_id)
    if slot.ready and not was_free:
        bettered.slot_free(ctx, column, slot, took_loads=took_loads)
        ctx.queue.wake_for_slot(column.index)
        ctx.queue.wake_for_slot(NO_POOL)
    return False


def _believed(known: Replica | None, key: ReplicaKey, fact: ReplicaFact | None, lives: list[LiveAttempt]) -> Replica:
    """A replica as reported, or about to be loaded; with the adapters that are on it or that bound attempts will put there."""
    replica = known or Replica(model_id=key.model_id, gang_size=key.gang_size, memory_bytes=0, state=ReplicaState.ABSENT)
    adapters = set(fact.adapters) if fact is not None else set()
    adapters.update(use.adapter_id for live in lives if live.replica == key for use in live.spec.adapters)
    replica.adapters = tuple(sorted(adapters))
    replica.state = ReplicaState.ABSENT if fact is None else fact.state
    if fact is not None:
        replica.memory_bytes = fact.memory_bytes
    return replica
