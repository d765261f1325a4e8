"""`atoll events`: the history of the fleet."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from atoll.cli import arguments
from atoll.cli.figures import duration, local_time, rfc3339
from atoll.cli.output import Column, Form, Listing, note, plain, printable, say, show_list, show_plain
from atoll.cli.session import session, verb
from atoll.model import limits
from atoll.model.audit import AuditEvent

if TYPE_CHECKING:
    from collections.abc import Iterable

# Some screens: what happened lately. All of a fleet's history is a million lines.
_SHOWN: Final = 200

EVENTS: Listing[AuditEvent] = Listing(
    kind="event",
    ref=lambda event: str(event.seq),
    columns=(
        Column(title="SEQ", cell=lambda event: str(event.seq), right=True),
        Column(title="TIME", cell=lambda event: local_time(event.written_ms)),
        Column(title="FLEET TIME", cell=lambda event: duration(event.at_us), right=True, wide=True),
        Column(title="SEVERITY", cell=lambda event: event.severity.value),
        Column(title="ACTOR", cell=lambda event: event.actor),
        Column(title="WHAT", cell=lambda event: event.verb.replace("_", " ")),
        Column(title="SUBJECT", cell=lambda event: event.subject),
        Column(title="REASON", cell=lambda event: event.reason),
        Column(title="DETAIL", cell=lambda event: event.detail),
    ),
)


def register(root: typer.Typer) -> None:
    """Add the verb to the command."""
    verb(
        root,
        "events",
        epilog="""
        atoll events
        atoll events --limit 20
        atoll events --follow --after 1200
        atoll events --follow -o json  # one JSON object a line
        """,
    )(events)


def events(
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as things happen, until interrupted.")] = False,
    after: Annotated[str | None, typer.Option("--after", metavar="SEQ", help="Only what comes after this number.")] = None,
    limit: Annotated[
        str | None,
        typer.Option("--limit", metavar="N", help="The last so many of what there is; 0: all. Default: 200, with --after all."),
    ] = None,
) -> None:
    """Who did what to the fleet, when and why; and what it did by itself that a person should know.

    Times are shown in this machine's time zone; with -o json or yaml `time` is RFC 3339 in UTC, and `at_us` fleet time. -o wide has both.
    """
    after_seq = arguments.whole("--after", after, 0, 2**61)
    most = arguments.whole("--limit", limit, 0, limits.AUDIT_LINES_MAX, default=0 if after is not None else _SHOWN)
    form = session().form
    with session().client() as client:
        if follow:
            _follow(form, client.events(after_seq=after_seq, limit=most, follow=True))
            return
        # One more than is shown, to know whether there are more.
        found = list(client.events(after_seq=after_seq, limit=min(most + 1, limits.AUDIT_LINES_MAX) if most else 0))
    more = bool(most) and len(found) > most
    _show(form, found[-most:] if more else found)
    if more:
        # In every form: a program would take them for all.
        note(f"there are more than {most}: these are the last; --limit 0 lists all")


def _show(form: Form, found: Iterable[AuditEvent]) -> None:
    if form in {Form.JSON, Form.YAML}:
        show_plain(form, [_plain(event) for event in found])
    else:
        show_list(form, EVENTS, found, empty="nothing has happened")


def _plain(event: AuditEvent) -> dict[str, Any]:
    """The line with the names of its fields, and when it was written as RFC 3339."""
    return {**plain(event), "time": rfc3339(event.written_ms)}


def _follow(form: Form, found: Iterable[AuditEvent]) -> None:
    """A line for each event, at once; columns have no common width, as nobody knows what comes."""
    for event in found:
        match form:
            case Form.JSON:
                say(json.dumps(_plain(event)))
            case Form.YAML:
                say("---")
                for name, value in _plain(event).items():
                    say(f"{name}: {json.dumps(value)}")
            case Form.NAME:
                say(f"event/{event.seq}")
            case Form.TABLE | Form.WIDE:
                why = f" ({event.reason})" if event.reason else ""
                detail = f": {event.detail}" if event.detail else ""
                loud = "" if event.severity.value == "info" else f"{event.severity.value.upper()} "
                what = event.verb.replace("_", " ")
                say(printable(f"{event.seq:>6}  {local_time(event.written_ms)}  {loud}{event.actor}: {what} {event.subject}{why}{detail}"))
        sys.stdout.flush()
