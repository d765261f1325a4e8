"""Strategies: any legal noun, from the type hints of its class; any message at all, from its descriptor."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from functools import cache
from typing import Any, NewType, Union, get_args, get_origin, get_type_hints

from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from atoll.model import (
    adapter,
    assignment,
    attempt,
    audit,
    ids,
    job,
    limits,
    modelspec,
    orchestrators,
    placement,
    replica,
    report,
    residency,
    shape,
    site,
    views,
)
from atoll.model.attempt import ENDED, AttemptState
from atoll.model.replica import Tier
from atoll.wire import bounds

Strategy = st.SearchStrategy[Any]

NAME_ENDS = "abcz09"
names = st.one_of(
    st.sampled_from(["a", "flux-dev", "site.1", "x_y", "0" * 63]),
    st.builds(
        lambda first, middle, last: (first + middle + last).replace("..", ".-"),
        st.sampled_from(NAME_ENDS),
        st.text("ab0._-", max_size=61),
        st.sampled_from(NAME_ENDS),
    ),
)
gpu_types = st.sampled_from(["cpu", "H100-SXM", "RTX-6000-Ada", "MI300X", "B200.x+1"])
printable = st.text(st.characters(codec="utf-8").filter(str.isprintable), max_size=40)
prompts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=80)
digests = st.text("0123456789abcdef", min_size=64, max_size=64).map("sha256:".__add__)
file_names = st.sampled_from(["0.png", "video.mp4", "A", "a_b+c=d@e-f.bin", "x" * 128])
instants = st.integers(0, bounds.TIME_US_MAX)
counts = st.integers(0, bounds.COUNT_MAX)
sizes = st.integers(0, limits.BYTES_MAX)
rates = st.integers(1, limits.RATE_BYTES_PER_S_MAX)
prices = st.integers(0, limits.PRICE_USD_MICROS_MAX)
_PEER_URLS = ["http://10.0.0.7:8443", "https://weights.lab.example/atoll", "http://[fd00::1]:80"]
urls = st.sampled_from(["", "file:///srv/origin", "s3://bucket/a%20b?c=d"])


def tuples(item: Strategy, most: int = 3, unique_by: Callable[[Any], Any] | None = None) -> Strategy:
    return st.lists(item, max_size=most, unique_by=unique_by).map(tuple)


def _a_few(item: Strategy) -> Strategy:
    """As many as one fetch reads at once."""
    return st.lists(item, min_size=1, max_size=limits.FETCH_SOURCES_MAX).map(tuple)


# By NewType, then by class and field, then by field; the rest follows from the hint.
BY_NEWTYPE: dict[Any, Strategy] = {
    ids.GpuTypeId: gpu_types,
    ids.FormId: st.text("0123456789abcdef", min_size=32, max_size=32),
    ids.FleetId: names,
    ids.Term: st.integers(1, bounds.COUNT_MAX),
    ids.Generation: st.integers(1, bounds.COUNT_MAX),
    ids.EventSeq: st.integers(1, bounds.COUNT_MAX),
    ids.Ordinal: st.integers(1, bounds.COUNT_MAX),
    ids.ChangeSeq: counts,
}
figures = st.integers(0, 100)
BY_FIELD: dict[tuple[type, str], Strategy] = {
    (shape.Shape, "width"): st.integers(limits.SIDE_PX_MIN, 4_096),
    (shape.Shape, "height"): st.integers(limits.SIDE_PX_MIN, limits.SIDE_PX_MAX),
    (shape.Shape, "frames"): st.integers(1, limits.FRAMES_MAX),
    (shape.Shape, "steps"): st.integers(1, limits.STEPS_MAX),
    (shape.Shape, "cfg_passes"): st.integers(1, limits.CFG_PASSES_MAX),
    (shape.Shape, "batch"): st.integers(1, limits.BATCH_MAX),
    (job.JobSpec, "prompt"): prompts,
    (job.JobSpec, "negative_prompt"): prompts,
    (job.JobSpec, "seed"): st.integers(0, bounds.INT64_MAX),
    (job.JobSpec, "guidance_milli"): st.integers(0, limits.GUIDANCE_MILLI_MAX),
    (audit.AuditEvent, "written_ms"): st.integers(0, limits.WALL_MS_MAX),
    (orchestrators.OrchestratorView, "since_ms"): st.integers(0, limits.WALL_MS_MAX),
    (orchestrators.OrchestratorView, "last_beat_ms"): st.integers(0, bounds.TIME_MS_MAX),
    (orchestrators.OrchestratorView, "lag_ms"): st.one_of(st.none(), st.integers(0, bounds.TIME_MS_MAX)),
    (job.JobSpec, "deadline_ms"): st.integers(0, limits.DEADLINE_MS_MAX),
    (job.JobSpec, "start_timeout_ms"): st.integers(0, limits.DEADLINE_MS_MAX),
    (job.JobSpec, "gang_size"): st.sampled_from(limits.GANG_SIZES),
    (replica.ReplicaFact, "gang_size"): st.sampled_from(limits.GANG_SIZES),
    (replica.ReplicaFact, "loading_us"): st.integers(0, limits.PREDICTED_US_MAX),
    (job.Constraints, "regions"): tuples(printable.filter(bool)),
    (job.InputRef, "bytes"): st.integers(0, limits.INPUT_BYTES_MAX),
    (modelspec.AdapterUse, "scale_milli"): st.integers(-10_000, 10_000),
    (job.JobSpec, "strength_milli"): st.integers(0, limits.STRENGTH_MILLI_MAX),
    (adapter.AdapterSpec, "family"): st.sampled_from(["FLUX.1", "ü"]),
    (adapter.AdapterSpec, "rank"): st.integers(1, limits.ADAPTER_RANK_MAX),
    (adapter.AdapterSpec, "weights_bytes"): st.integers(1, limits.BYTES_MAX),
    (adapter.AdapterSpec, "weights_digest"): st.one_of(st.just(""), digests),
    (adapter.AdapterSpec, "origin_path"): st.sampled_from(["loras/a.safetensors", "b.safetensors"]),
    (adapter.AdapterSpec, "model_ids"): tuples(names, unique_by=str),
    (replica.ReplicaFact, "adapters"): tuples(names, unique_by=str).map(sorted).map(tuple),
    (report.NodeFacts, "disk_adapters"): tuples(names, unique_by=str).map(sorted).map(tuple),
    (report.NodeFacts, "compiled"): tuples(st.text("0123456789abcdef", min_size=32, max_size=32), unique_by=str).map(sorted).map(tuple),
    (modelspec.ModelSpec, "weights_digest"): st.one_of(st.just(""), digests),
    (modelspec.ModelSpec, "side_px"): st.integers(0, limits.SIDE_PX_MAX),
    (modelspec.ModelSpec, "frame_step"): st.integers(0, limits.FRAMES_MAX),
    (modelspec.ModelPhysics, "temporal_factor"): st.integers(1, 8),
    (attempt.Attempt, "factors_milli"): tuples(st.integers(0, 1_000_000)),
    (attempt.Artifact, "pixel_digest"): st.one_of(st.just(""), digests),
    (attempt.ResultManifest, "seed"): st.integers(0, bounds.INT64_MAX),
    (ids.SlotRef, "index"): st.integers(0, limits.GPUS_PER_NODE_MAX - 1),
    (report.SlotFacts, "index"): st.integers(0, limits.GPUS_PER_NODE_MAX - 1),
    (report.AttemptProgress, "state"): st.sampled_from(sorted(set(AttemptState) - ENDED)),
    (report.AttemptProgress, "steps_done"): st.integers(0, limits.STEPS_MAX),
    (report.SiteHello, "protocol_version"): st.integers(0, 2**31 - 1),
    (report.SiteHello, "boot_id"): names,
    (report.Welcome, "time_scale_milli"): st.integers(1, 1_000_000),
    (report.Welcome, "report_interval_ms"): st.integers(1, 60_000),
    (site.PoolSpec, "pool_id"): st.sampled_from(["h100", "pool-a", "cpu"]),
    (site.PoolSpec, "nodes"): st.integers(1, 64),
    (site.PoolSpec, "gpus_per_node"): st.integers(1, limits.GPUS_PER_NODE_MAX),
    (site.SiteSpec, "region"): st.sampled_from(["eu-west", "Japan East", "ü"]),
    (site.SiteSpec, "weights_url"): st.sampled_from(["", *_PEER_URLS]),
    (assignment.Peer, "url"): st.sampled_from(_PEER_URLS),
    (assignment.Sources, "peers"): _a_few(st.builds(assignment.Peer, site_id=names, url=st.sampled_from(_PEER_URLS))),
    (placement.FetchFrom, "sites"): _a_few(names),
    (site.SiteSpec, "billing"): st.sampled_from(["reserved", "spot"]),
    (site.SiteSpec, "latitude_micro_deg"): st.integers(-90_000_000, 90_000_000),
    (site.SiteSpec, "longitude_micro_deg"): st.integers(-180_000_000, 180_000_000),
    (placement.Candidate, "total_us"): st.integers(bounds.INT64_MIN, bounds.INT64_MAX),
    (placement.Candidate, "terms_us"): tuples(st.integers(bounds.INT64_MIN, bounds.INT64_MAX)),
    (placement.Candidate, "wait_us"): st.integers(bounds.INT64_MIN, bounds.INT64_MAX),
    (placement.Claim, "first"): st.integers(0, limits.GPUS_PER_NODE_MAX - 1),
    (placement.Stopped, "index"): st.integers(0, limits.GPUS_PER_NODE_MAX - 1),
    (placement.Claim, "slots"): st.sampled_from(limits.GANG_SIZES),
    (placement.Evicted, "price_us"): st.integers(bounds.INT64_MIN, bounds.INT64_MAX),
    (views.DrainMove, "action"): st.sampled_from(["wait", "move", "stop_at_deadline"]),
    (views.FleetView, "fleet_id"): names,
    (views.FleetView, "time_scale_milli"): st.integers(1, 1_000_000),
    (assignment.DesiredReplica, "index"): st.one_of(st.none(), st.integers(0, limits.GPUS_PER_NODE_MAX - 1)),
    (assignment.DesiredReplica, "tier"): st.sampled_from([Tier.GPU, Tier.HOST, Tier.DISK]),
    (residency.CopyView, "bytes_left"): st.integers(-1, limits.BYTES_MAX),
    (residency.CopyView, "tier"): st.sampled_from([Tier.GPU, Tier.HOST, Tier.DISK]),
    (residency.CopyView, "age_us"): st.integers(-1, bounds.TIME_US_MAX),
    (residency.Pin, "tier"): st.sampled_from([Tier.GPU, Tier.HOST, Tier.DISK]),
    (residency.ResidencyEvent, "tier"): st.sampled_from([Tier.GPU, Tier.HOST, Tier.DISK]),
    (report.FetchFact, "bytes_done"): sizes,
    (report.FetchFact, "bytes_total"): sizes,
    (assignment.AssignedAttempt, "stop_after_ms"): st.integers(0, bounds.TIME_MS_MAX),
}
BY_NAME: dict[str, Strategy] = {
    "name": file_names,
    "digest": digests,
    "media_type": st.sampled_from(["image/png", "video/mp4"]),
    "origin_path": st.sampled_from(["", "models/tiny-image", "a/b.c/d"]),
    "uri": urls,
    "origin_url": urls,
    "artifacts_url": urls,
    "credential": st.sampled_from(["", "token-123"]),
    "max_price_usd_micros": prices,
}
# The origin store alone, said because nodes of the site have the weights.
PAST_THE_SITE: dict[Any, Any] = {
    assignment.Sources: assignment.Sources(peers=(), origin_too=True),
    placement.FetchFrom: placement.FetchFrom(sites=(), origin_too=True),
}
UNIQUE: dict[tuple[type, str], Callable[[Any], Any]] = {
    (attempt.ResultManifest, "artifacts"): lambda artifact: artifact.name,
    (site.SiteSpec, "pools"): lambda pool: pool.pool_id,
    (job.JobSpec, "adapters"): lambda use: use.adapter_id,
    (report.SiteHello, "pools"): lambda pool: pool.pool_id,
    (report.NodeFacts, "slots"): lambda slot: slot.index,
}


def _by_unit(name: str) -> Strategy:
    if name.endswith("_bytes_per_s") or name == "bytes_per_s":
        return rates
    if name.endswith("_bytes") or name == "bytes":
        return sizes
    if "usd_micros" in name:
        return prices
    return instants if name.endswith("_us") else counts


def names_of(cls: Any) -> list[str]:
    """The fields of a dataclass or a named tuple."""
    return [each.name for each in fields(cls)] if is_dataclass(cls) else list(cls._fields)


@cache
def nouns(cls: Any) -> Strategy:
    """Any legal instance of a class of the model."""
    if cls is report.AttemptEvent:
        return attempt_events()
    hints = get_type_hints(cls)
    made = st.builds(cls, **{name: _field(cls, name, hints[name]) for name in names_of(cls)})
    if cls in PAST_THE_SITE:
        return st.one_of(made, st.just(PAST_THE_SITE[cls]))
    return made.map(_of_its_inputs) if cls is job.JobSpec else made


def _of_its_inputs(spec: job.JobSpec) -> job.JobSpec:
    """A strength belongs to an input image, and leaves at least one step."""
    if spec.image is None:
        return replace(spec, strength_milli=0)
    enough = spec.shape.steps * spec.strength_milli >= 1_000
    return spec if enough else replace(spec, strength_milli=1_000)


@st.composite
def attempt_events(draw: st.DrawFn) -> report.AttemptEvent:
    """What goes with an end depends on the end."""
    state = draw(st.sampled_from([AttemptState.SUCCEEDED, AttemptState.FAILED, AttemptState.REFUSED, AttemptState.STOPPED]))
    key = draw(nouns(ids.AttemptKey))
    return report.AttemptEvent(
        seq=draw(BY_NEWTYPE[ids.EventSeq]),
        key=key,
        state=state,
        manifest=replace(draw(nouns(attempt.ResultManifest)), key=key) if state is AttemptState.SUCCEEDED else None,
        failure=draw(nouns(attempt.Failure)) if state in {AttemptState.FAILED, AttemptState.REFUSED} else None,
        times=draw(nouns(attempt.PhaseTimes)),
    )


def _field(cls: type, name: str, hint: Any) -> Strategy:
    if cls is attempt.PhaseTimes:
        return st.integers(-1, bounds.TIME_US_MAX)
    found = BY_FIELD.get((cls, name), BY_NAME.get(name))
    return _hinted(cls, name, hint) if found is None else found


def _hinted(cls: type, name: str, hint: Any) -> Strategy:
    if isinstance(hint, NewType):
        return BY_NEWTYPE.get(hint, names)
    origin = get_origin(hint)
    if origin is Union or origin is types.UnionType:
        return st.one_of([_hinted(cls, name, arg) for arg in get_args(hint)])
    if origin in (tuple, Sequence):
        return tuples(_hinted(cls, name, get_args(hint)[0]), unique_by=UNIQUE.get((cls, name)))
    if hint is types.NoneType:
        return st.none()
    if hint is bool:
        return st.booleans()
    if hint is str:
        return printable
    if hint is int:
        return _by_unit(name)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    assert is_dataclass(hint) or hasattr(hint, "_fields"), hint
    inner: Any = hint
    return nouns(inner)


_STRINGS = st.one_of(names, st.sampled_from(["", "..", "a/b", "a\nb", "\x00", "A" * 300, "sha256:" + "0" * 64]), st.text(max_size=8))
_INTS = st.one_of(st.integers(-2, 70), st.sampled_from([bounds.INT64_MIN, bounds.INT64_MAX, 2**61 + 1, 10**9]))


_MESSAGES: dict[str, Strategy] = {}


def messages(cls: type[Message]) -> Strategy:
    """Any message of a class: what a hostile or broken peer might send."""
    name = cls.DESCRIPTOR.full_name
    if name not in _MESSAGES:
        values = {field.name: _values(field) for field in cls.DESCRIPTOR.fields}
        _MESSAGES[name] = st.fixed_dictionaries({}, optional=values).map(lambda given: cls(**given))
    return _MESSAGES[name]


def _values(field: Any) -> Strategy:
    inner = field.message_type
    if inner is not None:
        one = messages(message_factory.GetMessageClass(inner))
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        one = _STRINGS
    elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        one = st.booleans()
    elif field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        one = st.integers(-1, 20)
    elif field.cpp_type == FieldDescriptor.CPPTYPE_INT32:
        one = st.integers(-(2**31), 2**31 - 1)
    else:
        one = _INTS
    return st.lists(one, max_size=2) if field.is_repeated else one
