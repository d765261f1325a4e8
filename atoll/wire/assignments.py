"""The desired state of a site <-> messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from atoll.model import limits
from atoll.model.address import parse_weights_url
from atoll.model.assignment import AdapterPeer, AssignedAttempt, Assignment, DesiredReplica, Peer, Sources
from atoll.model.ids import AdapterId, EventSeq, FleetId, Generation, ModelId, NodeId, SiteId, Term, parse_name
from atoll.v1 import site_service_pb2 as pb
from atoll.wire import bounds
from atoll.wire.adapters import adapter_spec_from_proto, adapter_spec_to_proto
from atoll.wire.attempts import attempt_key_from_proto, attempt_key_to_proto, slot_ref_from_proto, slot_ref_to_proto
from atoll.wire.enums import TIER_FROM, TIER_TO, member
from atoll.wire.jobs import job_spec_from_proto, job_spec_to_proto
from atoll.wire.models import model_spec_from_proto, model_spec_to_proto
from atoll.wire.placement import EVICTED_MAX
from atoll.wire.reports import PROGRESS_MAX

# As many as a site may have live, for every list of attempts.
ATTEMPTS_MAX: Final = PROGRESS_MAX


def assigned_attempt_to_proto(attempt: AssignedAttempt) -> pb.AssignedAttempt:
    """One attempt that should run."""
    return pb.AssignedAttempt(
        key=attempt_key_to_proto(attempt.key),
        spec=job_spec_to_proto(attempt.spec),
        slot=slot_ref_to_proto(attempt.slot),
        evict=attempt.evict,
        stop=attempt.stop,
        stop_reason=bounds.line(attempt.stop_reason),
        stop_after_ms=attempt.stop_after_ms,
        request_id=attempt.request_id,
        fetch_from=_peers_to_proto(attempt.fetch_from),
        origin_too=attempt.fetch_from is not None and attempt.fetch_from.origin_too,
        adapters_from=[pb.AdapterPeer(adapter_id=one.adapter_id, peer=peer_to_proto(one.peer)) for one in attempt.adapters_from],
    )


def assigned_attempt_from_proto(msg: pb.AssignedAttempt) -> AssignedAttempt:
    """FieldError naming the figure that cannot be."""
    evict = bounds.names("evict", msg.evict, EVICTED_MAX)
    return AssignedAttempt(
        key=bounds.part("key", msg.key, attempt_key_from_proto),
        spec=bounds.part("spec", msg.spec, job_spec_from_proto),
        slot=bounds.part("slot", msg.slot, slot_ref_from_proto),
        evict=tuple([ModelId(name) for name in evict]),
        stop=msg.stop,
        stop_reason=bounds.line(msg.stop_reason),
        stop_after_ms=bounds.number("stop_after_ms", msg.stop_after_ms, 0, bounds.TIME_MS_MAX),
        request_id=bounds.label("request_id", msg.request_id),
        adapters_from=bounds.each("adapters_from", msg.adapters_from, limits.ADAPTERS_MAX, _adapter_peer_from_proto),
        fetch_from=_sources_from_proto(msg.fetch_from, origin_too=msg.origin_too),
    )


def peer_to_proto(peer: Peer) -> pb.Peer:
    """Whose weights are nearest."""
    return pb.Peer(site_id=peer.site_id, url=peer.url)


def peer_from_proto(msg: pb.Peer) -> Peer:
    """FieldError for a name or an address that cannot be."""
    return Peer(site_id=SiteId(parse_name("site_id", msg.site_id)), url=parse_weights_url("url", msg.url))


def _adapter_peer_from_proto(msg: pb.AdapterPeer) -> AdapterPeer:
    return AdapterPeer(adapter_id=AdapterId(parse_name("adapter_id", msg.adapter_id)), peer=bounds.part("peer", msg.peer, peer_from_proto))


def _peers_to_proto(sources: Sources | None) -> list[pb.Peer]:
    return [] if sources is None else [peer_to_proto(peer) for peer in sources.peers]


def _sources_from_proto(peers: Sequence[pb.Peer], *, origin_too: bool) -> Sources | None:
    found = bounds.each("fetch_from", peers, limits.FETCH_SOURCES_MAX, peer_from_proto)
    return Sources(peers=found, origin_too=origin_too) if found or origin_too else None


def desired_replica_to_proto(desired: DesiredReplica) -> pb.DesiredReplica:
    """One copy that should be there."""
    return pb.DesiredReplica(
        model_id=desired.model_id,
        node_id=desired.node_id,
        index=desired.index,
        tier=TIER_TO[desired.tier],
        pin=desired.pin,
        evict=desired.evict,
        fetch_from=_peers_to_proto(desired.fetch_from),
        origin_too=desired.fetch_from is not None and desired.fetch_from.origin_too,
    )


def desired_replica_from_proto(msg: pb.DesiredReplica) -> DesiredReplica:
    """FieldError naming the figure that cannot be."""
    evict = bounds.names("evict", msg.evict, limits.MODELS_PER_NODE_MAX)
    return DesiredReplica(
        model_id=ModelId(parse_name("model_id", msg.model_id)),
        node_id=NodeId(parse_name("node_id", msg.node_id)),
        index=bounds.number("index", msg.index, 0, limits.GPUS_PER_NODE_MAX - 1) if msg.HasField("index") else None,
        tier=member("tier", TIER_FROM, msg.tier),
        pin=msg.pin,
        evict=tuple([ModelId(name) for name in evict]),
        fetch_from=_sources_from_proto(msg.fetch_from, origin_too=msg.origin_too),
    )


def assignment_to_proto(assignment: Assignment) -> pb.Assignment:
    """A snapshot or a delta."""
    return pb.Assignment(
        fleet_id=assignment.fleet_id,
        term=assignment.term,
        generation=assignment.generation,
        base_generation=assignment.base_generation,
        attempts=[assigned_attempt_to_proto(attempt) for attempt in assignment.attempts],
        removed=[attempt_key_to_proto(key) for key in assignment.removed],
        models=[model_spec_to_proto(model) for model in assignment.models],
        adapters=[adapter_spec_to_proto(adapter) for adapter in assignment.adapters],
        evict=assignment.evict,
        acked_event_seq=assignment.acked_event_seq,
        confirm_shrink=assignment.confirm_shrink,
        replicas=[desired_replica_to_proto(desired) for desired in assignment.replicas],
        unwanted=[desired_replica_to_proto(desired) for desired in assignment.unwanted],
    )


def assignment_from_proto(msg: pb.Assignment) -> Assignment:
    """FieldError naming the figure that cannot be."""
    evict = bounds.names("evict", msg.evict, limits.MODELS_MAX)
    return Assignment(
        fleet_id=FleetId(parse_name("fleet_id", msg.fleet_id)),
        term=Term(bounds.number("term", msg.term, 1, bounds.COUNT_MAX)),
        generation=Generation(bounds.number("generation", msg.generation, 1, bounds.COUNT_MAX)),
        base_generation=Generation(bounds.number("base_generation", msg.base_generation, 0, bounds.COUNT_MAX)),
        attempts=bounds.each("attempts", msg.attempts, ATTEMPTS_MAX, assigned_attempt_from_proto),
        removed=bounds.each("removed", msg.removed, ATTEMPTS_MAX, attempt_key_from_proto),
        models=bounds.each("models", msg.models, limits.MODELS_MAX, model_spec_from_proto),
        adapters=bounds.each("adapters", msg.adapters, limits.ADAPTERS_IN_FLEET_MAX, adapter_spec_from_proto),
        evict=tuple([ModelId(name) for name in evict]),
        acked_event_seq=EventSeq(bounds.number("acked_event_seq", msg.acked_event_seq, 0, bounds.COUNT_MAX)),
        confirm_shrink=msg.confirm_shrink,
        replicas=bounds.each("replicas", msg.replicas, limits.DESIRED_PER_SITE_MAX, desired_replica_from_proto),
        unwanted=bounds.each("unwanted", msg.unwanted, limits.DESIRED_PER_SITE_MAX, desired_replica_from_proto),
    )
