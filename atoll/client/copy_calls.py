"""The methods of OperatorService about copies of models, as values.

Decides which of them may be repeated: reads, and those that declare a state rather than change one.
"""

from __future__ import annotations

from atoll.client.calls import OPERATOR, Call, argument, whole
from atoll.model.ids import parse_name
from atoll.model.replica import Tier
from atoll.model.residency import ModelPlaces, PushPlan
from atoll.v1 import operator_service_pb2 as pb
from atoll.wire import bounds
from atoll.wire.enums import TIER_TO
from atoll.wire.residency import places_from_proto, push_plan_from_proto


def push(model_id: str, sites: int, warm: int, reason: str, *, dry_run: bool) -> Call[PushPlan]:
    """Bring a model to sites. A repeat could choose others, so only a dry run is repeated."""
    request = pb.PushModelRequest(
        model_id=argument(parse_name, "model_id", model_id),
        sites=whole("sites", sites, 1, bounds.COUNT_MAX),
        warm=whole("warm", warm, 0, bounds.COUNT_MAX),
        reason=argument(bounds.label, "reason", reason),
        dry_run=dry_run,
    )
    return Call(service=OPERATOR, method="PushModel", request=request, read=push_plan_from_proto, repeatable=dry_run)


def pin(model_id: str, site_id: str, tier: Tier, reason: str) -> Call[ModelPlaces]:
    """Keep a model on a tier of a site. Pinned twice is pinned, so it may be repeated."""
    request = pb.PinModelRequest(
        model_id=argument(parse_name, "model_id", model_id),
        site_id=argument(parse_name, "site_id", site_id),
        tier=TIER_TO[tier],
        reason=argument(bounds.label, "reason", reason),
    )
    return Call(service=OPERATOR, method="PinModel", request=request, read=places_from_proto, repeatable=True)


def unpin(model_id: str, site_id: str, reason: str) -> Call[ModelPlaces]:
    """Take back a pin. A repeat would be refused: there is none any more."""
    request = pb.UnpinModelRequest(
        model_id=argument(parse_name, "model_id", model_id),
        site_id=argument(parse_name, "site_id", site_id),
        reason=argument(bounds.label, "reason", reason),
    )
    return Call(service=OPERATOR, method="UnpinModel", request=request, read=places_from_proto, repeatable=False)


def where(model_id: str, *, events: bool) -> Call[ModelPlaces]:
    """Where a model is."""
    request = pb.WhereModelRequest(model_id=argument(parse_name, "model_id", model_id), events=events)
    return Call(service=OPERATOR, method="WhereModel", request=request, read=places_from_proto, repeatable=True)
