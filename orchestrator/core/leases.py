"""Silence and loss: suspect before lost, and lose nothing while most of the fleet is silent.

Decides when a site is silent, when an attempt at it is given up, and when not to. Must not know why a site is silent.
"""

from __future__ import annotations

from atoll.model.audit import Severity
from atoll.model.ids import SiteId
from atoll.model.site import SiteConnection
from atoll.model.words import count
from orchestrator.core import attempts, drains
from orchestrator.core.context import Context, TimerKind
from orchestrator.core.state import LiveAttempt, Site


def heard(ctx: Context, site: Site) -> None:
    """The site spoke: its attempts' leases are renewed by that."""
    site.last_heard_us = ctx.now_us
    if site.connection is SiteConnection.CONNECTED:
        return
    was = site.connection
    site.connection = SiteConnection.CONNECTED
    ctx.arm(ctx.now_us + ctx.policy.silent_after_ms * 1_000, TimerKind.SITE_SILENCE, site.site_id)
    if was is not None:
        ctx.audit("site_heard_again", f"site/{site.site_id}", detail=f"was {was}")


def took_over(ctx: Context) -> None:
    """All silence counts from now: nobody is blamed for what this process did not hear."""
    for site in ctx.state.sites.values():
        site.last_heard_us = ctx.now_us
        if site.attempts:
            site.connection = SiteConnection.SILENT
            ctx.arm(ctx.now_us + ctx.policy.lost_after_min_ms * 1_000, TimerKind.SITE_LOSSES, site.site_id)


def silence_due(ctx: Context, site_id: SiteId) -> None:
    """Has the site been silent for long enough to be suspected?"""
    site = ctx.state.sites.get(site_id)
    if site is None or site.connection is not SiteConnection.CONNECTED:
        return
    silent_us = site.last_heard_us + ctx.policy.silent_after_ms * 1_000
    if ctx.now_us < silent_us:
        ctx.arm(silent_us, TimerKind.SITE_SILENCE, site_id)
        return
    site.connection = SiteConnection.SILENT
    ctx.columns.refresh_site(site)
    ctx.audit("site_silent", f"site/{site_id}", severity=Severity.WARNING, detail=f"{count(len(site.attempts), 'attempt')} there")
    ctx.arm(site.last_heard_us + ctx.policy.lost_after_min_ms * 1_000, TimerKind.SITE_LOSSES, site_id)


def losses_due(ctx: Context, site_id: SiteId) -> None:
    """Give up the attempts whose time is over, unless the silence is so wide that it is likely ours."""
    site = ctx.state.sites.get(site_id)
    if site is None or site.connection is not SiteConnection.SILENT:
        return
    if _braked(ctx):
        ctx.arm(ctx.now_us + ctx.policy.brake_recheck_ms * 1_000, TimerKind.SITE_LOSSES, site_id)
        return
    waiting = [live for live in site.attempts.values() if not live.given_up]
    next_us = 0
    for live in waiting:
        over_us = site.last_heard_us + live.lost_after_us
        if over_us <= ctx.now_us:
            silence_s = (ctx.now_us - site.last_heard_us) // 1_000_000
            attempts.give_up(ctx, site, live, f"site {site_id} has been silent for {silence_s} s")
        else:
            next_us = min(next_us, over_us) if next_us else over_us
    if next_us:
        ctx.arm(next_us, TimerKind.SITE_LOSSES, site_id)
        return
    over_us = site.last_heard_us + ctx.policy.lost_after_min_ms * 1_000
    if ctx.now_us < over_us:
        ctx.arm(over_us, TimerKind.SITE_LOSSES, site_id)
        return
    site.connection = SiteConnection.LOST
    ctx.audit("site_lost", f"site/{site_id}", severity=Severity.ALARM, detail=f"{count(len(waiting), 'attempt')} to be placed elsewhere")
    drains.advance(ctx, site)


def _braked(ctx: Context) -> bool:
    """Whether most of the fleet fell silent at once. Says so once, and once when it is over."""
    known = [site for site in ctx.state.sites.values() if site.connection in (SiteConnection.CONNECTED, SiteConnection.SILENT)]
    silent = sum(1 for site in known if site.connection is SiteConnection.SILENT)
    braked = silent >= ctx.policy.brake_sites_min and silent * 2 > len(known)
    if braked != ctx.state.braked:
        ctx.state.braked = braked
        verb = "losses_braked" if braked else "losses_released"
        severity = Severity.ALARM if braked else Severity.INFO
        ctx.audit(verb, "fleet", severity=severity, detail=f"{silent} of {len(known)} sites are silent: no losses are declared")
    return braked


def lost_after_us(ctx: Context, predicted_us: int) -> int:
    """How long a site may be silent before an attempt predicted to take this long is given up."""
    policy = ctx.policy
    return min(max(2 * predicted_us, policy.lost_after_min_ms * 1_000), policy.lost_after_max_ms * 1_000)


def settle_all(ctx: Context, site: Site, message: str) -> None:
    """Settle every attempt of a site that is being removed: lost to its job, and nothing is held any more."""
    lives: list[LiveAttempt] = list(site.attempts.values())
    for live in lives:
        if not live.given_up:
            attempts.give_up(ctx, site, live, message)
        else:
            attempts.never_told(ctx, site, live, message)
        attempts.release(ctx, site, live)
