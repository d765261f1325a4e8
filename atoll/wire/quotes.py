"""What the fleet offers a job <-> messages.

Costs come from the orchestrator alone, so any int64 is believed; texts and ids are checked as everywhere.
"""

from __future__ import annotations

from typing import Final

from atoll.model import limits
from atoll.model.ids import PoolId, parse_gpu_type, parse_name
from atoll.model.placement import Reason
from atoll.model.quote import Eta, PlaceView, Quote
from atoll.v1 import types_pb2 as pb
from atoll.wire import bounds
from atoll.wire.enums import VERDICT_FROM, VERDICT_TO, member
from atoll.wire.placement import (
    EVICTED_MAX,
    TERMS_MAX,
    candidate_from_proto,
    candidate_to_proto,
    evicted_from_proto,
    evicted_to_proto,
    reason_from_proto,
    rejection_from_proto,
    rejection_to_proto,
    too_small_from_proto,
    too_small_to_proto,
)

# By a warm replica, by one that lacks adapters, by loading.
PLACE_CANDIDATES_MAX: Final = 3


def eta_to_proto(eta: Eta) -> pb.Eta:
    """When it should begin and be done."""
    return pb.Eta(begin_p50_us=eta.begin_p50_us, begin_p90_us=eta.begin_p90_us, end_p50_us=eta.end_p50_us, end_p90_us=eta.end_p90_us)


def eta_from_proto(msg: pb.Eta) -> Eta:
    """FieldError naming the figure that cannot be."""
    return Eta(
        begin_p50_us=bounds.instant("begin_p50_us", msg.begin_p50_us),
        begin_p90_us=bounds.instant("begin_p90_us", msg.begin_p90_us),
        end_p50_us=bounds.instant("end_p50_us", msg.end_p50_us),
        end_p90_us=bounds.instant("end_p90_us", msg.end_p90_us),
    )


def quote_to_proto(quote: Quote) -> pb.Quote:
    """What a job is offered."""
    return pb.Quote(
        at_us=quote.at_us,
        verdict=VERDICT_TO[quote.verdict],
        policy=quote.policy,
        term_names=quote.term_names,
        chosen=None if quote.chosen is None else candidate_to_proto(quote.chosen),
        others=[candidate_to_proto(candidate) for candidate in quote.others],
        rejections=[rejection_to_proto(rejection) for rejection in quote.rejections],
        evicted=[evicted_to_proto(one) for one in quote.evicted],
        weights_bytes=quote.weights_bytes,
        predicted_us=quote.predicted_us,
        ahead=quote.ahead,
        queue_length=quote.queue_length,
        turn_us=quote.turn_us,
        eta=None if quote.eta is None else eta_to_proto(quote.eta),
        gpu_usd_micros=quote.gpu_usd_micros,
        egress_usd_micros=quote.egress_usd_micros,
        refusal=bounds.line(quote.refusal),
        retry_after_ms=quote.retry_after_ms,
        rule=quote.rule,
        too_small=None if quote.too_small is None else too_small_to_proto(quote.too_small),
        price_usd_micros=quote.price_usd_micros,
        short_us=quote.short_us,
    )


def quote_from_proto(msg: pb.Quote) -> Quote:
    """FieldError naming the figure that cannot be."""
    return Quote(
        at_us=bounds.instant("at_us", msg.at_us),
        verdict=member("verdict", VERDICT_FROM, msg.verdict),
        policy=bounds.label("policy", msg.policy),
        term_names=bounds.labels("term_names", msg.term_names, TERMS_MAX),
        chosen=bounds.part("chosen", msg.chosen, candidate_from_proto) if msg.HasField("chosen") else None,
        others=bounds.each("others", msg.others, limits.CANDIDATES_KEPT, candidate_from_proto),
        rejections=bounds.each("rejections", msg.rejections, len(Reason), rejection_from_proto),
        evicted=bounds.each("evicted", msg.evicted, EVICTED_MAX, evicted_from_proto),
        weights_bytes=_count("weights_bytes", msg.weights_bytes),
        predicted_us=bounds.instant("predicted_us", msg.predicted_us),
        ahead=_count("ahead", msg.ahead),
        queue_length=_count("queue_length", msg.queue_length),
        turn_us=bounds.instant("turn_us", msg.turn_us),
        eta=bounds.part("eta", msg.eta, eta_from_proto) if msg.HasField("eta") else None,
        gpu_usd_micros=_count("gpu_usd_micros", msg.gpu_usd_micros),
        egress_usd_micros=_count("egress_usd_micros", msg.egress_usd_micros),
        refusal=bounds.line(msg.refusal),
        retry_after_ms=_count("retry_after_ms", msg.retry_after_ms),
        rule=bounds.label("rule", msg.rule),
        too_small=bounds.part("too_small", msg.too_small, too_small_from_proto) if msg.HasField("too_small") else None,
        price_usd_micros=_count("price_usd_micros", msg.price_usd_micros),
        short_us=bounds.number("short_us", msg.short_us, 0, bounds.TIME_US_MAX),
    )


def place_to_proto(place: PlaceView) -> pb.PlaceView:
    """What one pool offers."""
    return pb.PlaceView(
        pool_id=place.pool_id,
        gpu_type=place.gpu_type,
        candidates=[candidate_to_proto(candidate) for candidate in place.candidates],
        reason=place.reason or "",
    )


def place_from_proto(msg: pb.PlaceView) -> PlaceView:
    """FieldError naming the figure that cannot be."""
    return PlaceView(
        pool_id=PoolId(parse_name("pool_id", msg.pool_id)),
        gpu_type=parse_gpu_type("gpu_type", msg.gpu_type),
        candidates=bounds.each("candidates", msg.candidates, PLACE_CANDIDATES_MAX, candidate_from_proto),
        reason=reason_from_proto(msg.reason) if msg.reason else None,
    )


def _count(field: str, value: int) -> int:
    return bounds.number(field, value, 0, bounds.COUNT_MAX)
