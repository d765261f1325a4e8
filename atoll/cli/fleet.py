"""`atoll fleet`: everything in one look."""

from __future__ import annotations

from typing import Final

import typer

from atoll.cli.figures import count, duration
from atoll.cli.output import Form, plain, printable, say, show_plain
from atoll.cli.session import session, verb
from atoll.model.views import AlarmKind, FleetView

# A screen has room for them beside the rest.
_ALARMS_SHOWN: Final = 10
_ALARMS: Final = {
    AlarmKind.LOSSES_BRAKED: "most sites fell silent at once, so nothing is given up: look at the orchestrator's own network first",
    AlarmKind.GATE_FAILS: "predictions of {subject} are off: 'atoll costs calibrate' says by how much",
    AlarmKind.JOBS_IN_VAIN: "{jobs} for {subject} in vain: no site can ever run {them}, 'atoll jobs explain JOB' says why",
    AlarmKind.SITE_SILENT: "site {subject} is silent and gets no new work{since}",
    AlarmKind.SITE_LOST: "site {subject} is lost, its work was given up{since}",
    AlarmKind.BREAKER_OPEN: "pool {subject} takes no new work: attempts kept failing there, 'atoll events' says of what",
}


def register(root: typer.Typer) -> None:
    """Add the verb to the command."""
    verb(
        root,
        "fleet",
        epilog="""
        atoll fleet
        atoll fleet -o json
        """,
    )(fleet)


def fleet() -> None:
    """The fleet in one look: sites, GPUs, jobs, and what is amiss."""
    form = session().form
    with session().client() as client:
        view = client.fleet()
        address = client.settings.shown_address
    match form:
        case Form.JSON | Form.YAML:
            show_plain(form, plain(view))
        case Form.NAME:
            say(f"fleet/{view.fleet_id}")
        case Form.TABLE | Form.WIDE:
            scale = "" if view.time_scale_milli == 1_000 else f", running {view.time_scale_milli / 1_000:g} times as fast as real time"
            say(f"fleet/{view.fleet_id} at {address}, term {view.term}, fleet time {duration(view.now_us)}{scale}")
            most = len(view.alarms) if form is Form.WIDE else _ALARMS_SHOWN
            dark = bool(view.alarms) and view.sites > 0 and not view.sites_connected
            if dark:  # nothing runs: what is amiss is what everybody has to read
                _say_alarms(view, most)
            say(f"  {count(view.sites, 'site')}, {view.sites_connected} connected")
            say(f"  {count(view.gpus, 'GPU')}, {view.gpus_used} at work")
            if view.policy:
                say(f"  policy {view.policy}, {view.policy_digest}")
            say(f"  {count(view.jobs_queued, 'job')} queued, {view.jobs_live} at sites, {view.jobs_ended} ended")
            if not dark:
                _say_alarms(view, most)


def _say_alarms(view: FleetView, most: int) -> None:
    if not view.alarms:
        say("  no alarms")
        return
    say(f"  {count(len(view.alarms), 'alarm')}:")
    for one in view.alarms[:most]:
        since = f", last heard of {duration(max(view.now_us - one.since_us, 0))} ago" if one.since_us else ""
        jobs, them = ("1 job waits", "it") if one.jobs == 1 else (f"{one.jobs} jobs wait", "them")
        say(f"    {printable(_ALARMS[one.kind].format(subject=one.subject, since=since, jobs=jobs, them=them))}")
    if len(view.alarms) > most:
        say(f"    and {len(view.alarms) - most} more: -o wide shows all of them")
