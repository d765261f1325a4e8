"""The outbox: numbered ends of attempts, kept until acknowledged.

Decides what is sent when. Every message begins with the first event that is not acknowledged, so that an acknowledgement of one event
proves the arrival of all before it, whatever the stream lost.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from agents.core.context import Context
from agents.core.outputs import OutboxAppended, OutboxTrimmed, SendEvents
from agents.core.state import State
from atoll.model.attempt import AttemptState, Failure, PhaseTimes, ResultManifest
from atoll.model.ids import AttemptKey, EventSeq
from atoll.model.report import AttemptEvent

# Events in flight. 64 manifests of 64 artifacts stay below gRPC's 4 MiB; at 50 ms a round trip they are 1,280 ends a second.
WINDOW: Final = 64
# An event unacknowledged for this long is sent again: a commit takes milliseconds, a lost message is lost.
RESEND_US: Final = 3_000_000


def append(
    ctx: Context,
    key: AttemptKey,
    state: AttemptState,
    *,
    manifest: ResultManifest | None = None,
    failure: Failure | None = None,
    times: PhaseTimes | None = None,
) -> None:
    """The attempt ended: said once, and never run again here."""
    machine = ctx.state
    event = AttemptEvent(seq=machine.next_event_seq, key=key, state=state, manifest=manifest, failure=failure, times=times or PhaseTimes())
    machine.next_event_seq = EventSeq(event.seq + 1)
    machine.outbox[event.seq] = event
    machine.ended[key] = None
    machine.finished.pop(key, None)
    ctx.records.append(OutboxAppended(event=event))


def acknowledged(ctx: Context, acked_event_seq: EventSeq) -> None:
    """The orchestrator has everything up to this event durably: forget it."""
    state = ctx.state
    gone = [seq for seq in state.outbox if seq <= acked_event_seq]
    if not gone:
        return
    for seq in gone:
        key = state.outbox.pop(seq).key
        if key not in state.listed:
            state.ended.pop(key, None)
    ctx.records.append(OutboxTrimmed(acked_event_seq=EventSeq(gone[-1])))
    state.events_sent_us = ctx.now_us


def forget_ended(state: State) -> None:
    """Attempts that ended here and that nobody names any more need not be remembered."""
    unacknowledged = {event.key for event in state.outbox.values()}
    state.ended = {key: None for key in state.ended if key in state.listed or key in unacknowledged}


def resend_us(state: State) -> int:
    """How long an acknowledgement may take, fleet time: a commit takes real time, however fast the fleet's runs."""
    return max(RESEND_US, state.scale_milli * 1_000)


def flush(ctx: Context) -> None:
    """Send what was not sent in this session yet, or not acknowledged for too long."""
    state = ctx.state
    if not state.connected or not state.outbox:
        return
    window = tuple(islice(state.outbox.values(), WINDOW))
    fresh = window[-1].seq > state.sent_event_seq
    overdue = ctx.now_us >= state.events_sent_us + resend_us(state)
    if fresh or overdue:
        state.sent_event_seq = max(state.sent_event_seq, window[-1].seq)
        state.events_sent_us = ctx.now_us
        ctx.commands.append(SendEvents(events=window))
