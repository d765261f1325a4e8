"""Attempts and what they leave behind <-> messages. An agent's manifests and failures are hostile until checked here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from atoll.model import limits
from atoll.model.attempt import Artifact, Attempt, Failure, PhaseTimes, ResultManifest
from atoll.model.errors import FieldError
from atoll.model.ids import AttemptKey, JobId, NodeId, Ordinal, PoolId, SiteId, SlotRef, parse_name
from atoll.v1 import types_pb2 as pb
from atoll.wire import bounds
from atoll.wire.enums import ATTEMPT_STATE_FROM, ATTEMPT_STATE_TO, FAILURE_KIND_FROM, FAILURE_KIND_TO, member
from atoll.wire.placement import explanation_from_proto, explanation_to_proto

# More components than there will be, and more than any factor is clipped to.
_FACTORS_MAX: Final = 16
_FACTOR_MILLI_MAX: Final = 1_000_000


def attempt_key_to_proto(key: AttemptKey) -> pb.AttemptKey:
    """The fencing token of an attempt."""
    return pb.AttemptKey(job_id=key.job_id, ordinal=key.ordinal)


def attempt_key_from_proto(msg: pb.AttemptKey) -> AttemptKey:
    """FieldError unless it can name an attempt."""
    return AttemptKey(
        job_id=JobId(parse_name("job_id", msg.job_id)),
        ordinal=Ordinal(bounds.number("ordinal", msg.ordinal, 1, bounds.COUNT_MAX)),
    )


def slot_ref_to_proto(slot: SlotRef) -> pb.SlotRef:
    """One GPU of a site."""
    return pb.SlotRef(pool_id=slot.pool_id, node_id=slot.node_id, index=slot.index)


def slot_ref_from_proto(msg: pb.SlotRef) -> SlotRef:
    """FieldError unless it can name a slot."""
    return SlotRef(
        pool_id=PoolId(parse_name("pool_id", msg.pool_id)),
        node_id=NodeId(parse_name("node_id", msg.node_id)),
        index=bounds.number("index", msg.index, 0, limits.GPUS_PER_NODE_MAX - 1),
    )


def failure_to_proto(failure: Failure) -> pb.Failure:
    """The message is made one printable line: it often quotes an exception."""
    return pb.Failure(kind=FAILURE_KIND_TO[failure.kind], message=bounds.line(failure.message))


def failure_from_proto(msg: pb.Failure) -> Failure:
    """FieldError for an unknown kind; the message is made one printable line."""
    return Failure(kind=member("kind", FAILURE_KIND_FROM, msg.kind), message=bounds.line(msg.message))


def artifact_to_proto(artifact: Artifact) -> pb.Artifact:
    """One file of a result."""
    return pb.Artifact(
        name=artifact.name,
        media_type=artifact.media_type,
        bytes=artifact.bytes,
        digest=artifact.digest,
        pixel_digest=artifact.pixel_digest,
        uri=artifact.uri,
    )


def artifact_from_proto(msg: pb.Artifact) -> Artifact:
    """FieldError unless the name is safe in a path and the digest is one."""
    return Artifact(
        name=bounds.file_name("name", msg.name),
        media_type=bounds.media_type("media_type", msg.media_type),
        bytes=bounds.number("bytes", msg.bytes, 0, limits.BYTES_MAX),
        digest=bounds.digest("digest", msg.digest),
        pixel_digest=bounds.optional_digest("pixel_digest", msg.pixel_digest),
        uri=bounds.url("uri", msg.uri),
    )


def manifest_to_proto(manifest: ResultManifest) -> pb.ResultManifest:
    """What an attempt produced."""
    return pb.ResultManifest(
        key=attempt_key_to_proto(manifest.key),
        artifacts=[artifact_to_proto(artifact) for artifact in manifest.artifacts],
        seed=manifest.seed,
        simulated=manifest.simulated,
    )


def manifest_from_proto(msg: pb.ResultManifest) -> ResultManifest:
    """FieldError for a bad artifact, too many, or two of one name."""
    artifacts = bounds.each("artifacts", msg.artifacts, limits.RESULT_ARTIFACTS_MAX, artifact_from_proto)
    if len({artifact.name for artifact in artifacts}) != len(artifacts):
        raise FieldError("artifacts", [artifact.name for artifact in artifacts], "names that differ")
    return ResultManifest(
        key=bounds.part("key", msg.key, attempt_key_from_proto),
        artifacts=artifacts,
        seed=bounds.number("seed", msg.seed, 0, bounds.INT64_MAX),
        simulated=msg.simulated,
    )


def phase_times_to_proto(times: PhaseTimes) -> pb.PhaseTimes:
    """Durations by phase; -1: it did not happen."""
    return pb.PhaseTimes(
        waiting_us=times.waiting_us,
        fetch_us=times.fetch_us,
        load_us=times.load_us,
        adapt_us=times.adapt_us,
        compile_us=times.compile_us,
        run_us=times.run_us,
        upload_us=times.upload_us,
    )


def phase_times_from_proto(msg: pb.PhaseTimes) -> PhaseTimes:
    """FieldError unless each is -1 or a duration."""
    most = bounds.TIME_US_MAX
    return PhaseTimes(
        waiting_us=bounds.number("waiting_us", msg.waiting_us, -1, most),
        fetch_us=bounds.number("fetch_us", msg.fetch_us, -1, most),
        load_us=bounds.number("load_us", msg.load_us, -1, most),
        adapt_us=bounds.number("adapt_us", msg.adapt_us, -1, most),
        compile_us=bounds.number("compile_us", msg.compile_us, -1, most),
        run_us=bounds.number("run_us", msg.run_us, -1, most),
        upload_us=bounds.number("upload_us", msg.upload_us, -1, most),
    )


def attempt_to_proto(attempt: Attempt) -> pb.Attempt:
    """One try, with its explanation."""
    return pb.Attempt(
        key=attempt_key_to_proto(attempt.key),
        site_id=attempt.site_id,
        slot=slot_ref_to_proto(attempt.slot),
        state=ATTEMPT_STATE_TO[attempt.state],
        cold=attempt.cold,
        leased_us=attempt.leased_us,
        predicted_us=attempt.predicted_us,
        running_us=attempt.running_us,
        ended_us=attempt.ended_us,
        steps_done=attempt.steps_done,
        failure=None if attempt.failure is None else failure_to_proto(attempt.failure),
        times=phase_times_to_proto(attempt.times),
        explanation=None if attempt.explanation is None else explanation_to_proto(attempt.explanation),
        factors_milli=attempt.factors_milli,
    )


def attempt_from_proto(msg: pb.Attempt) -> Attempt:
    """FieldError naming the figure that cannot be."""
    return Attempt(
        key=bounds.part("key", msg.key, attempt_key_from_proto),
        site_id=SiteId(parse_name("site_id", msg.site_id)),
        slot=bounds.part("slot", msg.slot, slot_ref_from_proto),
        state=member("state", ATTEMPT_STATE_FROM, msg.state),
        cold=msg.cold,
        leased_us=bounds.instant("leased_us", msg.leased_us),
        predicted_us=bounds.instant("predicted_us", msg.predicted_us),
        running_us=bounds.instant("running_us", msg.running_us),
        ended_us=bounds.instant("ended_us", msg.ended_us),
        steps_done=bounds.number("steps_done", msg.steps_done, 0, bounds.COUNT_MAX),
        failure=bounds.part("failure", msg.failure, failure_from_proto) if msg.HasField("failure") else None,
        times=bounds.part("times", msg.times, phase_times_from_proto) if msg.HasField("times") else PhaseTimes(),
        explanation=bounds.part("explanation", msg.explanation, explanation_from_proto) if msg.HasField("explanation") else None,
        factors_milli=_factors_from_proto(msg.factors_milli),
    )


def _factors_from_proto(told: Sequence[int]) -> tuple[int, ...]:
    """FieldError for more factors than there can be components, or one that nothing would be multiplied by."""
    if len(told) > _FACTORS_MAX:
        raise FieldError("factors_milli", len(told), f"at most {_FACTORS_MAX} factors")
    return tuple(bounds.number(f"factors_milli[{index}]", factor, 0, _FACTOR_MILLI_MAX) for index, factor in enumerate(told))
