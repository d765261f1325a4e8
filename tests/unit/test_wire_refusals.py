"""What arrives from outside and cannot be: refused with the name of the field, its value and what would be right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.ids import AttemptKey, JobId, ModelId, Ordinal, TenantId
from atoll.model.job import JobSpec, Priority
from atoll.model.modelspec import DenoiserKind, Modality, ModelPhysics, ModelSpec
from atoll.model.shape import Precision, Shape
from atoll.v1 import site_service_pb2 as site_pb
from atoll.v1 import types_pb2 as pb
from atoll.wire.attempts import attempt_key_to_proto, failure_from_proto, failure_to_proto
from atoll.wire.jobs import checked_reason, job_spec_from_proto
from atoll.wire.models import model_spec_from_proto
from atoll.wire.reports import attempt_event_from_proto, attempt_events_from_proto, hello_from_proto, log_lines, report_from_proto
from atoll.wire.sites import site_spec_from_proto

DIGEST = "sha256:" + "0a" * 32
SHAPE = Shape(width=512, height=768, steps=20, cfg_passes=2)
MODEL = ModelSpec(
    model_id=ModelId("flux-dev"),
    title="Flux",
    family="flux",
    modality=Modality.IMAGE,
    pipeline_class="FluxPipeline",
    weights_bytes=1,
    resident_bytes=1,
    activation_bytes=1,
    default_shape=SHAPE,
    precision=Precision.FP16,
    physics=ModelPhysics(
        kind=DenoiserKind.TRANSFORMER,
        denoiser_params=1,
        tokenwise_params=1,
        text_params=1,
        vae_params=1,
        layers=1,
        hidden=1,
        text_tokens=1,
        reference=SHAPE,
        reference_tokens=1,
        reference_forward_flops=1,
        reference_attention_flops=1,
        reference_decode_flops=1,
    ),
)


def spec_message(**changed: Any) -> pb.JobSpec:
    values: dict[str, Any] = {"tenant": "team-a", "model_id": "flux-dev", "prompt": "a lighthouse"}
    return pb.JobSpec(**{**values, **changed})


def test_a_client_who_says_little_gets_the_models_defaults() -> None:
    spec = job_spec_from_proto(spec_message(tenant="", shape=pb.Shape(width=640)), default=MODEL, tenant=TenantId("team-b"))
    assert spec == JobSpec(
        tenant=TenantId("team-b"),
        model_id=ModelId("flux-dev"),
        prompt="a lighthouse",
        shape=Shape(width=640, height=768, steps=20, cfg_passes=2),
        precision=Precision.FP16,
        priority=Priority.NORMAL,
        gang_size=1,
    )


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("tenant", {"tenant": ""}),
        ("tenant", {"tenant": "team/../root"}),
        ("model", {"model_id": "../flux"}),
        ("model", {"model_id": "flux\ndev"}),
        ("model", {"model_id": "flux\x00"}),
        ("prompt", {"prompt": "x" * 1_000_000}),
        ("prompt", {"prompt": "a\x00b"}),
        ("negative_prompt", {"negative_prompt": "é" * limits.PROMPT_BYTES}),
        ("seed", {"seed": -1}),
        ("shape.width", {"shape": pb.Shape(width=-1)}),
        ("shape.height", {"shape": pb.Shape(height=10**9)}),
        ("shape.steps", {"shape": pb.Shape(steps=2**63 - 1)}),
        ("shape", {"shape": pb.Shape(width=16_384, height=16_384)}),
        ("guidance_milli", {"guidance_milli": -(2**63)}),
        ("precision", {"precision": 99}),
        ("priority", {"priority": 4}),
        ("deadline_ms", {"deadline_ms": limits.DEADLINE_MS_MAX + 1}),
        ("start_timeout_ms", {"start_timeout_ms": -5}),
        ("adapters[1].adapter_id", {"adapters": [pb.AdapterUse(adapter_id="ok"), pb.AdapterUse(adapter_id="/etc")]}),
        ("adapters[0].scale_milli", {"adapters": [pb.AdapterUse(adapter_id="ok", scale_milli=10_001)]}),
        ("adapters", {"adapters": [pb.AdapterUse(adapter_id="ok")] * 9}),
        ("gang_size", {"gang_size": 3}),
        ("constraints.sites", {"constraints": pb.Constraints(sites=["a/b"])}),
        ("constraints.regions", {"constraints": pb.Constraints(regions=["eu\n"])}),
        ("constraints.gpu_types", {"constraints": pb.Constraints(gpu_types=["H100/.."])}),
        ("constraints.gpu_types", {"constraints": pb.Constraints(gpu_types=["cpu"] * 257)}),
        ("constraints.max_price_usd_micros", {"constraints": pb.Constraints(max_price_usd_micros=-1)}),
        ("inputs[0].name", {"inputs": [pb.InputRef(name="../x", digest=DIGEST)]}),
        ("inputs[0].digest", {"inputs": [pb.InputRef(name="x", digest="md5:1")]}),
        ("inputs[0].bytes", {"inputs": [pb.InputRef(name="x", digest=DIGEST, bytes=limits.INPUT_BYTES_MAX + 1)]}),
        ("origin_site", {"origin_site": "Nowhere!"}),
    ],
)
def test_a_job_that_cannot_be_names_its_field(field: str, changed: dict[str, Any]) -> None:
    with pytest.raises(FieldError) as raised:
        job_spec_from_proto(spec_message(**changed), default=MODEL)
    assert raised.value.field == field
    # The error is one short line, whatever the value holds.
    assert len(str(raised.value)) < 400
    assert str(raised.value).isprintable()


def test_an_accepted_job_must_be_complete() -> None:
    with pytest.raises(FieldError, match=r"shape\.width is 0"):
        job_spec_from_proto(spec_message(precision=pb.PRECISION_BF16))
    with pytest.raises(FieldError, match="precision is 0"):
        job_spec_from_proto(spec_message(shape=pb.Shape(width=64, height=64, steps=1, frames=1, cfg_passes=1, batch=1)))


KEY = attempt_key_to_proto(AttemptKey(job_id=JobId("j1"), ordinal=Ordinal(1)))


def succeeded(**changed: Any) -> site_pb.AttemptEvent:
    artifact: dict[str, Any] = {"name": "0.png", "media_type": "image/png", "bytes": 10, "digest": DIGEST}
    manifest = pb.ResultManifest(key=KEY, artifacts=[pb.Artifact(**{**artifact, **changed})])
    return site_pb.AttemptEvent(seq=1, key=KEY, state=pb.ATTEMPT_STATE_SUCCEEDED, manifest=manifest)


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("name", {"name": "../../etc/passwd"}),
        ("name", {"name": "a/b.png"}),
        ("name", {"name": ""}),
        ("name", {"name": ".hidden"}),
        ("name", {"name": "a..b"}),
        ("media_type", {"media_type": "text/html; charset=x\r\nSet-Cookie: a"}),
        ("bytes", {"bytes": -1}),
        ("bytes", {"bytes": 2**63 - 1}),
        ("digest", {"digest": "sha256:" + "A" * 64}),
        ("digest", {"digest": ""}),
        ("pixel_digest", {"pixel_digest": "sha256:00"}),
        ("uri", {"uri": "file:///srv/../etc/passwd"}),
        ("uri", {"uri": "file:///a b"}),
    ],
)
def test_a_hostile_manifest_names_its_field(field: str, changed: dict[str, Any]) -> None:
    with pytest.raises(FieldError) as raised:
        attempt_event_from_proto(succeeded(**changed))
    assert raised.value.field == f"manifest.artifacts[0].{field}"


def _event(change: Callable[[site_pb.AttemptEvent], object]) -> site_pb.AttemptEvent:
    event = succeeded()
    change(event)
    return event


@pytest.mark.parametrize(
    ("field", "event"),
    [
        ("seq", _event(lambda event: setattr(event, "seq", 0))),
        ("state", _event(lambda event: setattr(event, "state", pb.ATTEMPT_STATE_LOST))),
        ("state", _event(lambda event: setattr(event, "state", pb.ATTEMPT_STATE_RUNNING))),
        ("key.ordinal", _event(lambda event: setattr(event.key, "ordinal", 0))),
        ("manifest.key", _event(lambda event: setattr(event.manifest.key, "ordinal", 2))),
        ("manifest", _event(lambda event: event.ClearField("manifest"))),
        ("failure", _event(lambda event: setattr(event.failure, "message", "but"))),
        ("manifest", _event(lambda event: setattr(event, "state", pb.ATTEMPT_STATE_STOPPED))),
        ("manifest.artifacts", _event(lambda event: event.manifest.artifacts.append(event.manifest.artifacts[0]))),
        ("manifest.artifacts", _event(lambda event: event.manifest.artifacts.extend([pb.Artifact()] * 64))),
        ("times.run_us", _event(lambda event: setattr(event.times, "run_us", -2))),
    ],
)
def test_an_event_that_contradicts_itself_names_its_field(field: str, event: site_pb.AttemptEvent) -> None:
    with pytest.raises(FieldError) as raised:
        attempt_event_from_proto(event)
    assert raised.value.field == field


def test_events_must_come_in_order() -> None:
    with pytest.raises(FieldError, match="events is 'seq 1 before 1': expected growing numbers"):
        attempt_events_from_proto(site_pb.AttemptEvents(events=[succeeded(), succeeded()]))


def pool(**changed: Any) -> pb.PoolSpec:
    return pb.PoolSpec(**{"pool_id": "h100", "gpu_type": "H100-SXM", "nodes": 2, "gpus_per_node": 8, **changed})


def hello(*pools: pb.PoolSpec, **changed: Any) -> site_pb.SiteHello:
    values: dict[str, Any] = {"site_id": "aws-use1", "boot_id": "b1", "runtime": pb.SITE_RUNTIME_TWIN, "pools": pools}
    return site_pb.SiteHello(**{**values, **changed})


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("site_id", hello(site_id="AWS")),
        ("fleet_id", hello(fleet_id="f/1")),
        ("term", hello(term=-1)),
        ("agent_version", hello(agent_version="\x1b[31m")),
        ("boot_id", hello(boot_id="")),
        ("runtime", hello(runtime=pb.SITE_RUNTIME_UNSPECIFIED)),
        ("next_event_seq", hello(next_event_seq=-(2**63))),
        ("pools", hello(*[pool(pool_id=f"p{number}") for number in range(65)])),
        ("pools", hello(pool(), pool())),
        ("pools", hello(*[pool(pool_id=f"p{number}", nodes=4_096, gpus_per_node=8) for number in range(5)])),
        ("pools[0].nodes", hello(pool(nodes=0))),
        ("pools[0].gpus_per_node", hello(pool(gpus_per_node=10**9))),
        ("pools[0].gpu_type", hello(pool(gpu_type="H100\n"))),
        ("pools[0].pool_id", hello(pool(pool_id="p" * 62))),
        ("pools[0].node.disk_bytes_per_s", hello(pool(node=pb.NodeSpec(disk_bytes_per_s=2**63 - 1)))),
        ("pools[0].gpu_memory_bytes", hello(pool(gpu_memory_bytes=-1))),
    ],
)
def test_a_hostile_hello_names_its_field(field: str, message: site_pb.SiteHello) -> None:
    with pytest.raises(FieldError) as raised:
        hello_from_proto(message)
    assert raised.value.field == field


def node(*slots: site_pb.SlotFacts, **changed: Any) -> site_pb.SiteReport:
    facts: dict[str, Any] = {"pool_id": "h100", "node_id": "h100-0", "slots": slots}
    return site_pb.SiteReport(nodes=[site_pb.NodeFacts(**{**facts, **changed})])


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("seq", site_pb.SiteReport(seq=-1)),
        ("generation", site_pb.SiteReport(generation=-1)),
        ("rates.h2d_bytes_per_s", site_pb.SiteReport(rates=site_pb.RateFacts(h2d_bytes_per_s=-1))),
        ("nodes[0].node_id", node(node_id="..")),
        ("nodes[0].host_free_bytes", node(host_free_bytes=-1)),
        ("nodes[0].disk_models", node(disk_models=["a/b"])),
        ("nodes[0].host_models", node(host_models=["a"] * (limits.MODELS_PER_NODE_MAX + 1))),
        ("nodes[0].compiled", node(compiled=["../code"])),
        ("nodes[0].compiled", node(compiled=["0" * 32] * (limits.FORMS_PER_NODE_MAX + 1))),
        ("nodes[0].slots", node(*[site_pb.SlotFacts()] * 73)),
        ("nodes[0].slots", node(*[site_pb.SlotFacts(index=1)] * 2)),
        ("nodes[0].slots[0].index", node(site_pb.SlotFacts(index=-1))),
        ("nodes[0].slots[0].memory_free_bytes", node(site_pb.SlotFacts(memory_free_bytes=2**62))),
        ("nodes[0].slots[0].replicas", node(site_pb.SlotFacts(replicas=[site_pb.ReplicaFact()] * 65))),
        ("nodes[0].slots[0].replicas[0].state", node(site_pb.SlotFacts(replicas=[site_pb.ReplicaFact(model_id="m")]))),
        ("progress[0].state", site_pb.SiteReport(progress=[site_pb.AttemptProgress(key=KEY, state=pb.ATTEMPT_STATE_SUCCEEDED)])),
        ("progress[0].key.job_id", site_pb.SiteReport(progress=[site_pb.AttemptProgress(state=pb.ATTEMPT_STATE_RUNNING)])),
    ],
)
def test_a_hostile_report_names_its_field(field: str, message: site_pb.SiteReport) -> None:
    with pytest.raises(FieldError) as raised:
        report_from_proto(message)
    assert raised.value.field == field


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("site_id", {"site_id": "a\nb"}),
        ("region", {"region": ""}),
        ("wan_bytes_per_s", {"wan_bytes_per_s": 0}),
        ("origin_bytes_per_s", {"origin_bytes_per_s": 10**16}),
        ("latitude_micro_deg", {"latitude_micro_deg": 90_000_001}),
        ("pools[0].nodes", {"pools": [pool(nodes=-3)]}),
        ("egress_usd_micros_per_gb", {"egress_usd_micros_per_gb": -1}),
    ],
)
def test_a_site_that_cannot_be_names_its_field(field: str, changed: dict[str, Any]) -> None:
    values: dict[str, Any] = {"site_id": "a", "region": "eu", "wan_bytes_per_s": 1, "origin_bytes_per_s": 1}
    with pytest.raises(FieldError) as raised:
        site_spec_from_proto(pb.SiteSpec(**{**values, **changed}))
    assert raised.value.field == field


@pytest.mark.parametrize("path", ["/etc", "a/../b", "a//b", "a/", ".", "a\\b"])
def test_a_model_cannot_be_fetched_from_outside_the_origin(path: str) -> None:
    with pytest.raises(FieldError, match="origin_path"):
        model_spec_from_proto(pb.ModelSpec(model_id="m", modality=pb.MODALITY_IMAGE, origin_path=path))


def test_messages_for_people_are_made_printable_instead_of_refused() -> None:
    hostile = pb.Failure(kind=pb.FAILURE_KIND_INTERNAL, message="a\x1b[31m\nTraceback:\x00\r\n  x" + "y" * 10_000)
    failure = failure_from_proto(hostile)
    assert failure.message.isprintable()
    assert len(failure.message) <= 2_000
    # What was cleaned once stays as it is, and a path with undecodable bytes can be sent at all.
    assert failure_from_proto(failure_to_proto(failure)) == failure
    assert log_lines(["a\tb", "\x07bell"]) == ("a b", "\N{REPLACEMENT CHARACTER}bell")


def test_an_audit_wants_a_reason() -> None:
    assert checked_reason("reason", "moving racks") == "moving racks"
    for bad in ("", "  ", "a\nb", "x" * 501):
        with pytest.raises(FieldError, match="reason"):
            checked_reason("reason", bad)
