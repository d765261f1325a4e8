"""What an agent says <-> messages. The most hostile input there is: every count is bounded before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from atoll.model import limits
from atoll.model.attempt import ENDED, AttemptState, PhaseTimes
from atoll.model.compiled import parse_form
from atoll.model.errors import FieldError
from atoll.model.ids import AdapterId, EventSeq, FleetId, FormId, Generation, ModelId, NodeId, PoolId, SiteId, Term, parse_name
from atoll.model.replica import ReplicaFact
from atoll.model.report import (
    AttemptEvent,
    AttemptProgress,
    FetchFact,
    NodeFacts,
    RateFacts,
    SiteHello,
    SiteReport,
    SlotFacts,
    Welcome,
)
from atoll.v1 import site_service_pb2 as pb
from atoll.wire import bounds
from atoll.wire.attempts import (
    attempt_key_from_proto,
    attempt_key_to_proto,
    failure_from_proto,
    failure_to_proto,
    manifest_from_proto,
    manifest_to_proto,
    phase_times_from_proto,
    phase_times_to_proto,
)
from atoll.wire.enums import (
    ATTEMPT_STATE_FROM,
    ATTEMPT_STATE_TO,
    REPLICA_STATE_FROM,
    REPLICA_STATE_TO,
    SITE_RUNTIME_FROM,
    SITE_RUNTIME_TO,
    member,
)
from atoll.wire.sites import GPUS_PER_SITE_MAX, pool_spec_to_proto, pools_from_proto

# A slot may be bound two attempts, and those that stop count too.
PROGRESS_MAX: Final = 4 * GPUS_PER_SITE_MAX
# The ends that an agent may tell of; `lost` is the orchestrator's own finding.
_TOLD_ENDS: Final = ENDED - {AttemptState.LOST}
_FAILURES: Final = frozenset({AttemptState.FAILED, AttemptState.REFUSED})
_RATE = limits.RATE_BYTES_PER_S_MAX
_BYTES = limits.BYTES_MAX
# Fleet time may be slowed a thousandfold or run a million times as fast.
TIME_SCALE_MILLI_MAX: Final = 1_000_000_000


def hello_to_proto(hello: SiteHello) -> pb.SiteHello:
    """First message of an agent."""
    return pb.SiteHello(
        site_id=hello.site_id,
        fleet_id=hello.fleet_id,
        term=hello.term,
        protocol_version=hello.protocol_version,
        agent_version=hello.agent_version,
        boot_id=hello.boot_id,
        runtime=SITE_RUNTIME_TO[hello.runtime],
        pools=[pool_spec_to_proto(pool) for pool in hello.pools],
        next_event_seq=hello.next_event_seq,
    )


def hello_from_proto(msg: pb.SiteHello) -> SiteHello:
    """FieldError naming the figure that cannot be. Whether the protocol version is ours is the core's question."""
    return SiteHello(
        site_id=SiteId(parse_name("site_id", msg.site_id)),
        fleet_id=FleetId(bounds.optional_name("fleet_id", msg.fleet_id)),
        term=Term(bounds.number("term", msg.term, 0, bounds.COUNT_MAX)),
        protocol_version=msg.protocol_version,
        agent_version=bounds.label("agent_version", msg.agent_version),
        boot_id=parse_name("boot_id", msg.boot_id),
        runtime=member("runtime", SITE_RUNTIME_FROM, msg.runtime),
        pools=pools_from_proto("pools", list(msg.pools)),
        next_event_seq=EventSeq(bounds.number("next_event_seq", msg.next_event_seq, 0, bounds.COUNT_MAX)),
    )


def welcome_to_proto(welcome: Welcome) -> pb.Welcome:
    """Answer to the hello."""
    return pb.Welcome(
        fleet_id=welcome.fleet_id,
        term=welcome.term,
        time_scale_milli=welcome.time_scale_milli,
        report_interval_ms=welcome.report_interval_ms,
        origin_url=welcome.origin_url,
        artifacts_url=welcome.artifacts_url,
        credential=welcome.credential,
    )


def welcome_from_proto(msg: pb.Welcome) -> Welcome:
    """FieldError naming the figure that cannot be."""
    return Welcome(
        fleet_id=FleetId(parse_name("fleet_id", msg.fleet_id)),
        term=Term(bounds.number("term", msg.term, 1, bounds.COUNT_MAX)),
        time_scale_milli=bounds.number("time_scale_milli", msg.time_scale_milli, 1, TIME_SCALE_MILLI_MAX),
        report_interval_ms=bounds.number("report_interval_ms", msg.report_interval_ms, 1, bounds.TIME_MS_MAX),
        origin_url=bounds.url("origin_url", msg.origin_url),
        artifacts_url=bounds.url("artifacts_url", msg.artifacts_url),
        credential=bounds.url("credential", msg.credential),
    )


def replica_fact_to_proto(fact: ReplicaFact) -> pb.ReplicaFact:
    """A replica as observed."""
    return pb.ReplicaFact(
        model_id=fact.model_id,
        state=REPLICA_STATE_TO[fact.state],
        memory_bytes=fact.memory_bytes,
        adapters=fact.adapters,
        gang_size=fact.gang_size,
        loading_us=fact.loading_us,
    )


def replica_fact_from_proto(msg: pb.ReplicaFact) -> ReplicaFact:
    """FieldError naming the figure that cannot be."""
    gang_size = msg.gang_size or 1
    if gang_size not in limits.GANG_SIZES:
        raise FieldError("gang_size", gang_size, f"one of {limits.GANG_SIZES}")
    return ReplicaFact(
        model_id=ModelId(parse_name("model_id", msg.model_id)),
        state=member("state", REPLICA_STATE_FROM, msg.state),
        memory_bytes=bounds.number("memory_bytes", msg.memory_bytes, 0, _BYTES),
        adapters=_adapters("adapters", msg.adapters, limits.ADAPTERS_PER_REPLICA_MAX) if msg.adapters else (),
        gang_size=gang_size,
        loading_us=bounds.number("loading_us", msg.loading_us, 0, limits.PREDICTED_US_MAX),
    )


def _adapters(field: str, names: Sequence[str], most: int) -> tuple[AdapterId, ...]:
    """Adapters in order, each once, however the agent listed them."""
    return tuple(sorted({AdapterId(name) for name in bounds.names(field, names, most)}))


def _forms(field: str, told: Sequence[str]) -> tuple[FormId, ...]:
    """Forms in order, each once."""
    bounds.bounded(field, told, limits.FORMS_PER_NODE_MAX)
    return tuple(sorted({parse_form(field, form) for form in told}))


def slot_facts_to_proto(facts: SlotFacts) -> pb.SlotFacts:
    """One GPU as observed."""
    return pb.SlotFacts(
        index=facts.index,
        memory_free_bytes=facts.memory_free_bytes,
        ready=facts.ready,
        replicas=[replica_fact_to_proto(fact) for fact in facts.replicas],
        fresh=facts.fresh,
    )


def slot_facts_from_proto(msg: pb.SlotFacts) -> SlotFacts:
    """FieldError naming the figure that cannot be."""
    return SlotFacts(
        index=bounds.number("index", msg.index, 0, limits.GPUS_PER_NODE_MAX - 1),
        memory_free_bytes=bounds.number("memory_free_bytes", msg.memory_free_bytes, 0, _BYTES),
        ready=msg.ready,
        replicas=bounds.each("replicas", msg.replicas, limits.REPLICAS_PER_SLOT_MAX, replica_fact_from_proto),
        fresh=msg.fresh,
    )


def fetch_fact_to_proto(fact: FetchFact) -> pb.FetchFact:
    """A fetch under way."""
    return pb.FetchFact(model_id=fact.model_id, bytes_done=fact.bytes_done, bytes_total=fact.bytes_total, ahead=fact.ahead)


def fetch_fact_from_proto(msg: pb.FetchFact) -> FetchFact:
    """FieldError naming the figure that cannot be."""
    return FetchFact(
        model_id=ModelId(parse_name("model_id", msg.model_id)),
        bytes_done=bounds.number("bytes_done", msg.bytes_done, 0, _BYTES),
        bytes_total=bounds.number("bytes_total", msg.bytes_total, 0, _BYTES),
        ahead=msg.ahead,
    )


def node_facts_to_proto(facts: NodeFacts) -> pb.NodeFacts:
    """One host as observed."""
    return pb.NodeFacts(
        pool_id=facts.pool_id,
        node_id=facts.node_id,
        host_free_bytes=facts.host_free_bytes,
        disk_free_bytes=facts.disk_free_bytes,
        host_models=facts.host_models,
        disk_models=facts.disk_models,
        disk_adapters=facts.disk_adapters,
        slots=[slot_facts_to_proto(slot) for slot in facts.slots],
        pinned=facts.pinned,
        fetching=[fetch_fact_to_proto(fact) for fact in facts.fetching],
        host_tier=facts.host_tier,
        compiled=facts.compiled,
        shares_compiled=facts.shares_compiled,
    )


def node_facts_from_proto(msg: pb.NodeFacts) -> NodeFacts:
    """FieldError naming the figure that cannot be, or a slot that is listed twice."""
    slots = bounds.each("slots", msg.slots, limits.GPUS_PER_NODE_MAX, slot_facts_from_proto)
    if len({slot.index for slot in slots}) != len(slots):
        raise FieldError("slots", [slot.index for slot in slots], "each index once")
    host = bounds.names("host_models", msg.host_models, limits.MODELS_PER_NODE_MAX)
    disk = bounds.names("disk_models", msg.disk_models, limits.MODELS_PER_NODE_MAX)
    pinned = bounds.names("pinned", msg.pinned, limits.MODELS_PER_NODE_MAX)
    return NodeFacts(
        pool_id=PoolId(parse_name("pool_id", msg.pool_id)),
        node_id=NodeId(parse_name("node_id", msg.node_id)),
        host_free_bytes=bounds.number("host_free_bytes", msg.host_free_bytes, 0, _BYTES),
        disk_free_bytes=bounds.number("disk_free_bytes", msg.disk_free_bytes, 0, _BYTES),
        host_models=tuple([ModelId(name) for name in host]),
        disk_models=tuple([ModelId(name) for name in disk]),
        disk_adapters=_adapters("disk_adapters", msg.disk_adapters, limits.ADAPTERS_PER_NODE_MAX),
        slots=slots,
        pinned=tuple([ModelId(name) for name in pinned]),
        fetching=bounds.each("fetching", msg.fetching, limits.MODELS_PER_NODE_MAX, fetch_fact_from_proto),
        host_tier=msg.host_tier,
        compiled=_forms("compiled", msg.compiled),
        shares_compiled=msg.shares_compiled,
    )


def rate_facts_to_proto(rates: RateFacts) -> pb.RateFacts:
    """Rates as measured."""
    return pb.RateFacts(
        disk_bytes_per_s=rates.disk_bytes_per_s,
        h2d_bytes_per_s=rates.h2d_bytes_per_s,
        origin_bytes_per_s=rates.origin_bytes_per_s,
        disk_transfers=rates.disk_transfers,
        h2d_transfers=rates.h2d_transfers,
        origin_transfers=rates.origin_transfers,
    )


def rate_facts_from_proto(msg: pb.RateFacts) -> RateFacts:
    """FieldError naming the figure that cannot be."""
    return RateFacts(
        disk_bytes_per_s=bounds.number("disk_bytes_per_s", msg.disk_bytes_per_s, 0, _RATE),
        h2d_bytes_per_s=bounds.number("h2d_bytes_per_s", msg.h2d_bytes_per_s, 0, _RATE),
        origin_bytes_per_s=bounds.number("origin_bytes_per_s", msg.origin_bytes_per_s, 0, _RATE),
        disk_transfers=bounds.number("disk_transfers", msg.disk_transfers, 0, bounds.COUNT_MAX),
        h2d_transfers=bounds.number("h2d_transfers", msg.h2d_transfers, 0, bounds.COUNT_MAX),
        origin_transfers=bounds.number("origin_transfers", msg.origin_transfers, 0, bounds.COUNT_MAX),
    )


def progress_to_proto(progress: AttemptProgress) -> pb.AttemptProgress:
    """Where a live attempt stands."""
    return pb.AttemptProgress(
        key=attempt_key_to_proto(progress.key),
        state=ATTEMPT_STATE_TO[progress.state],
        steps_done=progress.steps_done,
    )


def progress_from_proto(msg: pb.AttemptProgress) -> AttemptProgress:
    """FieldError for a state that is an end: ends come as events."""
    state = member("state", ATTEMPT_STATE_FROM, msg.state)
    if state in ENDED:
        raise FieldError("state", state.value, "a live state; an end is told by an event")
    return AttemptProgress(
        key=bounds.part("key", msg.key, attempt_key_from_proto),
        state=state,
        steps_done=bounds.number("steps_done", msg.steps_done, 0, limits.STEPS_MAX),
    )


def report_to_proto(report: SiteReport) -> pb.SiteReport:
    """Numbered facts."""
    return pb.SiteReport(
        seq=report.seq,
        full=report.full,
        generation=report.generation,
        nodes=[node_facts_to_proto(node) for node in report.nodes],
        progress=[progress_to_proto(progress) for progress in report.progress],
        rates=rate_facts_to_proto(report.rates),
    )


def report_from_proto(msg: pb.SiteReport) -> SiteReport:
    """FieldError naming the figure that cannot be. Whether the site has such nodes is the core's question."""
    return SiteReport(
        seq=bounds.number("seq", msg.seq, 0, bounds.COUNT_MAX),
        full=msg.full,
        generation=Generation(bounds.number("generation", msg.generation, 0, bounds.COUNT_MAX)),
        nodes=bounds.each("nodes", msg.nodes, GPUS_PER_SITE_MAX, node_facts_from_proto),
        progress=bounds.each("progress", msg.progress, PROGRESS_MAX, progress_from_proto),
        rates=bounds.part("rates", msg.rates, rate_facts_from_proto),
    )


def attempt_event_to_proto(event: AttemptEvent) -> pb.AttemptEvent:
    """The end of an attempt."""
    return pb.AttemptEvent(
        seq=event.seq,
        key=attempt_key_to_proto(event.key),
        state=ATTEMPT_STATE_TO[event.state],
        manifest=None if event.manifest is None else manifest_to_proto(event.manifest),
        failure=None if event.failure is None else failure_to_proto(event.failure),
        times=phase_times_to_proto(event.times),
    )


def attempt_event_from_proto(msg: pb.AttemptEvent) -> AttemptEvent:
    """FieldError naming the figure that cannot be, or what is missing for the state: a manifest, of this very attempt, or a failure."""
    state = member("state", ATTEMPT_STATE_FROM, msg.state)
    if state not in _TOLD_ENDS:
        raise FieldError("state", state.value, f"one of {', '.join(sorted(_TOLD_ENDS))}")
    key = bounds.part("key", msg.key, attempt_key_from_proto)
    _present("manifest", msg, state is AttemptState.SUCCEEDED, state)
    _present("failure", msg, state in _FAILURES, state)
    manifest = bounds.part("manifest", msg.manifest, manifest_from_proto) if msg.HasField("manifest") else None
    if manifest is not None and manifest.key != key:
        raise FieldError("manifest.key", str(manifest.key), f"the key of the event, {key}")
    return AttemptEvent(
        seq=EventSeq(bounds.number("seq", msg.seq, 1, bounds.COUNT_MAX)),
        key=key,
        state=state,
        manifest=manifest,
        failure=bounds.part("failure", msg.failure, failure_from_proto) if msg.HasField("failure") else None,
        times=bounds.part("times", msg.times, phase_times_from_proto) if msg.HasField("times") else PhaseTimes(),
    )


def _present(field: str, msg: pb.AttemptEvent, wanted: bool, state: AttemptState) -> None:
    there = msg.HasField("manifest") if field == "manifest" else msg.HasField("failure")
    if there is not wanted:
        raise FieldError(field, "present" if there else "absent", f"{'one' if wanted else 'none'} for an attempt that is {state}")


def attempt_events_to_proto(events: tuple[AttemptEvent, ...]) -> pb.AttemptEvents:
    """Events in order."""
    return pb.AttemptEvents(events=[attempt_event_to_proto(event) for event in events])


def attempt_events_from_proto(msg: pb.AttemptEvents) -> tuple[AttemptEvent, ...]:
    """FieldError for a bad event, too many, or numbers that do not grow."""
    events = bounds.each("events", msg.events, limits.EVENTS_PER_MESSAGE_MAX, attempt_event_from_proto)
    for earlier, later in pairwise(events):
        if later.seq <= earlier.seq:
            raise FieldError("events", f"seq {earlier.seq} before {later.seq}", "growing numbers")
    return events


def log_lines(msg_lines: list[str]) -> tuple[str, ...]:
    """Lines of an attempt's log, printable and cut to length; FieldError when they are too many."""
    bounds.bounded("lines", msg_lines, limits.LOG_LINES_MAX)
    return tuple([bounds.line(text, bounds.LOG_LINE_CHARS) for text in msg_lines])


def resync_from_proto(msg: pb.ResyncRequest) -> Generation:
    """The generation that the agent holds."""
    return Generation(bounds.number("generation", msg.generation, 0, bounds.COUNT_MAX))
