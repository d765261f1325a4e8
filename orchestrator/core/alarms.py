"""What a person on call should know of the fleet as it is now, beside what happened: that is in the audit.

Decides what is amiss, and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Final

from atoll.model.ids import ModelId
from atoll.model.limits import ALARMS_MAX
from atoll.model.site import SiteConnection
from atoll.model.views import Alarm, AlarmKind
from orchestrator.core.context import Context
from orchestrator.core.learning import report

# A few milliseconds; more classes than that wait only where most of them wait for their turn.
_CLASSES_MAX: Final = 10_000
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
    found += [Alarm(kind=AlarmKind.JOBS_IN_VAIN, subject=model_id, jobs=jobs) for model_id, jobs in sorted(_in_vain(ctx).items())]
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


def _in_vain(ctx: Context) -> Counter[ModelId]:
    """Jobs that no site can ever run as they are, by model, as far as classes of jobs have been looked at."""
    found: Counter[ModelId] = Counter()
    for key, waiting in islice(ctx.queue.classes.items(), _CLASSES_MAX):
        if ctx.state.jobs[waiting.head[1]].job.waits_in_vain:
            found[key.model_id] += len(waiting.members)
    return found
