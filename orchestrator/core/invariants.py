"""The promises of the design as checks on the core's state. Tests and the simulator run them after every event.

Decides nothing; raises at the first broken promise.
"""

from __future__ import annotations

from collections import Counter

from atoll.model import limits
from atoll.model.attempt import ENDED, AttemptState
from atoll.model.errors import AtollError
from atoll.model.ids import AttemptKey, JobId, ModelId, SlotRef, TenantId
from atoll.model.job import TERMINAL, JobState
from atoll.model.replica import Tier
from orchestrator.core import yielding
from orchestrator.core.claimed import Claimed
from orchestrator.core.context import Context, TimerKind
from orchestrator.core.machine import Machine
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.column import is_free
from orchestrator.core.placement.gangs import is_last_block
from orchestrator.core.placement.rows import Dyn
from orchestrator.core.state import JobEntry, LiveAttempt, Pool, Site, Slot


class InvariantViolation(AtollError):  # noqa: N818 - it names what was found, not what went wrong in finding it
    """A promise is broken: a bug of ours."""


def _must(holds: bool, promise: str, detail: object) -> None:
    if not holds:
        raise InvariantViolation(f"{promise}: {detail}")


def check(machine: Machine) -> None:
    """Raise InvariantViolation if any promise is broken just now."""
    ctx = machine.context
    live: dict[JobId, list[LiveAttempt]] = {}
    for site in ctx.state.sites.values():
        for attempt in site.attempts.values():
            if not attempt.given_up:
                live.setdefault(attempt.key.job_id, []).append(attempt)
    backing_off = {subject for _, kind, subject in ctx.timers if kind is TimerKind.RETRY}
    for entry in ctx.state.jobs.values():
        _check_job(ctx, entry, live.get(entry.job.job_id, []), backing_off)
    for site in ctx.state.sites.values():
        _check_site(ctx, site)
    _check_columns(ctx)
    _check_queue(ctx)
    _check_bound(ctx)
    _check_moves(ctx)
    _check_claims(ctx)
    _check_wishes(ctx)


def _check_job(ctx: Context, entry: JobEntry, live: list[LiveAttempt], backing_off: set[str]) -> None:
    job = entry.job
    _must(job.state not in TERMINAL, "terminal jobs leave memory", job.job_id)
    ordinals = [attempt.key.ordinal for attempt in job.attempts]
    _must(ordinals == list(range(1, len(ordinals) + 1)), "attempts are ordered without gaps", (job.job_id, ordinals))
    _must(all(attempt.state is not AttemptState.SUCCEEDED for attempt in job.attempts), "a success ends its job", job.job_id)
    _must(all(attempt.state in ENDED for attempt in job.attempts[:-1]), "only the last attempt is live", job.job_id)
    known = ctx.state.keys.get((job.spec.tenant, job.idempotency_key))
    _must(known is not None and known.job_id == job.job_id, "one job per idempotency key", job.job_id)
    if job.state is JobState.QUEUED:
        _must(not live, "a queued job holds no slot", job.job_id)
        waits = job.job_id in ctx.queue or entry.not_before_us > ctx.now_us
        _must(waits or job.job_id in backing_off, "a queued job waits in the queue or for its back-off", job.job_id)
        return
    _must(job.job_id not in ctx.queue, "a placed job does not wait", job.job_id)
    _must(len(live) == 1, "a placed job has exactly one live attempt", (job.job_id, [str(other.key) for other in live]))
    _must(live[0].key == job.attempts[-1].key, "the live attempt is the last", job.job_id)


def _check_site(ctx: Context, site: Site) -> None:
    held = Counter(key for pool in site.pools.values() for slot in _slots(pool) for key in slot.attempts)
    _must(set(held) <= set(site.attempts), "no slot is held by an attempt that ended", (site.site_id, set(held) - set(site.attempts)))
    for live in site.attempts.values():
        pool = site.pools.get(live.attempt.slot.pool_id)
        members = pool.members(live.attempt.slot, live.spec.gang_size) if pool is not None else []
        _must(held[live.key] == len(members), "an attempt holds its slots, all of them, until the site says so", str(live.key))
        _must(all(live.key in slot.attempts for slot in members), "a gang holds the block that it leads", str(live.key))
    nodes = [node for pool in site.pools.values() for node in pool.nodes]
    copying = sum(len(node.copying) for node in nodes)
    fetching = sum(len(node.fetching) for node in nodes) - copying
    _must(all(set(node.flights) == set(node.fetching) for node in nodes), "of what is on its way the pace is known", site.site_id)
    _must(all(node.copying <= set(node.fetching) for node in nodes), "what is copied is on its way", site.site_id)
    _must(all(set(node.sources) <= set(node.fetching) - node.copying for node in nodes), "what is read is on its way", site.site_id)
    counted = (site.fetches, site.copies)
    _must(counted == (fetching, copying), "flows are counted", (site.site_id, fetching, copying, *counted))
    for pool in site.pools.values():
        for slot in _slots(pool):
            _check_slot(ctx, site, slot)


def _slots(pool: Pool) -> list[Slot]:
    return [slot for node in pool.nodes for slot in node.slots]


def _check_slot(ctx: Context, site: Site, slot: Slot) -> None:
    bound = len(slot.attempts)
    _must(bound <= ctx.policy.slot_depth, "reservations never exceed capacity", (site.site_id, slot.ref, bound))
    models = {site.attempts[key].replica for key in slot.attempts}
    _must(len(models) <= 1, "attempts of one slot share a model", (site.site_id, slot.ref, sorted(models)))
    _must(slot.ready or slot.loading is None, "what is not ready loads nothing", (site.site_id, slot.ref))
    if slot.ready:
        _must(models <= set(slot.replicas), "a bound model has its memory reserved", (site.site_id, slot.ref))


def _check_columns(ctx: Context) -> None:
    copies: dict[ModelId, int] = {}
    for column in ctx.columns.columns:
        free = [slot for slot in _slots(column.pool) if is_free(slot)]
        _must(column.free_slots == len(free), "free capacity is counted", (column.site.site_id, column.pool.pool_id))
        whole = bool(ctx.columns.dyn[column.index, Dyn.WHOLE])
        _must(whole == is_last_block(column), "the last whole block is known", (column.site.site_id, column.pool.pool_id))
        _must(int(ctx.columns.free[column.index]) == len(free), "free capacity is shown", column.pool.pool_id)
        _must(sum(column.node_free) == len(free), "free capacity is counted by node", column.pool.pool_id)
        tops = [column.top(heap) for heap in (column.free.cheap, column.free.kept, column.free.roomy)]
        _must((tops[2] is not None) == bool(free), "a free slot can be found", column.pool.pool_id)
        _must((tops[0] or tops[1]) is not None or not free, "a free slot that can be cleared can be found", column.pool.pool_id)
        for replica, warm in column.warm.items():
            there = {(slot.node_index, slot.index) for slot in _slots(column.pool) if slot.ready and replica in slot.replicas}
            _must(warm.slots == there, "warm replicas are indexed", (column.pool.pool_id, replica))
            own = [where for where in there if where[1] % replica.gang_size == 0]
            copies[replica.model_id] = copies.get(replica.model_id, 0) + len(own)
    nodes = (node for column in ctx.columns.columns for node in column.pool.nodes)
    reading = Counter(site_id for node in nodes for sources in node.sources.values() for site_id in sources)
    for site_id in ctx.state.sites:
        _must(ctx.columns.peers.flows(site_id) == reading[site_id], "what a site gives to others is counted", site_id)
    unlike = ctx.columns.gangs.untrue(ctx.columns.changes)
    _must(unlike is None, "blocks of gangs are indexed as they are", unlike)
    untrue = ctx.columns.where.untrue(ctx.columns.gangs, ctx.columns.changes)
    _must(not untrue, "what is told of a model in a pool is so", untrue)
    for model_id, count in copies.items():
        _must(ctx.columns.prices.copies(model_id) == count, "copies are counted", (model_id, count))


def _check_queue(ctx: Context) -> None:
    waiting = sum(len(known.members) for known in ctx.queue.classes.values())
    _must(waiting == len(ctx.queue), "the queue counts its jobs", (waiting, len(ctx.queue)))
    for key, known in ctx.queue.classes.items():
        _must(bool(known.members), "no class is empty", key.model_id)
        _must(sum(lane.jobs for lane in known.lanes.values()) == len(known.members), "lanes hold a class's jobs", key.model_id)
        _must(known.resting or ctx.queue.is_ready(known), "every waiting class rests until an instant or is ready", key.model_id)
    charged: Counter[TenantId] = Counter()
    waiting_of: Counter[TenantId] = Counter()
    for site in ctx.state.sites.values():
        charged.update(live.spec.tenant for live in site.attempts.values() if live.charge_us)
    for known in ctx.queue.classes.values():
        for tenant, lane in known.lanes.items():
            waiting_of[tenant] += lane.jobs
    for tenant, account in ctx.queue.shares.tenants.items():
        _must(account.in_flight == charged[tenant], "each charge is settled once", (tenant, account.in_flight, charged[tenant]))
        _must(account.queued == waiting_of[tenant], "shares count who waits", (tenant, account.queued, waiting_of[tenant]))
    _must(set(charged) | set(waiting_of) <= set(ctx.queue.shares.tenants), "nobody with work is forgotten", sorted(charged))


def _check_bound(ctx: Context) -> None:
    held = {live.key for site in ctx.state.sites.values() for live in site.attempts.values()}
    known = [key for there in ctx.bound.by_pool.values() for key in there]
    _must(len(known) == len(held) and set(known) == held, "live attempts are indexed by pool and priority", set(known) ^ held)
    waiting = {key for site in ctx.state.sites.values() for key in _behind(site)}
    indexed = {live.key for there in ctx.bound.behind.values() for _, live in there.lives.values()}
    _must(indexed == waiting, "what waits behind others and has not begun is indexed", indexed ^ waiting)
    _must(all(there.places == sorted(there.lives) for there in ctx.bound.behind.values()), "and in order", indexed)
    giving = {(live.gives_way_to, live.key) for site in ctx.state.sites.values() for live in site.attempts.values() if live.gives_way_to}
    known_to_give = {(job_id, key) for job_id, lives in ctx.bound.giving_way.items() for key in lives}
    _must(giving == known_to_give and all(ctx.bound.giving_way.values()), "who gives way to whom is indexed", giving ^ known_to_give)


def _behind(site: Site) -> list[AttemptKey]:
    lives = [site.attempts[key] for pool in site.pools.values() for slot in _slots(pool) for key in slot.attempts[1:]]
    return [live.key for live in lives if live.spec.gang_size == 1 and live.attempt.state is AttemptState.LEASED and not live.given_up]


def _check_moves(ctx: Context) -> None:
    moves = ctx.state.moves
    kept = {
        (site.site_id, slot.ref): slot.kept_until_us
        for site in ctx.state.sites.values()
        for pool in site.pools.values()
        for slot in _slots(pool)
        if slot.kept_until_us
    }
    meant = {(move.site_id, move.slot): move.free_from_us for move in moves.values()}
    _must(len(meant) == len(moves), "no two jobs are moved to one slot", moves)
    _must(kept.items() <= meant.items(), "a slot is kept for a job that is moved to it", set(kept) - set(meant))
    waiting = [job_id for job_id in moves if job_id not in ctx.state.jobs or job_id in ctx.queue]
    _must(not waiting, "a slot is kept for who has yet to stop", waiting)
    gone = set(ctx.state.bettered) - set(ctx.columns.by_pool)
    _must(not gone, "what got better is there", gone)


def _check_claims(ctx: Context) -> None:
    claimed: dict[tuple[str, SlotRef], int] = {}
    _must(len(ctx.state.claims) <= yielding.CLAIMS_MAX, "claims are bounded", len(ctx.state.claims))
    of_class: dict[ClassKey, list[Claimed]] = {}
    for one, held in ctx.state.claims.items():
        block = held.block
        of_class.setdefault(one.key, []).append(held)
        _must(one in ctx.state.claims.of(one.key), "claims are indexed by class", one)
        _must(one.key in ctx.queue.classes and one.key.gang_size == block.slots, "a claim is of gangs that wait", block)
        _must((one.site_id, one.lead.pool_id, one.lead.index) == (block.site_id, block.pool_id, block.first), "a claim has its name", block)
        _must(block.first % block.slots == 0, "a claim is of an aligned block", block)
        for index in range(block.first, block.first + block.slots):
            where = (block.site_id, SlotRef(pool_id=block.pool_id, node_id=block.node_id, index=index))
            _must(where not in claimed, "no two claims share a slot", where)
            claimed[where] = held.until_us
    for key, all_held in of_class.items():
        _must(len(all_held) <= len(ctx.queue.classes[key].members), "a class has no more claims than jobs", (key, len(all_held)))
        draining = sum(held.drains for held in all_held)
        most = max(draining, len(all_held) - draining)
        _must(most <= yielding.OF_CLASS_MAX, "claims of a class are bounded", (key, draining, len(all_held)))
    kept = {
        (site.site_id, slot.ref): slot.claimed_until_us
        for site in ctx.state.sites.values()
        for pool in site.pools.values()
        for slot in _slots(pool)
        if slot.claimed_until_us
    }
    _must(kept == claimed, "claimed slots are those of claims", set(kept) ^ set(claimed))
    for site in ctx.state.sites.values():
        for pool in site.pools.values():
            there = [
                held.block.slots
                for held in ctx.state.claims.values()
                if held.drains and (held.block.site_id, held.block.pool_id) == (site.site_id, pool.pool_id)
            ]
            most = ctx.policy.claims_share_milli * pool.spec.slots // 1_000
            _must(len(there) < 2 or sum(there) <= most, "claims leave the share of a pool that is not theirs", (site.site_id, pool.pool_id))


def _check_wishes(ctx: Context) -> None:
    indexed = {(model_id, site_id) for model_id, sites in ctx.wishes.items() for site_id in sites}
    wanted = {(one.desired.model_id, site.site_id) for site in ctx.state.sites.values() for one in site.wanted.values()}
    _must(indexed == wanted, "wishes are indexed by model", indexed ^ wanted)
    named = Counter(
        name
        for site in ctx.state.sites.values()
        for one in site.wanted.values()
        for name in one.desired.evict
        if one.desired.tier is Tier.GPU
    )
    _must(named == ctx.making_room, "copies that are named to make room are counted", (named, ctx.making_room))
    for site in ctx.state.sites.values():
        _must(len(site.wanted) <= limits.DESIRED_PER_SITE_MAX, "wishes of a site are bounded", (site.site_id, len(site.wanted)))
        unknown = [str(one.desired.model_id) for one in site.wanted.values() if one.desired.model_id not in ctx.state.models]
        _must(not unknown, "nothing is wanted of a model that is gone", (site.site_id, unknown))
        changed = set(site.wanted_changed) - set(site.wanted)
        _must(not changed, "what is to be told of wishes is wanted", (site.site_id, changed))
