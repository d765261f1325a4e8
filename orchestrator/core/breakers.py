"""Breakers: a pool where attempts of different jobs keep failing for reasons of the place takes no new work for a while, then one attempt.

Decides when a place is to blame. A job, a model or a tenant that fails wherever it goes is not its fault: failures of a model count only
while it fails nowhere else, and those of one model or one tenant alone only while nothing there succeeds. Pauses double while the place
stays bad and are bounded, so that a place which is the only one is tried again for ever. Soft: a new leader finds out anew. Must not know
how places are chosen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Final

from atoll.model.attempt import AttemptState, FailureKind
from atoll.model.audit import Severity
from atoll.model.ids import AttemptKey, JobId, ModelId, PoolId, SiteId, TenantId
from atoll.model.report import AttemptEvent
from orchestrator.core import bettered
from orchestrator.core.context import Context, TimerKind
from orchestrator.core.health import Breaker, BreakerTurn, BreakerTurned, End
from orchestrator.core.moves import Bettering
from orchestrator.core.placement.column import Column
from orchestrator.core.state import LiveAttempt, Site

# What a broken node, driver or disk does to whoever comes. A failed fetch or upload is the network's, and says nothing of warm work.
_OF_THE_PLACE: Final = frozenset(
    {
        FailureKind.OUT_OF_MEMORY,
        FailureKind.LOAD_FAILED,
        FailureKind.RUNTIME_LOST,
        FailureKind.DISK_FULL,
        FailureKind.BAD_WEIGHTS,
        FailureKind.EXECUTION_FAILED,
    }
)
# Ends remembered of a pool: with fewer failures among so many it is not broken. Eight times the default of `breaker_failures`.
_ENDS_MAX: Final = 32
# Places where a model fails are told apart up to the second: from then on the model is to blame, wherever else it fails.
_FAILING_AT_MAX: Final = 2


def ended(ctx: Context, site: Site, live: LiveAttempt, event: AttemptEvent) -> None:
    """A site delivered the end of an attempt: does it speak for or against the place?"""
    pool_id = live.attempt.slot.pool_id
    if not ctx.policy.breaker_failures or pool_id not in site.pools:
        return
    kind = event.failure.kind if event.failure is not None else None
    succeeded = event.state is AttemptState.SUCCEEDED
    # What fails while it is being stopped may fail of that.
    if not succeeded and (kind not in _OF_THE_PLACE or live.on_stop is not None):
        return
    breaker = site.breakers.get(pool_id, Breaker())
    end = End(at_us=ctx.now_us, job_id=live.key.job_id, model_id=live.model_id, tenant=live.spec.tenant, kind=None if succeeded else kind)
    breaker = site.breakers[pool_id] = replace(breaker, ends=(*breaker.ends[1 - _ENDS_MAX :], end))
    if succeeded:
        ctx.state.failing.pop(live.model_id, None)
        if breaker.probe == live.key:
            _close(ctx, site, pool_id)
        return
    _note_failing(ctx, live.model_id, (site.site_id, pool_id))
    probed = breaker.probe == live.key
    excused = _fails_elsewhere(ctx, live.model_id, (site.site_id, pool_id))
    if (probed and not excused) or (not breaker.until_us and _is_broken(ctx, site, pool_id)):
        _open(ctx, site, pool_id)


def left(ctx: Context, site: Site, live: LiveAttempt) -> None:
    """An attempt holds nothing any more. If it probed the place and its end said nothing of it, the next may."""
    pool_id = live.attempt.slot.pool_id
    breaker = site.breakers.get(pool_id)
    if breaker is not None and breaker.probe == live.key:
        site.breakers[pool_id] = replace(breaker, probe=None)
        _turned(ctx, site)


def bound(ctx: Context, column: Column, key: AttemptKey) -> None:
    """An attempt was bound: if the place is being probed, it is the probe, and the only one."""
    site, pool_id = column.site, column.pool.pool_id
    breaker = site.breakers.get(pool_id)
    if breaker is not None and breaker.until_us:
        site.breakers[pool_id] = replace(breaker, probe=key)
        ctx.columns.refresh_site(site)


def pause_over(ctx: Context, subject: str) -> None:
    """A place that was closed long enough takes one attempt."""
    site_id, _, pool_id = subject.partition("/")
    site = ctx.state.sites.get(SiteId(site_id))
    breaker = site.breakers.get(PoolId(pool_id)) if site is not None else None
    if site is None or breaker is None or not breaker.until_us or breaker.probing or ctx.now_us < breaker.until_us:
        return
    site.breakers[PoolId(pool_id)] = replace(breaker, probing=True)
    ctx.decisions.append(BreakerTurned(site_id=site.site_id, pool_id=PoolId(pool_id), to=BreakerTurn.PROBE))
    _turned(ctx, site)


def _turned(ctx: Context, site: Site) -> None:
    """The place may take work again: whoever waits is asked."""
    ctx.columns.refresh_site(site)
    ctx.queue.wake_all()


def _note_failing(ctx: Context, model_id: ModelId, place: tuple[SiteId, PoolId]) -> None:
    known = ctx.state.failing.get(model_id, ())
    if place not in known and len(known) < _FAILING_AT_MAX:
        ctx.state.failing[model_id] = (*known, place)


def _fails_elsewhere(ctx: Context, model_id: ModelId, place: tuple[SiteId, PoolId]) -> bool:
    return any(other != place for other in ctx.state.failing.get(model_id, ()))


def _is_broken(ctx: Context, site: Site, pool_id: PoolId) -> bool:
    """Whether the last ends there are failures of enough different jobs, with fewer successes among them; none where all of the failures
    are of one model or of one tenant."""
    jobs: set[JobId] = set()
    models: set[ModelId] = set()
    tenants: set[TenantId] = set()
    failed = succeeded = 0
    for end in reversed(site.breakers[pool_id].ends):
        if end.at_us <= ctx.now_us - ctx.policy.breaker_window_ms * 1_000:
            return False
        if end.kind is None:
            succeeded += 1
        elif not _fails_elsewhere(ctx, end.model_id, (site.site_id, pool_id)):
            failed += 1
            jobs.add(end.job_id)
            models.add(end.model_id)
            tenants.add(end.tenant)
            if len(jobs) >= ctx.policy.breaker_failures:
                return not succeeded or (succeeded < failed and len(models) > 1 and len(tenants) > 1)
    return False


def _open(ctx: Context, site: Site, pool_id: PoolId) -> None:
    policy, old = ctx.policy, site.breakers[pool_id]
    # Bad again before it was good for as long as the longest pause: it had not been mended.
    lately = old.until_us or (old.closed_us and ctx.now_us < old.closed_us + policy.breaker_pause_max_ms * 1_000)
    level = old.level + 1 if lately else 0
    pause_ms = policy.breaker_pause_ms
    for _ in range(level):
        pause_ms = min(pause_ms * 2, policy.breaker_pause_max_ms)
        if pause_ms == policy.breaker_pause_max_ms:
            break
    until_us = ctx.now_us + pause_ms * 1_000
    site.breakers[pool_id] = replace(old, ends=(), level=level, until_us=until_us, probing=False, probe=None)
    ctx.arm(until_us, TimerKind.BREAKER, f"{site.site_id}/{pool_id}")
    kinds = Counter(end.kind.words for end in old.ends if end.kind is not None)
    what = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
    detail = f"pool {pool_id}: {what}; no new work for {pause_ms / 1_000:g} s, then one attempt"
    ctx.audit("breaker_opened", f"site/{site.site_id}", severity=Severity.WARNING, detail=detail)
    ctx.decisions.append(BreakerTurned(site_id=site.site_id, pool_id=pool_id, to=BreakerTurn.OPEN))
    ctx.columns.refresh_site(site)


def _close(ctx: Context, site: Site, pool_id: PoolId) -> None:
    old = site.breakers[pool_id]
    site.breakers[pool_id] = replace(old, until_us=0, probing=False, probe=None, closed_us=ctx.now_us)
    ctx.audit("breaker_closed", f"site/{site.site_id}", detail=f"pool {pool_id}: an attempt succeeded there")
    ctx.decisions.append(BreakerTurned(site_id=site.site_id, pool_id=pool_id, to=BreakerTurn.CLOSED))
    _turned(ctx, site)
    bettered.better(ctx, ctx.columns.by_pool[site.site_id, pool_id], Bettering.BREAKER_CLOSED)
