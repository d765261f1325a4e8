"""Submit and SubmitBatch: from a client's message to a Submission that the core can accept.

Decides which jobs are well formed and name things that exist. Whether there is room is the driver's and the core's matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Final

from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId, JobId, ModelId, TenantId, parse_key, parse_name
from atoll.model.job import JobSpec
from atoll.v1 import job_service_pb2 as pb
from atoll.v1 import types_pb2
from atoll.wire.jobs import job_spec_from_proto
from orchestrator.api.auth import CALLER, REQUEST_ID, Caller, own_tenant
from orchestrator.api.status import CODES, did_you_mean, field_refusal
from orchestrator.core.events import JobsSubmitted, RequestRef, Submission
from orchestrator.core.jobs import ENDED_KEYS_MAX
from orchestrator.core.outputs import Accepted, Done, Refusal, RefusalCode, SubmitReply
from orchestrator.driver import Driver
from orchestrator.identity import new_job_id
from orchestrator.inbox import Lane
from orchestrator.readers import ReadModel
from orchestrator.refusals import RefusedError, store_full
from orchestrator.store.base import Store

# Refused jobs of one message whose mistyped names are guessed at: a script that has one name wrong has it wrong in all of them.
_GUESSES: Final = 8


class Submitter:
    """Takes jobs in."""

    def __init__(self, *, driver: Driver, readers: ReadModel, store: Store, gpus: Mapping[GpuTypeId, GpuType]) -> None:
        self._driver = driver
        self._readers = readers
        self._store = store
        self._gpus = gpus

    async def one(self, request: pb.SubmitRequest) -> pb.SubmitResponse:
        """Accept one job, durably. Raises FieldError or RefusedError."""
        submission = self._submission(request, CALLER.get())
        outcome = (await self._forgotten([submission])).get(submission.job_id) or (await self._ask([submission]))[0]
        if isinstance(outcome, Refusal):
            raise RefusedError(outcome)
        return pb.SubmitResponse(job_id=outcome.job_id, existing=outcome.existing)

    async def many(self, request: pb.SubmitBatchRequest) -> pb.SubmitBatchResponse:
        """Accept or refuse each on its own. Raises when the message as a whole cannot be taken."""
        if len(request.jobs) > limits.BATCH_JOBS_MAX:
            raise FieldError("jobs", f"{len(request.jobs)} jobs", f"at most {limits.BATCH_JOBS_MAX} in one message")
        caller = CALLER.get()
        read: list[Submission | Refusal] = []
        refused = 0
        for job in request.jobs:
            read.append(self._read(job, caller, guess=refused < _GUESSES))
            refused += isinstance(read[-1], Refusal)
        good = [submission for submission in read if isinstance(submission, Submission)]
        known = await self._forgotten(good)
        new = [submission for submission in good if submission.job_id not in known]
        if new:
            known.update(zip((submission.job_id for submission in new), await self._ask(new), strict=True))
        return pb.SubmitBatchResponse(outcomes=[_outcome(known[one.job_id] if isinstance(one, Submission) else one) for one in read])

    async def _forgotten(self, submissions: Sequence[Submission]) -> dict[JobId, Accepted | Refusal]:
        """Outcomes of those whose key belongs to a job that ended so long ago that only the store knows it."""
        if self._readers.ended_count <= ENDED_KEYS_MAX:
            return {}
        by_tenant: dict[TenantId, dict[str, Submission]] = {}
        for submission in submissions:
            by_tenant.setdefault(submission.spec.tenant, {})[submission.idempotency_key] = submission
        found: dict[JobId, Accepted | Refusal] = {}
        for tenant, by_key in by_tenant.items():
            for ended in await self._store.find_keys(tenant=tenant, keys=list(by_key)):
                submission = by_key[ended.idempotency_key]
                if ended.payload_digest == submission.payload_digest:
                    found[submission.job_id] = Accepted(job_id=ended.job_id, existing=True)
                else:
                    found[submission.job_id] = Refusal(
                        code=RefusalCode.CONFLICT,
                        field="idempotency_key",
                        message=f"idempotency key {ended.idempotency_key!r} belongs to job {ended.job_id} with another payload",
                    )
        return found

    def _read(self, request: pb.SubmitRequest, caller: Caller, *, guess: bool) -> Submission | Refusal:
        try:
            return self._submission(request, caller, guess=guess)
        except FieldError as error:
            return field_refusal(error)

    async def _ask(self, submissions: Sequence[Submission]) -> tuple[Accepted | Refusal, ...]:
        def submitted(request: RequestRef) -> JobsSubmitted:
            return JobsSubmitted(request=request, submissions=tuple(submissions))

        full = self._store.why_shed()
        if full:
            raise RefusedError(store_full(full))
        reply = await self._driver.ask(Lane.SUBMITS, submitted, jobs=len(submissions))
        match reply:
            case SubmitReply(outcomes=outcomes):
                return outcomes
            case Refusal():
                raise RefusedError(reply)
            case Done():
                raise AssertionError("a submission is answered by outcomes")

    def _submission(self, request: pb.SubmitRequest, caller: Caller, *, guess: bool = True) -> Submission:
        message = request.spec
        message.tenant = own_tenant(caller, "tenant", message.tenant)
        # Over what the client sent, not over what the model's defaults make of it today: a retry tomorrow is still the same.
        payload = sha256(message.SerializeToString(deterministic=True)).hexdigest()
        spec = self.spec_of(message, caller, guess=guess)
        job_id = new_job_id(self._driver.clock.now_us())
        return Submission(
            job_id=job_id,
            spec=spec,
            idempotency_key=parse_key("idempotency_key", request.idempotency_key) if request.idempotency_key else f"auto-{job_id}",
            payload_digest=f"sha256:{payload}",
            request_id=REQUEST_ID.get(""),
        )

    def spec_of(self, message: types_pb2.JobSpec, caller: Caller, *, guess: bool = True) -> JobSpec:
        """What a client asks for, well formed and of things that exist; FieldError otherwise, with a `guess` at what was meant."""
        tenant = own_tenant(caller, "tenant", message.tenant)
        model_id = ModelId(parse_name("model_id", message.model_id))
        model = self._readers.models.get(model_id)
        if model is None:
            raise did_you_mean("model_id", model_id, "model", self._readers.models, guess=guess)
        spec = job_spec_from_proto(message, default=model, tenant=tenant)
        if not spec.simulated and not model.servable:
            raise FieldError(
                "model_id",
                model_id,
                "a model whose weights are in the origin store (this one is known by its figures only, for rehearsals: "
                "--simulated, in Python simulated=True)",
            )
        model.check_shape(spec.shape)
        self._check_adapters(spec, guess=guess)
        self._check_places(spec, guess=guess)
        return spec

    def _check_adapters(self, spec: JobSpec, *, guess: bool) -> None:
        """Unknown adapters, with what looks like them; whether one fits its base is said by the core."""
        adapters = self._readers.adapters
        for index, use in enumerate(spec.adapters):
            if use.adapter_id not in adapters:
                raise did_you_mean(f"adapters[{index}].adapter_id", use.adapter_id, "adapter", adapters, guess=guess)

    def _check_places(self, spec: JobSpec, *, guess: bool) -> None:
        """A constraint that names what does not exist would wait for ever."""
        sites = self._readers.sites
        for site_id in spec.constraints.sites:
            if site_id not in sites:
                raise did_you_mean("constraints.sites", site_id, "site", sites, guess=guess)
        if spec.origin_site is not None and spec.origin_site not in sites:
            raise did_you_mean("origin_site", spec.origin_site, "site", sites, guess=guess)
        for gpu_type in spec.constraints.gpu_types:
            if gpu_type not in self._gpus:
                raise did_you_mean("constraints.gpu_types", gpu_type, "GPU type", self._gpus, guess=guess)
        if spec.constraints.regions:
            regions = self._readers.regions()
            for region in spec.constraints.regions:
                if region not in regions:
                    raise did_you_mean("constraints.regions", region, "region of a site", regions, guess=guess)


def _outcome(outcome: Accepted | Refusal) -> pb.SubmitOutcome:
    if isinstance(outcome, Accepted):
        return pb.SubmitOutcome(job_id=outcome.job_id, existing=outcome.existing)
    number: int = CODES[outcome.code].value[0]
    return pb.SubmitOutcome(
        refusal=pb.Refusal(code=number, message=outcome.message, field=outcome.field, retry_after_ms=outcome.retry_after_ms)
    )
