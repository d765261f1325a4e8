"""What operators ask of learned estimates: see them, see whether they may be believed, have them forgotten.

Decides what a request may name. Must not know how estimates are learned.
"""

from __future__ import annotations

from collections.abc import Callable

from atoll.model.ids import ModelId, parse_name
from atoll.v1 import operator_service_pb2 as pb
from atoll.wire.jobs import checked_reason
from atoll.wire.learned import calibration_to_proto, component_from_text, residual_to_proto, site_from_text
from orchestrator.api.status import not_found
from orchestrator.core.events import EstimatesResetRequested, RequestRef
from orchestrator.core.learning.report import ROWS_MAX
from orchestrator.core.machine import Machine


def list_residuals(machine: Machine, request: pb.ListResidualsRequest, now_us: int) -> pb.ListResidualsResponse:
    """A line per cell."""
    site_id = site_from_text("site_id", request.site_id)
    model_id = ModelId(parse_name("model_id", request.model_id)) if request.model_id else None
    component = component_from_text("component", request.component)
    rows = machine.residuals(component=component, site_id=site_id, model_id=model_id)
    if not rows:
        # What was learned of one that has been removed is shown; of one that never was there is nothing to learn.
        state = machine.context.state
        if site_id is not None and site_id not in state.sites:
            raise not_found("site", site_id, state.sites)
        if model_id is not None and model_id not in state.models:
            raise not_found("model", model_id, state.models)
    return pb.ListResidualsResponse(residuals=map(residual_to_proto, rows), truncated=len(rows) >= ROWS_MAX, now_us=now_us)


def get_calibration(machine: Machine) -> pb.Calibration:
    """Gates and quotes."""
    return calibration_to_proto(machine.calibration())


def reset(request: pb.ResetEstimatesRequest, actor: str) -> Callable[[RequestRef], EstimatesResetRequested]:
    """What the core is asked for."""
    component = component_from_text("component", request.component)
    site_id = site_from_text("site_id", request.site_id)
    reason = checked_reason("reason", request.reason)
    return lambda ref: EstimatesResetRequested(request=ref, actor=actor, reason=reason, component=component, site_id=site_id)
