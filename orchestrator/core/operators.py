"""What operators ask of sites: declare, add, cordon, drain, remove; and by which policy they run the fleet. Each change is durable,
audited with its reason, and answered.

Decides which requests are allowed in which state. Must not know who the operator is or how they were authenticated.
"""

from __future__ import annotations

from dataclasses import replace

from atoll.model import limits
from atoll.model.ids import SiteId
from atoll.model.site import Drain, SiteAdmin, SiteRecord, SiteSpec
from atoll.model.words import count
from orchestrator.core import bettered, drains, leases, pins, sites
from orchestrator.core.context import Context
from orchestrator.core.events import (
    RequestRef,
    SiteAdded,
    SiteCordoned,
    SiteDrainRequested,
    SiteRemoveRequested,
    SitesApplied,
    SiteUncordoned,
)
from orchestrator.core.moves import Bettering
from orchestrator.core.outputs import CloseSession, DeleteSite, Done, PublishSiteRemoved, PutLinks, PutPolicy, Refusal, RefusalCode
from orchestrator.core.state import Site


def policy_taken(ctx: Context) -> None:
    """This process leads now, by its policy. Where the fleet was run by another one before, that is part of its history."""
    before, now = ctx.state.policy, ctx.policy.identity
    if before == now:
        return
    ctx.state.policy = now
    ctx.records.append(PutPolicy(policy=now))
    if before is not None:
        ctx.audit("policy_changed", "fleet", detail=f"from {before.name} ({before.digest}) to {now.name} ({now.digest})")


def applied(ctx: Context, event: SitesApplied) -> None:
    """Add new sites, update known ones, leave the rest; all of it in one step."""
    new = [spec for spec in event.sites if spec.site_id not in ctx.state.sites]
    refusal = _too_many(ctx, len(new)) or _unknown_gpu(ctx, event.sites)
    if refusal is not None:
        ctx.answer(event.request, refusal)
        return
    changed = [spec.site_id for spec in event.sites if _declare(ctx, spec)]
    links = {(link.src, link.dst): link for link in event.links}
    if any(ctx.state.links.get(key) != link for key, link in links.items()):
        ctx.state.links.update(links)
        _save_links(ctx)
    if changed:
        ctx.columns.rebuild(list(ctx.state.sites.values()))
        ctx.queue.forget_pools()
        parts = ((len(new), "added"), (len(changed) - len(new), "updated"))
        detail = ", ".join(f"{count(number, 'site')} {how}" for number, how in parts if number)
        ctx.audit("sites_applied", "fleet", actor=event.actor, reason=event.reason, detail=detail)
    ctx.answer(event.request, Done(changed=tuple(changed)))


def _declare(ctx: Context, spec: SiteSpec) -> bool:
    """Make the site's record say this; whether that changed anything."""
    site = ctx.state.sites.get(spec.site_id)
    if site is None:
        site = Site(record=SiteRecord(spec=spec, created_us=ctx.now_us, updated_us=ctx.now_us))
        ctx.state.sites[spec.site_id] = site
    elif site.record.spec == spec:
        return False
    else:
        # The latest word counts: another declaration, until an agent says what there is.
        found = site.record.found if spec.pools == site.record.spec.pools else ()
        site.record = replace(site.record, spec=spec, found=found, updated_us=ctx.now_us)
    if site.hello is None:
        sites.declare_pools(ctx, site)
    ctx.save_site(site)
    return True


def _save_links(ctx: Context) -> None:
    ordered = tuple(ctx.state.links[key] for key in sorted(ctx.state.links))
    ctx.records.append(PutLinks(links=ordered))
    ctx.estimator.forget()


def added(ctx: Context, event: SiteAdded) -> None:
    """Add one site, with the token its agent may join with once."""
    refusal = _too_many(ctx, 1) or _unknown_gpu(ctx, (event.spec,))
    if refusal is not None:
        ctx.answer(event.request, refusal)
        return
    if event.spec.site_id in ctx.state.sites:
        ctx.refuse(event.request, RefusalCode.CONFLICT, f"site {event.spec.site_id} exists: choose another name or remove it", "site_id")
        return
    record = SiteRecord(spec=event.spec, join_token_sha256=event.join_token_sha256, created_us=ctx.now_us, updated_us=ctx.now_us)
    site = Site(record=record)
    sites.declare_pools(ctx, site)
    ctx.state.sites[event.spec.site_id] = site
    ctx.save_site(site)
    ctx.columns.rebuild(list(ctx.state.sites.values()))
    ctx.queue.forget_pools()
    ctx.audit("site_added", f"site/{event.spec.site_id}", actor=event.actor, reason=event.reason)
    ctx.answer(event.request, Done(changed=(event.spec.site_id,)))


def _too_many(ctx: Context, more: int) -> Refusal | None:
    if len(ctx.state.sites) + more <= limits.SITES_MAX:
        return None
    return Refusal(code=RefusalCode.QUOTA, field="sites", message=f"a fleet has at most {limits.SITES_MAX} sites")


def _unknown_gpu(ctx: Context, specs: tuple[SiteSpec, ...]) -> Refusal | None:
    for spec in specs:
        for pool in spec.pools:
            if pool.gpu_type not in ctx.state.gpus:
                message = f"site {spec.site_id}, pool {pool.pool_id}: no GPU type {pool.gpu_type!r} in the catalogue"
                return Refusal(code=RefusalCode.INVALID, field="pools.gpu_type", message=message)
    return None


def _site(ctx: Context, request: RequestRef, site_id: SiteId) -> Site | None:
    site = ctx.state.sites.get(site_id)
    if site is None:
        ctx.refuse(request, RefusalCode.NOT_FOUND, f"no site {site_id!r}", "site_id")
    return site


def _set_admin(ctx: Context, site: Site, admin: SiteAdmin, reason: str) -> None:
    drain = site.record.drain if admin in (SiteAdmin.DRAINING, SiteAdmin.DRAINED) else None
    site.record = replace(site.record, admin=admin, reason=reason, drain=drain, updated_us=ctx.now_us)
    ctx.save_site(site)
    ctx.columns.refresh_site(site)


def cordoned(ctx: Context, event: SiteCordoned) -> None:
    """No new placements; nothing that runs is touched."""
    site = _site(ctx, event.request, event.site_id)
    if site is None:
        return
    if site.record.admin is SiteAdmin.CORDONED:
        ctx.answer(event.request, Done())
        return
    if site.record.admin is not SiteAdmin.OPEN:
        ctx.refuse(event.request, RefusalCode.WRONG_STATE, f"site {event.site_id} is {site.record.admin}: uncordon it first")
        return
    _set_admin(ctx, site, SiteAdmin.CORDONED, event.reason)
    ctx.audit("site_cordoned", f"site/{event.site_id}", actor=event.actor, reason=event.reason)
    ctx.answer(event.request, Done(changed=(event.site_id,)))


def uncordoned(ctx: Context, event: SiteUncordoned) -> None:
    """Back to open, from a cordon or a drain, finished or not."""
    site = _site(ctx, event.request, event.site_id)
    if site is None:
        return
    if site.record.admin is SiteAdmin.OPEN:
        ctx.answer(event.request, Done())
        return
    _set_admin(ctx, site, SiteAdmin.OPEN, event.reason)
    ctx.queue.wake_all()
    bettered.site_better(ctx, site, Bettering.UNCORDONED)
    ctx.audit("site_uncordoned", f"site/{event.site_id}", actor=event.actor, reason=event.reason)
    ctx.answer(event.request, Done(changed=(event.site_id,)))


def drain_requested(ctx: Context, event: SiteDrainRequested) -> None:
    """Begin a drain. A second one with another deadline is refused: it might break the promise of the first."""
    site = _site(ctx, event.request, event.site_id)
    if site is None:
        return
    if site.record.admin in (SiteAdmin.DRAINING, SiteAdmin.DRAINED):
        ctx.refuse(event.request, RefusalCode.WRONG_STATE, f"site {event.site_id} is {site.record.admin} already")
        return
    if not 0 <= event.deadline_ms <= limits.DEADLINE_MS_MAX:
        message = f"deadline_ms is {event.deadline_ms}: expected 0 to {limits.DEADLINE_MS_MAX}"
        ctx.refuse(event.request, RefusalCode.INVALID, message, "deadline_ms")
        return
    deadline_us = ctx.now_us + event.deadline_ms * 1_000
    detail = f"{count(len(site.attempts), 'attempt')} there, deadline in {event.deadline_ms / 1_000:g} s"
    ctx.audit("site_drain_started", f"site/{event.site_id}", actor=event.actor, reason=event.reason, detail=detail)
    drains.begin(ctx, site, Drain(deadline_us=deadline_us, started_us=ctx.now_us, reason=event.reason, actor=event.actor))
    ctx.answer(event.request, Done(changed=(event.site_id,)))


def remove_requested(ctx: Context, event: SiteRemoveRequested) -> None:
    """Forget an empty site; with `force` settle what is there first."""
    site = _site(ctx, event.request, event.site_id)
    if site is None:
        return
    if not event.force and (site.attempts or site.record.admin is SiteAdmin.DRAINING):
        held = f"still holds {count(len(site.attempts), 'attempt')}" if site.attempts else "is draining"
        message = f"site {event.site_id} {held}: drain it first and wait for that, or use --force to give up what is there"
        ctx.refuse(event.request, RefusalCode.WRONG_STATE, message)
        return
    if not event.force and site.record.admin is not SiteAdmin.DRAINED and site.record.joined_us:
        message = f"site {event.site_id} is {site.record.admin}: drain it first (atoll sites drain), or use --force"
        ctx.refuse(event.request, RefusalCode.WRONG_STATE, message)
        return
    site.record = replace(site.record, admin=SiteAdmin.REMOVED)
    ctx.columns.refresh_site(site)
    pins.forget_site(ctx, site)
    orphans = len(site.attempts)
    leases.settle_all(ctx, site, f"site {event.site_id} was removed")
    if site.session is not None:
        gone = Refusal(code=RefusalCode.NOT_FOUND, field="site_id", message=f"site {event.site_id} was removed: {event.reason}")
        ctx.commands.append(CloseSession(site_id=event.site_id, session=site.session, refusal=gone))
    del ctx.state.sites[event.site_id]
    dangling = [key for key in ctx.state.links if event.site_id in key]
    for key in dangling:
        del ctx.state.links[key]
    if dangling:
        _save_links(ctx)
    ctx.records.append(DeleteSite(site_id=event.site_id))
    ctx.commands.append(PublishSiteRemoved(site_id=event.site_id))
    ctx.columns.rebuild(list(ctx.state.sites.values()))
    ctx.queue.forget_pools()
    detail = f"{count(orphans, 'attempt was', 'attempts were')} given up" if orphans else ""
    ctx.audit("site_removed", f"site/{event.site_id}", actor=event.actor, reason=event.reason, detail=detail)
    ctx.answer(event.request, Done(changed=(event.site_id,)))
