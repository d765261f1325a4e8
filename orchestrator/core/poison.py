"""Poison: a job that takes the process of its slot with it wherever it goes is tried no more, whatever is left of its budgets.

Decides when it is the job. A process that dies loses what it held, for everybody behind it; a job that has killed two, each at another site
and each alone, is not the places' bad luck: where a node, a driver or a fleet's restart kills, others are struck too. Soft: a new
leader has seen no deaths, and finds out anew within the budget of the cause. Must not know why processes die.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from atoll.model.attempt import Failure, FailureKind
from atoll.model.audit import Severity
from atoll.model.ids import AttemptKey, SiteId
from atoll.model.job import Job
from orchestrator.core.context import Context
from orchestrator.core.health import Struck
from orchestrator.core.state import Site

# Two sites: one may have a broken node, and the third process would be lost to learn what two have told.
_SITES: Final = 2
# Others that die so near, before or after, die of what strikes the site: as long as a node or a raylet takes to go down, with room.
_COMPANY_US: Final = 60_000_000
# Deaths that a site remembers. A job is tried elsewhere within a minute or so; more deaths than these since then are the site's.
_STRUCK_MAX: Final = 64


def struck(ctx: Context, site: Site, keys: Iterable[AttemptKey]) -> None:
    """The processes that worked for these attempts died."""
    found = tuple(Struck(at_us=ctx.now_us, key=key) for key in keys)
    if found:
        site.struck = (*site.struck, *found)[-_STRUCK_MAX:]


def verdict(ctx: Context, job: Job, failure: Failure) -> Failure | None:
    """Why a job that has just failed is tried no more, if it is poison. The history of the fleet says so too."""
    if failure.kind is not FailureKind.RUNTIME_LOST:
        return None
    sites = _killed_alone(ctx, job)
    if len(sites) < _SITES:
        return None
    where = " and ".join(sites)
    ctx.audit(
        "job_poisoned",
        f"job/{job.job_id}",
        severity=Severity.WARNING,
        detail=f"model {job.spec.model_id}, tenant {job.spec.tenant}: its process died at {where}, and no other; not tried again",
    )
    message = f"poison: the process that worked for it died at {where}, and no other there; it is not tried again ({failure.message})"
    return Failure(kind=failure.kind, message=message)


def _killed_alone(ctx: Context, job: Job) -> list[SiteId]:
    """Sites where a process died of this job's attempt while those that worked for other jobs lived on."""
    found = dict[SiteId, None]()
    for attempt in job.attempts:
        site = ctx.state.sites.get(attempt.site_id)
        mine = next((one for one in site.struck if one.key == attempt.key), None) if site is not None else None
        if site is not None and mine is not None and not any(_accompanies(other, mine) for other in site.struck):
            found[site.site_id] = None
    return list(found)


def _accompanies(other: Struck, mine: Struck) -> bool:
    return other.key.job_id != mine.key.job_id and abs(other.at_us - mine.at_us) <= _COMPANY_US
