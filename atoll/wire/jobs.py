"""Jobs and what they ask for <-> messages. A specification is checked whole before it becomes a noun.

Decides how a client's omissions are filled from the model. Must not know whether a model, a site or a GPU type exists.
"""

from __future__ import annotations

from typing import Final

from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.ids import AdapterId, GpuTypeId, JobId, ModelId, SiteId, TenantId, parse_name
from atoll.model.job import Constraints, InputRef, Job, JobSpec, Priority
from atoll.model.modelspec import AdapterUse, ModelSpec
from atoll.model.shape import Precision, Shape
from atoll.v1 import types_pb2 as pb
from atoll.wire import bounds
from atoll.wire.attempts import (
    attempt_from_proto,
    attempt_to_proto,
    failure_from_proto,
    failure_to_proto,
    manifest_from_proto,
    manifest_to_proto,
)
from atoll.wire.enums import (
    JOB_STATE_FROM,
    JOB_STATE_TO,
    PRECISION_FROM,
    PRECISION_TO,
    PRIORITY_FROM,
    PRIORITY_TO,
    member,
)
from atoll.wire.placement import deferral_from_proto, deferral_to_proto
from atoll.wire.quotes import eta_from_proto, eta_to_proto

_ANYWHERE: Final = Constraints()
# A LoRA at full strength, which is also what a client means who names none.
_ADAPTER_SCALE_MILLI: Final = 1_000


def shape_to_proto(shape: Shape) -> pb.Shape:
    """The shape of a generation."""
    return pb.Shape(
        width=shape.width,
        height=shape.height,
        frames=shape.frames,
        steps=shape.steps,
        cfg_passes=shape.cfg_passes,
        batch=shape.batch,
    )


def shape_from_proto(msg: pb.Shape, *, default: Shape | None = None) -> Shape:
    """Zero figures are `default`'s; the result is not checked yet (`Shape.check`)."""
    if default is None:
        return Shape(
            width=msg.width,
            height=msg.height,
            frames=msg.frames,
            steps=msg.steps,
            cfg_passes=msg.cfg_passes,
            batch=msg.batch,
        )
    return Shape(
        width=msg.width or default.width,
        height=msg.height or default.height,
        frames=msg.frames or default.frames,
        steps=msg.steps or default.steps,
        cfg_passes=msg.cfg_passes or default.cfg_passes,
        batch=msg.batch or default.batch,
    )


def adapter_use_to_proto(use: AdapterUse) -> pb.AdapterUse:
    """A LoRA with its scale."""
    return pb.AdapterUse(adapter_id=use.adapter_id, scale_milli=use.scale_milli)


def adapter_use_from_proto(msg: pb.AdapterUse) -> AdapterUse:
    """FieldError for a bad id or scale. An absent scale is 1,000."""
    most = limits.ADAPTER_SCALE_MILLI_MAX
    scale_milli = msg.scale_milli if msg.HasField("scale_milli") else _ADAPTER_SCALE_MILLI
    return AdapterUse(
        adapter_id=AdapterId(parse_name("adapter_id", msg.adapter_id)),
        scale_milli=bounds.number("scale_milli", scale_milli, -most, most),
    )


def constraints_to_proto(constraints: Constraints) -> pb.Constraints:
    """Where a job may run."""
    return pb.Constraints(
        sites=constraints.sites,
        regions=constraints.regions,
        gpu_types=constraints.gpu_types,
        max_price_usd_micros=constraints.max_price_usd_micros,
    )


def constraints_from_proto(msg: pb.Constraints) -> Constraints:
    """Not checked yet: `JobSpec.check` does."""
    return Constraints(
        sites=tuple([SiteId(site) for site in msg.sites]),
        regions=tuple(msg.regions),
        gpu_types=tuple([GpuTypeId(gpu_type) for gpu_type in msg.gpu_types]),
        max_price_usd_micros=msg.max_price_usd_micros,
    )


def input_ref_to_proto(ref: InputRef) -> pb.InputRef:
    """A file uploaded before."""
    return pb.InputRef(name=ref.name, digest=ref.digest, bytes=ref.bytes)


def input_ref_from_proto(msg: pb.InputRef) -> InputRef:
    """FieldError unless the name is safe in a path, the digest is one and the size is possible."""
    return InputRef(
        name=bounds.file_name("name", msg.name),
        digest=bounds.digest("digest", msg.digest),
        bytes=bounds.number("bytes", msg.bytes, 0, limits.INPUT_BYTES_MAX),
    )


def job_spec_to_proto(spec: JobSpec) -> pb.JobSpec:
    """What a client asks for, every figure spelled out."""
    return pb.JobSpec(
        tenant=spec.tenant,
        model_id=spec.model_id,
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt,
        seed=spec.seed,
        shape=shape_to_proto(spec.shape),
        guidance_milli=spec.guidance_milli,
        precision=PRECISION_TO[spec.precision],
        priority=PRIORITY_TO[spec.priority],
        deadline_ms=spec.deadline_ms,
        start_timeout_ms=spec.start_timeout_ms,
        adapters=[adapter_use_to_proto(use) for use in spec.adapters],
        gang_size=spec.gang_size,
        constraints=None if spec.constraints == _ANYWHERE else constraints_to_proto(spec.constraints),
        inputs=[input_ref_to_proto(ref) for ref in spec.inputs],
        strength_milli=spec.strength_milli,
        origin_site=spec.origin_site or "",
        simulated=spec.simulated,
    )


def job_spec_from_proto(msg: pb.JobSpec, *, default: ModelSpec | None = None, tenant: TenantId | None = None) -> JobSpec:
    """A checked specification; else FieldError for the first field that is wrong.

    `default` fills shape and precision where the client names none; without it they must be complete (a specification that was
    accepted before). `tenant` is the credential's, taken where the message names none; whether another may be named is not decided here.
    """
    adapters: tuple[AdapterUse, ...] = ()
    if msg.adapters:
        adapters = bounds.each("adapters", msg.adapters, limits.ADAPTERS_MAX, adapter_use_from_proto)
    inputs: tuple[InputRef, ...] = ()
    if msg.inputs:
        inputs = bounds.each("inputs", msg.inputs, limits.INPUTS_MAX, input_ref_from_proto)
    origin_site = msg.origin_site
    return JobSpec(
        tenant=TenantId(msg.tenant or tenant or ""),
        model_id=ModelId(msg.model_id),
        prompt=msg.prompt,
        negative_prompt=msg.negative_prompt,
        seed=msg.seed,
        shape=shape_from_proto(msg.shape, default=None if default is None else default.default_shape),
        guidance_milli=msg.guidance_milli,
        precision=_precision(msg.precision, default),
        priority=Priority.NORMAL if not msg.priority else member("priority", PRIORITY_FROM, msg.priority),
        deadline_ms=msg.deadline_ms,
        start_timeout_ms=msg.start_timeout_ms,
        adapters=adapters,
        gang_size=msg.gang_size or 1,
        constraints=constraints_from_proto(msg.constraints) if msg.HasField("constraints") else _ANYWHERE,
        inputs=inputs,
        strength_milli=msg.strength_milli,
        origin_site=SiteId(origin_site) if origin_site else None,
        simulated=msg.simulated,
    ).check()


def _precision(number: int, default: ModelSpec | None) -> Precision:
    if not number and default is not None:
        return default.precision
    return member("precision", PRECISION_FROM, number)


def job_to_proto(job: Job) -> pb.Job:
    """The job with its attempts, as users see it."""
    return pb.Job(
        job_id=job.job_id,
        spec=job_spec_to_proto(job.spec),
        state=JOB_STATE_TO[job.state],
        idempotency_key=job.idempotency_key,
        payload_digest=job.payload_digest,
        request_id=job.request_id,
        accepted_us=job.accepted_us,
        started_us=job.started_us,
        ended_us=job.ended_us,
        cancel_reason=bounds.line(job.cancel_reason),
        attempts=[attempt_to_proto(attempt) for attempt in job.attempts],
        failure=None if job.failure is None else failure_to_proto(job.failure),
        result=None if job.result is None else manifest_to_proto(job.result),
        deferral=None if job.deferral is None else deferral_to_proto(job.deferral),
        eta=None if job.eta is None else eta_to_proto(job.eta),
        as_of_us=job.as_of_us,
    )


def job_from_proto(msg: pb.Job) -> Job:
    """For clients: FieldError naming the figure that cannot be."""
    return Job(
        job_id=JobId(parse_name("job_id", msg.job_id)),
        spec=bounds.part("spec", msg.spec, job_spec_from_proto),
        state=member("state", JOB_STATE_FROM, msg.state),
        idempotency_key=bounds.label("idempotency_key", msg.idempotency_key),
        payload_digest=bounds.label("payload_digest", msg.payload_digest),
        request_id=bounds.label("request_id", msg.request_id),
        accepted_us=bounds.instant("accepted_us", msg.accepted_us),
        started_us=bounds.instant("started_us", msg.started_us),
        ended_us=bounds.instant("ended_us", msg.ended_us),
        cancel_reason=bounds.line(msg.cancel_reason),
        attempts=bounds.each("attempts", msg.attempts, limits.ATTEMPTS_PER_JOB_MAX, attempt_from_proto),
        failure=bounds.part("failure", msg.failure, failure_from_proto) if msg.HasField("failure") else None,
        result=bounds.part("result", msg.result, manifest_from_proto) if msg.HasField("result") else None,
        deferral=bounds.part("deferral", msg.deferral, deferral_from_proto) if msg.HasField("deferral") else None,
        eta=bounds.part("eta", msg.eta, eta_from_proto) if msg.HasField("eta") else None,
        as_of_us=bounds.instant("as_of_us", msg.as_of_us),
    )


def checked_reason(field: str, value: str) -> str:
    """A reason as an operator or a client gives it: one printable line; FieldError when it is empty or too long."""
    reason = bounds.label(field, value, limits.REASON_CHARS_MAX)
    if not reason.strip():
        raise FieldError(field, value, "a reason: it is kept in the audit")
    return reason
