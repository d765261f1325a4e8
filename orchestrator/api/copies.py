"""What operators ask of copies: push, pin, unpin, where.

Decides what a request may name. Must not know where copies go.
"""

from __future__ import annotations

from collections.abc import Callable

from atoll.model import limits
from atoll.model.ids import ModelId, SiteId, parse_name
from atoll.v1 import operator_service_pb2 as pb
from atoll.wire.bounds import COUNT_MAX, label, number
from atoll.wire.residency import places_to_proto, push_plan_to_proto, tier_from_proto
from orchestrator.core.events import ModelPinned, ModelPushed, ModelUnpinned, RequestRef
from orchestrator.core.machine import Machine
from orchestrator.core.outputs import Refusal
from orchestrator.refusals import RefusedError


def model_of(value: str) -> ModelId:
    """The model that a request names."""
    return ModelId(parse_name("model_id", value))


def plan(machine: Machine, request: pb.PushModelRequest, now_us: int) -> pb.PushPlan:
    """What a push would do. RefusedError when it cannot be."""
    sites = number("sites", request.sites, 1, COUNT_MAX)
    found = machine.plan_push(model_of(request.model_id), sites, number("warm", request.warm, 0, COUNT_MAX), now_us)
    if isinstance(found, Refusal):
        raise RefusedError(found)
    return push_plan_to_proto(found)


def push(request: pb.PushModelRequest, actor: str) -> Callable[[RequestRef], ModelPushed]:
    """What the core is asked for."""
    model_id, reason = model_of(request.model_id), _reason(request.reason)
    return lambda ref: ModelPushed(request=ref, actor=actor, reason=reason, model_id=model_id, sites=request.sites, warm=request.warm)


def pin(request: pb.PinModelRequest, actor: str) -> Callable[[RequestRef], ModelPinned]:
    """What the core is asked for."""
    model_id, reason = model_of(request.model_id), _reason(request.reason)
    site_id, tier = SiteId(parse_name("site_id", request.site_id)), tier_from_proto("tier", request.tier)
    return lambda ref: ModelPinned(request=ref, actor=actor, reason=reason, model_id=model_id, site_id=site_id, tier=tier)


def unpin(request: pb.UnpinModelRequest, actor: str) -> Callable[[RequestRef], ModelUnpinned]:
    """What the core is asked for."""
    model_id, reason = model_of(request.model_id), _reason(request.reason)
    site_id = SiteId(parse_name("site_id", request.site_id))
    return lambda ref: ModelUnpinned(request=ref, actor=actor, reason=reason, model_id=model_id, site_id=site_id)


def where(machine: Machine, model_id: ModelId, now_us: int, *, events: bool) -> pb.ModelPlaces:
    """Where a model is and should be."""
    return places_to_proto(machine.model_places(model_id, now_us, events=events))


def _reason(value: str) -> str:
    return label("reason", value, limits.REASON_CHARS_MAX)
