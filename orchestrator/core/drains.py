"""Drains: a cordon with an end. Work that has not begun is moved, running work goes on until the deadline, then it is moved too.

Decides when a site is empty. Must not kill anything before the stored deadline.
"""

from __future__ import annotations

from dataclasses import replace

from atoll.model.attempt import FailureKind
from atoll.model.ids import SiteId
from atoll.model.site import Drain, SiteAdmin, SiteConnection
from orchestrator.core import attempts
from orchestrator.core.context import Context, TimerKind
from orchestrator.core.state import Site


def begin(ctx: Context, site: Site, drain: Drain) -> None:
    """Start draining: durable with its deadline, no new placements, what has not begun is moved."""
    site.record = replace(site.record, admin=SiteAdmin.DRAINING, drain=drain, reason=drain.reason, updated_us=ctx.now_us)
    ctx.save_site(site)
    ctx.columns.refresh_site(site)
    ctx.arm(drain.deadline_us, TimerKind.DRAIN_DEADLINE, site.site_id)
    for live in list(site.attempts.values()):
        if not live.begun:
            attempts.stop(ctx, site, live, FailureKind.MOVED, f"site {site.site_id} drains")
    advance(ctx, site)


def deadline_reached(ctx: Context, site_id: SiteId) -> None:
    """Stop what still runs at a draining site whose stored deadline has passed."""
    site = ctx.state.sites.get(site_id)
    if site is None or site.record.admin is not SiteAdmin.DRAINING or site.record.drain is None:
        return
    if ctx.now_us < site.record.drain.deadline_us:
        return
    for live in list(site.attempts.values()):
        attempts.stop(ctx, site, live, FailureKind.MOVED, f"site {site_id} reached the deadline of its drain")
    advance(ctx, site)


def advance(ctx: Context, site: Site) -> None:
    """A draining site without attempts is drained. At a lost site, attempts that were given up count as ended."""
    if site.record.admin is not SiteAdmin.DRAINING:
        return
    if site.connection is SiteConnection.LOST:
        for live in [live for live in site.attempts.values() if live.given_up]:
            attempts.never_told(ctx, site, live, f"site {site.site_id} was lost while it drained")
            attempts.release(ctx, site, live)
    if site.attempts:
        return
    site.record = replace(site.record, admin=SiteAdmin.DRAINED, updated_us=ctx.now_us)
    ctx.save_site(site)
    ctx.columns.refresh_site(site)
    ctx.audit("site_drained", f"site/{site.site_id}", reason=site.record.reason)
