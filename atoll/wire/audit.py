"""Lines of the audit <-> messages."""

from __future__ import annotations

from atoll.model import limits
from atoll.model.audit import AuditEvent
from atoll.model.ids import ChangeSeq
from atoll.v1 import types_pb2 as pb
from atoll.wire import bounds
from atoll.wire.enums import SEVERITY_FROM, SEVERITY_TO, member


def audit_event_to_proto(event: AuditEvent) -> pb.AuditEvent:
    """One line of the fleet's history."""
    return pb.AuditEvent(
        seq=event.seq,
        at_us=event.at_us,
        severity=SEVERITY_TO[event.severity],
        actor=event.actor,
        verb=event.verb,
        subject=event.subject,
        reason=bounds.line(event.reason),
        detail=bounds.line(event.detail),
        written_ms=event.written_ms,
    )


def audit_event_from_proto(msg: pb.AuditEvent) -> AuditEvent:
    """FieldError naming the figure that cannot be."""
    return AuditEvent(
        seq=ChangeSeq(bounds.number("seq", msg.seq, 0, bounds.COUNT_MAX)),
        at_us=bounds.instant("at_us", msg.at_us),
        severity=member("severity", SEVERITY_FROM, msg.severity),
        actor=bounds.label("actor", msg.actor),
        verb=bounds.label("verb", msg.verb),
        subject=bounds.label("subject", msg.subject),
        reason=bounds.line(msg.reason),
        detail=bounds.line(msg.detail),
        written_ms=bounds.number("written_ms", msg.written_ms, 0, limits.WALL_MS_MAX),
    )
