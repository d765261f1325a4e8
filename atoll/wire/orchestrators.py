"""Who leads and who stands by <-> messages."""

from __future__ import annotations

from atoll.model.ids import Term
from atoll.model.limits import WALL_MS_MAX
from atoll.model.orchestrators import OrchestratorView
from atoll.v1 import operator_service_pb2 as pb
from atoll.wire import bounds
from atoll.wire.enums import ORCHESTRATOR_ROLE_FROM, ORCHESTRATOR_ROLE_TO, member


def orchestrator_view_to_proto(view: OrchestratorView) -> pb.OrchestratorView:
    """An orchestrator as it is now."""
    return pb.OrchestratorView(
        name=view.name,
        address=view.address,
        role=ORCHESTRATOR_ROLE_TO[view.role],
        term=view.term,
        since_ms=view.since_ms,
        last_beat_ms=view.last_beat_ms,
        lag_ms=view.lag_ms,
        process=view.process,
        version=view.version,
    )


def orchestrator_view_from_proto(msg: pb.OrchestratorView) -> OrchestratorView:
    """FieldError naming the figure that cannot be."""
    return OrchestratorView(
        name=bounds.label("name", msg.name),
        address=bounds.label("address", msg.address, bounds.URL_CHARS),
        role=member("role", ORCHESTRATOR_ROLE_FROM, msg.role),
        term=Term(bounds.number("term", msg.term, 0, bounds.COUNT_MAX)),
        since_ms=bounds.number("since_ms", msg.since_ms, 0, WALL_MS_MAX),
        last_beat_ms=bounds.number("last_beat_ms", msg.last_beat_ms, 0, bounds.TIME_MS_MAX),
        lag_ms=bounds.number("lag_ms", msg.lag_ms, 0, bounds.TIME_MS_MAX) if msg.HasField("lag_ms") else None,
        process=bounds.label("process", msg.process),
        version=bounds.label("version", msg.version),
    )
