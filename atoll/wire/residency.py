"""Copies of models, targets, pins and pushes <-> messages."""

from __future__ import annotations

from enum import Enum
from typing import Final, TypeVar

from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.ids import JobId, ModelId, NodeId, PoolId, SiteId, parse_name
from atoll.model.replica import Tier
from atoll.model.residency import (
    Cause,
    CopyView,
    ModelPlaces,
    Movement,
    Pin,
    Push,
    PushPlan,
    PushStep,
    ResidencyEvent,
    TargetView,
)
from atoll.v1 import operator_service_pb2 as pb
from atoll.wire import bounds
from atoll.wire.enums import TIER_FROM, TIER_TO, member

E = TypeVar("E", bound=Enum)

# A model on disk and in memory of ten thousand nodes: some 2 MB, half of gRPC's limit.
COPIES_MAX: Final = 20_000
EVENTS_MAX: Final = 4_096
_AVERAGES_MAX: Final = 8


def _count(field: str, value: int) -> int:
    return bounds.number(field, value, 0, bounds.COUNT_MAX)


def _word(field: str, kind: type[E], value: str) -> E:
    try:
        return kind(value)
    except ValueError:
        raise FieldError(field, value, f"one of {', '.join(str(one.value) for one in kind)}") from None


def tier_from_proto(field: str, value: int) -> Tier:
    """The tier that a copy is pinned to; unspecified is the GPU."""
    return member(field, TIER_FROM, value) if value else Tier.GPU


def push_step_to_proto(step: PushStep) -> pb.PushStep:
    """One site of a push."""
    return pb.PushStep(
        site_id=step.site_id,
        region=step.region,
        pool_id=step.pool_id,
        node_id=step.node_id,
        warm=step.warm,
        held=step.held,
        bytes=step.bytes,
        fetch_us=step.fetch_us,
        load_us=step.load_us,
        execution_us=step.execution_us,
        evicts=step.evicts,
    )


def push_step_from_proto(msg: pb.PushStep) -> PushStep:
    """FieldError naming the figure that cannot be."""
    evicts = bounds.names("evicts", msg.evicts, limits.MODELS_PER_NODE_MAX)
    return PushStep(
        site_id=SiteId(parse_name("site_id", msg.site_id)),
        region=bounds.label("region", msg.region),
        pool_id=PoolId(parse_name("pool_id", msg.pool_id)),
        node_id=NodeId(parse_name("node_id", msg.node_id)),
        warm=msg.warm,
        held=msg.held,
        bytes=bounds.number("bytes", msg.bytes, 0, limits.BYTES_MAX),
        fetch_us=bounds.instant("fetch_us", msg.fetch_us),
        load_us=bounds.instant("load_us", msg.load_us),
        execution_us=bounds.instant("execution_us", msg.execution_us),
        evicts=tuple([ModelId(name) for name in evicts]),
    )


def push_plan_to_proto(plan: PushPlan) -> pb.PushPlan:
    """What a push does."""
    steps = [push_step_to_proto(step) for step in plan.steps]
    return pb.PushPlan(model_id=plan.model_id, steps=steps, until_us=plan.until_us, now_us=plan.now_us)


def push_plan_from_proto(msg: pb.PushPlan) -> PushPlan:
    """FieldError naming the figure that cannot be."""
    return PushPlan(
        model_id=ModelId(parse_name("model_id", msg.model_id)),
        steps=bounds.each("steps", msg.steps, limits.SITES_MAX, push_step_from_proto),
        until_us=bounds.instant("until_us", msg.until_us),
        now_us=bounds.instant("now_us", msg.now_us),
    )


def copy_view_to_proto(view: CopyView) -> pb.CopyView:
    """Copies on one tier of one node."""
    return pb.CopyView(
        site_id=view.site_id,
        node_id=view.node_id,
        tier=TIER_TO[view.tier],
        copies=view.copies,
        busy=view.busy,
        pinned=view.pinned,
        wanted=view.wanted.value if view.wanted is not None else "",
        bytes_left=view.bytes_left,
        age_us=view.age_us,
    )


def copy_view_from_proto(msg: pb.CopyView) -> CopyView:
    """FieldError naming the figure that cannot be."""
    return CopyView(
        site_id=SiteId(parse_name("site_id", msg.site_id)),
        node_id=NodeId(parse_name("node_id", msg.node_id)),
        tier=member("tier", TIER_FROM, msg.tier),
        copies=_count("copies", msg.copies),
        busy=_count("busy", msg.busy),
        pinned=msg.pinned,
        wanted=_word("wanted", Cause, msg.wanted) if msg.wanted else None,
        bytes_left=bounds.number("bytes_left", msg.bytes_left, -1, limits.BYTES_MAX),
        age_us=bounds.number("age_us", msg.age_us, -1, bounds.TIME_US_MAX),
    )


def target_to_proto(view: TargetView) -> pb.TargetView:
    """How many copies should be there, and what that rests on."""
    return pb.TargetView(
        gpu=view.gpu,
        host=view.host,
        disk=view.disk,
        sites_min=view.sites_min,
        rate_per_hour_milli=view.rate_per_hour_milli,
        average_per_hour_milli=view.average_per_hour_milli,
        value_us_per_hour=view.value_us_per_hour,
        arrivals=view.arrivals,
    )


def target_from_proto(msg: pb.TargetView) -> TargetView:
    """FieldError naming the figure that cannot be."""
    bounds.bounded("average_per_hour_milli", msg.average_per_hour_milli, _AVERAGES_MAX)
    return TargetView(
        gpu=_count("gpu", msg.gpu),
        host=_count("host", msg.host),
        disk=_count("disk", msg.disk),
        sites_min=_count("sites_min", msg.sites_min),
        rate_per_hour_milli=_count("rate_per_hour_milli", msg.rate_per_hour_milli),
        average_per_hour_milli=tuple([_count("average_per_hour_milli", rate) for rate in msg.average_per_hour_milli]),
        value_us_per_hour=_count("value_us_per_hour", msg.value_us_per_hour),
        arrivals=_count("arrivals", msg.arrivals),
    )


def pin_to_proto(pin: Pin) -> pb.Pin:
    """An operator's pin."""
    return pb.Pin(
        model_id=pin.model_id,
        site_id=pin.site_id,
        tier=TIER_TO[pin.tier],
        actor=bounds.line(pin.actor),
        reason=bounds.line(pin.reason),
        created_us=pin.created_us,
    )


def pin_from_proto(msg: pb.Pin) -> Pin:
    """FieldError naming the figure that cannot be."""
    return Pin(
        model_id=ModelId(parse_name("model_id", msg.model_id)),
        site_id=SiteId(parse_name("site_id", msg.site_id)),
        tier=member("tier", TIER_FROM, msg.tier),
        actor=bounds.line(msg.actor),
        reason=bounds.line(msg.reason),
        created_us=bounds.instant("created_us", msg.created_us),
    )


def push_to_proto(push: Push) -> pb.Push:
    """An operator's push."""
    return pb.Push(
        model_id=push.model_id,
        sites=push.sites,
        warm=push.warm,
        actor=bounds.line(push.actor),
        reason=bounds.line(push.reason),
        created_us=push.created_us,
        until_us=push.until_us,
    )


def push_from_proto(msg: pb.Push) -> Push:
    """FieldError naming the figure that cannot be."""
    return Push(
        model_id=ModelId(parse_name("model_id", msg.model_id)),
        sites=tuple([SiteId(name) for name in bounds.names("sites", msg.sites, limits.SITES_MAX)]),
        warm=tuple([SiteId(name) for name in bounds.names("warm", msg.warm, limits.SITES_MAX)]),
        actor=bounds.line(msg.actor),
        reason=bounds.line(msg.reason),
        created_us=bounds.instant("created_us", msg.created_us),
        until_us=bounds.instant("until_us", msg.until_us),
    )


def event_to_proto(event: ResidencyEvent) -> pb.ResidencyEvent:
    """A copy that came or left."""
    return pb.ResidencyEvent(
        at_us=event.at_us,
        model_id=event.model_id,
        site_id=event.site_id,
        node_id=event.node_id,
        tier=TIER_TO[event.tier],
        movement=event.movement.value,
        cause=event.cause.value,
        job_id=event.job_id or "",
        price_us=event.price_us,
    )


def event_from_proto(msg: pb.ResidencyEvent) -> ResidencyEvent:
    """FieldError naming the figure that cannot be."""
    return ResidencyEvent(
        at_us=bounds.instant("at_us", msg.at_us),
        model_id=ModelId(parse_name("model_id", msg.model_id)),
        site_id=SiteId(parse_name("site_id", msg.site_id)),
        node_id=NodeId(parse_name("node_id", msg.node_id)),
        tier=member("tier", TIER_FROM, msg.tier),
        movement=_word("movement", Movement, msg.movement),
        cause=_word("cause", Cause, msg.cause),
        job_id=JobId(parse_name("job_id", msg.job_id)) if msg.job_id else None,
        price_us=bounds.instant("price_us", msg.price_us),
    )


def places_to_proto(places: ModelPlaces) -> pb.ModelPlaces:
    """Where a model is and should be."""
    return pb.ModelPlaces(
        model_id=places.model_id,
        now_us=places.now_us,
        weights_bytes=places.weights_bytes,
        copies=[copy_view_to_proto(view) for view in places.copies],
        target=target_to_proto(places.target),
        pins=[pin_to_proto(pin) for pin in places.pins],
        push=push_to_proto(places.push) if places.push is not None else None,
        events=[event_to_proto(event) for event in places.events],
    )


def places_from_proto(msg: pb.ModelPlaces) -> ModelPlaces:
    """FieldError naming the figure that cannot be."""
    return ModelPlaces(
        model_id=ModelId(parse_name("model_id", msg.model_id)),
        now_us=bounds.instant("now_us", msg.now_us),
        weights_bytes=bounds.number("weights_bytes", msg.weights_bytes, 0, limits.BYTES_MAX),
        copies=bounds.each("copies", msg.copies, COPIES_MAX, copy_view_from_proto),
        target=bounds.part("target", msg.target, target_from_proto),
        pins=bounds.each("pins", msg.pins, limits.SITES_MAX, pin_from_proto),
        push=bounds.part("push", msg.push, push_from_proto) if msg.HasField("push") else None,
        events=bounds.each("events", msg.events, EVENTS_MAX, event_from_proto),
    )
