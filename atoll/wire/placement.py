"""Decisions and their reasons <-> messages.

Costs come from the orchestrator alone, so any int64 is believed; texts and ids are checked as everywhere.
"""

from __future__ import annotations

from typing import Final

from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.ids import AdapterId, JobId, ModelId, NodeId, Ordinal, PoolId, SiteId, parse_name
from atoll.model.placement import (
    STOPPED_MAX,
    Awaits,
    Candidate,
    Claim,
    Deferral,
    Evicted,
    Explanation,
    FetchFrom,
    Reason,
    Rejection,
    Stopped,
    TooSmall,
)
from atoll.v1 import types_pb2 as pb
from atoll.wire import bounds

# A policy has about ten terms; more than this is no policy of ours.
TERMS_MAX: Final = 64
# A gang of eight slots, each emptied.
EVICTED_MAX: Final = 8 * limits.REPLICAS_PER_SLOT_MAX
_REASONS: Final = {reason.value: reason for reason in Reason}


def candidate_to_proto(candidate: Candidate) -> pb.Candidate:
    """A place with its cost."""
    return pb.Candidate(
        site_id=candidate.site_id,
        pool_id=candidate.pool_id,
        total_us=candidate.total_us,
        terms_us=candidate.terms_us,
        cold=candidate.cold,
        wait_us=candidate.wait_us,
        awaits=candidate.awaits.value,
        fetch_from=candidate.fetch_from.sites if candidate.fetch_from is not None else (),
        origin_too=candidate.fetch_from is not None and candidate.fetch_from.origin_too,
        lacks=candidate.lacks,
    )


def candidate_from_proto(msg: pb.Candidate) -> Candidate:
    """FieldError for a place that cannot be."""
    bounds.bounded("terms_us", msg.terms_us, TERMS_MAX)
    return Candidate(
        site_id=SiteId(parse_name("site_id", msg.site_id)),
        pool_id=PoolId(parse_name("pool_id", msg.pool_id)),
        total_us=msg.total_us,
        terms_us=tuple(msg.terms_us),
        cold=msg.cold,
        wait_us=msg.wait_us,
        awaits=_awaits_from_proto(msg.awaits),
        fetch_from=_fetch_from(msg),
        lacks=tuple([AdapterId(name) for name in bounds.names("lacks", msg.lacks, limits.ADAPTERS_MAX)]),
    )


def _fetch_from(msg: pb.Candidate) -> FetchFrom | None:
    sites = bounds.names("fetch_from", msg.fetch_from, limits.FETCH_SOURCES_MAX)
    return FetchFrom(sites=tuple([SiteId(name) for name in sites]), origin_too=msg.origin_too) if sites or msg.origin_too else None


def _awaits_from_proto(name: str) -> Awaits:
    try:
        return Awaits(name)
    except ValueError:
        raise FieldError("awaits", name, f"one of {', '.join(repr(one.value) for one in Awaits)}") from None


def rejection_to_proto(rejection: Rejection) -> pb.Rejection:
    """How many pools for one reason."""
    return pb.Rejection(reason=rejection.reason.value, pools=rejection.pools)


def rejection_from_proto(msg: pb.Rejection) -> Rejection:
    """FieldError for an unknown reason."""
    return Rejection(reason=reason_from_proto(msg.reason), pools=bounds.number("pools", msg.pools, 0, bounds.COUNT_MAX))


def reason_from_proto(name: str) -> Reason:
    """FieldError for an unknown one."""
    reason = _REASONS.get(name)
    if reason is None:
        raise FieldError("reason", name, f"one of {', '.join(_REASONS)}")
    return reason


def evicted_to_proto(evicted: Evicted) -> pb.Evicted:
    """A replica that makes room."""
    return pb.Evicted(model_id=evicted.model_id, price_us=evicted.price_us, memory_bytes=evicted.memory_bytes)


def evicted_from_proto(msg: pb.Evicted) -> Evicted:
    """FieldError for a name that no model has."""
    return Evicted(
        model_id=ModelId(parse_name("model_id", msg.model_id)),
        price_us=msg.price_us,
        memory_bytes=bounds.number("memory_bytes", msg.memory_bytes, 0, bounds.COUNT_MAX),
    )


def _stopped_to_proto(stopped: Stopped) -> pb.Stopped:
    return pb.Stopped(
        job_id=stopped.job_id,
        ordinal=stopped.ordinal,
        site_id=stopped.site_id,
        pool_id=stopped.pool_id,
        lost_us=stopped.lost_us,
        node_id=stopped.node_id,
        index=stopped.index,
    )


def _stopped_from_proto(msg: pb.Stopped) -> Stopped:
    return Stopped(
        job_id=JobId(parse_name("job_id", msg.job_id)),
        ordinal=Ordinal(bounds.number("ordinal", msg.ordinal, 1, bounds.COUNT_MAX)),
        site_id=SiteId(parse_name("site_id", msg.site_id)),
        pool_id=PoolId(parse_name("pool_id", msg.pool_id)),
        lost_us=bounds.instant("lost_us", msg.lost_us),
        node_id=NodeId(bounds.optional_name("node_id", msg.node_id)),
        index=bounds.number("index", msg.index, 0, limits.GPUS_PER_NODE_MAX - 1),
    )


def too_small_to_proto(found: TooSmall) -> pb.TooSmall:
    """Why GPUs are too small."""
    return pb.TooSmall(
        needed_bytes=found.needed_bytes,
        weights_bytes=found.weights_bytes,
        adapters_bytes=found.adapters_bytes,
        largest_bytes=found.largest_bytes,
    )


def too_small_from_proto(msg: pb.TooSmall) -> TooSmall:
    """FieldError naming the figure that cannot be."""
    return TooSmall(
        needed_bytes=bounds.number("needed_bytes", msg.needed_bytes, 0, bounds.COUNT_MAX),
        weights_bytes=bounds.number("weights_bytes", msg.weights_bytes, 0, bounds.COUNT_MAX),
        adapters_bytes=bounds.number("adapters_bytes", msg.adapters_bytes, 0, bounds.COUNT_MAX),
        largest_bytes=bounds.number("largest_bytes", msg.largest_bytes, 0, bounds.COUNT_MAX),
    )


def claim_to_proto(claim: Claim) -> pb.Claim:
    """The block that is kept for a gang."""
    return pb.Claim(
        site_id=claim.site_id,
        pool_id=claim.pool_id,
        node_id=claim.node_id,
        first=claim.first,
        slots=claim.slots,
        since_us=claim.since_us,
        begins_us=claim.begins_us,
    )


def claim_from_proto(msg: pb.Claim) -> Claim:
    """FieldError naming the figure that cannot be."""
    return Claim(
        site_id=SiteId(parse_name("site_id", msg.site_id)),
        pool_id=PoolId(parse_name("pool_id", msg.pool_id)),
        node_id=NodeId(parse_name("node_id", msg.node_id)),
        first=bounds.number("first", msg.first, 0, limits.GPUS_PER_NODE_MAX - 1),
        slots=bounds.number("slots", msg.slots, 1, limits.GPUS_PER_NODE_MAX),
        since_us=bounds.instant("since_us", msg.since_us),
        begins_us=bounds.instant("begins_us", msg.begins_us),
    )


def deferral_to_proto(deferral: Deferral) -> pb.Deferral:
    """What a job waits for."""
    return pb.Deferral(
        since_us=deferral.since_us,
        until_us=deferral.until_us,
        waits_for=None if deferral.waits_for is None else candidate_to_proto(deferral.waits_for),
        rejections=[rejection_to_proto(rejection) for rejection in deferral.rejections],
        claim=None if deferral.claim is None else claim_to_proto(deferral.claim),
        position=deferral.position,
        queue_length=deferral.queue_length,
        stopped=[_stopped_to_proto(one) for one in deferral.stopped],
        too_small=None if deferral.too_small is None else too_small_to_proto(deferral.too_small),
    )


def deferral_from_proto(msg: pb.Deferral) -> Deferral:
    """FieldError naming the figure that cannot be."""
    return Deferral(
        since_us=bounds.instant("since_us", msg.since_us),
        until_us=bounds.instant("until_us", msg.until_us),
        waits_for=bounds.part("waits_for", msg.waits_for, candidate_from_proto) if msg.HasField("waits_for") else None,
        rejections=bounds.each("rejections", msg.rejections, len(Reason), rejection_from_proto),
        claim=bounds.part("claim", msg.claim, claim_from_proto) if msg.HasField("claim") else None,
        position=bounds.number("position", msg.position, 0, bounds.COUNT_MAX),
        queue_length=bounds.number("queue_length", msg.queue_length, 0, bounds.COUNT_MAX),
        stopped=bounds.each("stopped", msg.stopped, STOPPED_MAX, _stopped_from_proto),
        too_small=bounds.part("too_small", msg.too_small, too_small_from_proto) if msg.HasField("too_small") else None,
    )


def explanation_to_proto(explanation: Explanation) -> pb.Explanation:
    """One decision, bounded."""
    return pb.Explanation(
        decided_us=explanation.decided_us,
        policy=explanation.policy,
        term_names=explanation.term_names,
        chosen=candidate_to_proto(explanation.chosen),
        node_id=explanation.node_id,
        others=[candidate_to_proto(candidate) for candidate in explanation.others],
        rejections=[rejection_to_proto(rejection) for rejection in explanation.rejections],
        evicted=[evicted_to_proto(one) for one in explanation.evicted],
        stopped=[_stopped_to_proto(one) for one in explanation.stopped],
        deferrals=explanation.deferrals,
        queued_us=explanation.queued_us,
        weights_bytes=explanation.weights_bytes,
        p50_us=explanation.p50_us,
        p90_us=explanation.p90_us,
        rule=explanation.rule,
        too_small=None if explanation.too_small is None else too_small_to_proto(explanation.too_small),
    )


def explanation_from_proto(msg: pb.Explanation) -> Explanation:
    """FieldError naming the figure that cannot be."""
    return Explanation(
        decided_us=bounds.instant("decided_us", msg.decided_us),
        policy=bounds.label("policy", msg.policy),
        term_names=bounds.labels("term_names", msg.term_names, TERMS_MAX),
        chosen=bounds.part("chosen", msg.chosen, candidate_from_proto),
        node_id=NodeId(parse_name("node_id", msg.node_id)),
        others=bounds.each("others", msg.others, limits.CANDIDATES_KEPT, candidate_from_proto),
        rejections=bounds.each("rejections", msg.rejections, len(Reason), rejection_from_proto),
        evicted=bounds.each("evicted", msg.evicted, EVICTED_MAX, evicted_from_proto),
        stopped=bounds.each("stopped", msg.stopped, STOPPED_MAX, _stopped_from_proto),
        deferrals=bounds.number("deferrals", msg.deferrals, 0, bounds.COUNT_MAX),
        queued_us=bounds.instant("queued_us", msg.queued_us),
        weights_bytes=bounds.number("weights_bytes", msg.weights_bytes, 0, bounds.COUNT_MAX),
        p50_us=bounds.instant("p50_us", msg.p50_us),
        p90_us=bounds.instant("p90_us", msg.p90_us),
        rule=bounds.label("rule", msg.rule),
        too_small=bounds.part("too_small", msg.too_small, too_small_from_proto) if msg.HasField("too_small") else None,
    )
