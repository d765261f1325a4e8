"""A drain as text: what would move where, when the site is empty, and the wait until it is.

Decides the wording.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

from atoll.cli.exits import CliError, Exit
from atoll.cli.figures import NONE, count, duration
from atoll.cli.output import note, say, table
from atoll.model.site import SiteAdmin

if TYPE_CHECKING:
    from atoll.client import Client, DrainStarted
    from atoll.model.views import DrainMove

# Drains take minutes; a person does not see whether the end is noticed half a second late.
_POLL_S: Final = 0.5
_ACTIONS: Final = {
    "wait": "runs on and ends in time",
    "move": "moves now: it has not begun",
    "stop_at_deadline": "is stopped at the deadline and starts again elsewhere",
}
# The same where the fleet has no other place for it.
_NOWHERE: Final = {
    "move": "goes back to the queue now: no other place may take it",
    "stop_at_deadline": "is stopped at the deadline and goes back to the queue: no other place may take it",
}


def demand_reason(reason: str) -> None:
    """CliError unless a reason was given."""
    if not reason.strip():
        hint = 'for example --reason "switch replaced"'
        raise CliError("--reason is missing: expected why this is done, for the audit", code=Exit.USAGE, hint=hint)


def show_plan(started: DrainStarted) -> None:
    """Print what a drain does, or would do."""
    plan, now_us = started.plan, started.now_us
    would = "would be " if started.dry_run else "will be "
    say(f"site/{plan.site_id} {would}drained within {duration(max(plan.deadline_us - now_us, 0))}")
    if not plan.moves:
        say("  nothing runs there")
    else:
        rows = [
            [f"job/{move.job_id}", _what_happens(move), move.to_site or NONE, duration(max(move.ends_us - now_us, 0))]
            for move in plan.moves
        ]
        table(["JOB", "WHAT HAPPENS", "TO", "LEAVES IN"], rows, frozenset({3}), indent="  ")
    empty = duration(max(plan.predicted_end_us - now_us, 0))
    say(f"  {count(len(plan.moves), 'job')}; predicted to be empty in {empty}")
    for model in plan.last_warm:
        say(f"  {model} is warm nowhere else: its next job starts cold")


def _what_happens(move: DrainMove) -> str:
    nowhere = _NOWHERE.get(move.action) if move.to_site is None else None
    return nowhere or _ACTIONS.get(move.action, move.action)


def wait_until_drained(client: Client, site_id: str) -> None:
    """Return once the site is empty. CliError when somebody ends the drain meanwhile."""
    last = -1
    while True:
        view = client.sites_get(site_id)
        if view.admin is SiteAdmin.DRAINED:
            say(f"site/{site_id} drained")
            return
        if view.admin is not SiteAdmin.DRAINING:
            raise CliError(f"site {site_id} is {view.admin}: somebody ended the drain", code=Exit.CONFLICT)
        if view.live_attempts != last:
            last = view.live_attempts
            note(f"site/{site_id} draining, {count(last, 'job')} left")
        sys.stdout.flush()
        time.sleep(_POLL_S)
