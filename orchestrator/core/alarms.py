"""What a person on call should know of the fleet as it is now, beside what happened: that is in the audit.

Decides what is amiss, and changes nothing.
"""

from __future__ import annotations

from typing import Final

from atoll.model.limits import ALARMS_MAX
from atoll.model.site import SiteConnection
from atoll.model.views import Alarm, AlarmKind
from orchestrator.core.context import Context
from orchestrator.core.learning import report

_QUIET: Final = {SiteConnection.SILENT: AlarmKind.SITE_SILENT, SiteConnection.LOST: AlarmKind.SITE_LOST}


def alarms(ctx: Context) -> tuple[Alarm, ...]:
    """What is amiss, of the fleet as a whole before its sites; as many as one answer holds."""
    found: list[Alarm] = []
    if ctx.state.braked:
        found.append(Alarm(kind=AlarmKind.LOSSES_BRAKED, subject="fleet"))
    found += [
        Alarm(kind=AlarmKind.GATE_FAILS, subject=gate.name)
        for gate in report.calibration(ctx.book).gates
        if gate.enough and not gate.passed
    ]
    for site_id, site in sorted(ctx.state.sites.items()):
        if len(found) >= ALARMS_MAX:
            break
        if site.connection in _QUIET:
            found.append(Alarm(kind=_QUIET[site.connection], subject=site_id, since_us=site.last_heard_us))
        found += [
            Alarm(kind=AlarmKind.BREAKER_OPEN, subject=f"{site_id}/{pool_id}")
            for pool_id, breaker in sorted(site.breakers.items())
            if breaker.until_us
        ]
    return tuple(found[:ALARMS_MAX])
