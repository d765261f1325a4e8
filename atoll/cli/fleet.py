"""`atoll fleet`: everything in one look."""

from __future__ import annotations

import typer

from atoll.cli.figures import count, duration
from atoll.cli.output import Form, plain, say, show_plain
from atoll.cli.session import session, verb


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
    """The fleet in one look: sites, GPUs, jobs."""
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
            say(f"  {count(view.sites, 'site')}, {view.sites_connected} connected")
            say(f"  {count(view.gpus, 'GPU')}, {view.gpus_used} at work")
            if view.policy:
                say(f"  policy {view.policy}, {view.policy_digest}")
            say(f"  {count(view.jobs_queued, 'job')} queued, {view.jobs_live} live, {view.jobs_ended} ended")
