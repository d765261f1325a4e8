"""Jobs: what a client asks for, the states it goes through, and what is checked before it is accepted.

Decides which jobs are well formed and which changes of state are legal. Whether a model exists is the core's matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from atoll.model import limits
from atoll.model.attempt import Attempt, Failure, ResultManifest
from atoll.model.errors import FieldError, StateError
from atoll.model.ids import GpuTypeId, JobId, ModelId, SiteId, TenantId, parse_gpu_type, parse_name
from atoll.model.modelspec import AdapterUse
from atoll.model.placement import Deferral, is_lasting
from atoll.model.quote import Eta
from atoll.model.shape import Precision, Shape, parse_int
from atoll.model.words import count


class JobState(StrEnum):
    """Where a job stands. The last four are terminal, and terminal is final."""

    QUEUED = "queued"
    PLACED = "placed"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


_J = JobState
JOB_TABLE: Final[dict[JobState, frozenset[JobState]]] = {
    _J.QUEUED: frozenset({_J.PLACED, _J.FAILED, _J.CANCELLED, _J.EXPIRED}),
    # Back to queued on loss, refusal, preemption, drain or move.
    _J.PLACED: frozenset({_J.RUNNING, _J.SUCCEEDED, _J.QUEUED, _J.FAILED, _J.CANCELLED, _J.EXPIRED}),
    _J.RUNNING: frozenset({_J.SUCCEEDED, _J.QUEUED, _J.FAILED, _J.CANCELLED, _J.EXPIRED}),
    _J.SUCCEEDED: frozenset(),
    _J.FAILED: frozenset(),
    _J.CANCELLED: frozenset(),
    _J.EXPIRED: frozenset(),
}
TERMINAL: Final = frozenset(state for state, following in JOB_TABLE.items() if not following)


def check_job_state(job_id: JobId, old: JobState, new: JobState) -> None:
    """StateError unless a job may go from `old` to `new`."""
    if new not in JOB_TABLE[old]:
        raise StateError(f"job {job_id} is {old}: it cannot become {new}")


class Priority(StrEnum):
    """Urgent goes before normal before batch."""

    URGENT = "urgent"
    NORMAL = "normal"
    BATCH = "batch"


PRIORITY_RANK: Final = {Priority.URGENT: 0, Priority.NORMAL: 1, Priority.BATCH: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """Where a job may run. Empty: anywhere. `max_price_usd_micros` bounds GPU price x predicted occupancy; 0: no bound."""

    sites: tuple[SiteId, ...] = ()
    regions: tuple[str, ...] = ()
    gpu_types: tuple[GpuTypeId, ...] = ()
    max_price_usd_micros: int = 0


# The name of the one input that a job can have: a picture that the generation begins with.
IMAGE_INPUT: Final = "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRef:
    """A file uploaded before the job was submitted."""

    name: str
    digest: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What a client asks for. Durations count from acceptance, in fleet time; 0: none.

    `simulated` asks for a rehearsal: the job runs at twins only, and only such jobs do.
    """

    tenant: TenantId
    model_id: ModelId
    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    shape: Shape
    guidance_milli: int = 0  # 0: the pipeline's default
    precision: Precision = Precision.BF16
    priority: Priority = Priority.NORMAL
    deadline_ms: int = 0
    start_timeout_ms: int = 0
    adapters: tuple[AdapterUse, ...] = ()
    gang_size: int = 1
    constraints: Constraints = Constraints()
    inputs: tuple[InputRef, ...] = ()
    strength_milli: int = 0  # how much of an input image is made anew; 0: there is none
    origin_site: SiteId | None = None  # the site nearest to the asker
    simulated: bool = False

    @property
    def image(self) -> InputRef | None:
        """The image that the generation begins with, if it does."""
        return next((one for one in self.inputs if one.name == IMAGE_INPUT), None)

    @property
    def denoised(self) -> Shape:
        """The shape with the steps that are really taken: of those of its schedule, an image to begin with saves the first."""
        if self.image is None:
            return self.shape
        return replace(self.shape, steps=max(self.shape.steps * self.strength_milli // 1_000, 1))

    def check(self) -> JobSpec:
        """Self if well formed; else FieldError for the first field that is not."""
        parse_name("tenant", self.tenant)
        parse_name("model", self.model_id)
        _check_prompt("prompt", self.prompt)
        _check_prompt("negative_prompt", self.negative_prompt)
        parse_int("seed", self.seed, 0, 2**63 - 1)
        self.shape.check()
        parse_int("guidance_milli", self.guidance_milli, 0, limits.GUIDANCE_MILLI_MAX)
        parse_int("deadline_ms", self.deadline_ms, 0, limits.DEADLINE_MS_MAX)
        parse_int("start_timeout_ms", self.start_timeout_ms, 0, limits.DEADLINE_MS_MAX)
        if len(self.adapters) > limits.ADAPTERS_MAX:
            raise FieldError("adapters", len(self.adapters), f"at most {limits.ADAPTERS_MAX} adapters")
        for index, use in enumerate(self.adapters):
            use.check(f"adapters[{index}]")
        if len({use.adapter_id for use in self.adapters}) != len(self.adapters):
            raise FieldError("adapters", [use.adapter_id for use in self.adapters], "each adapter once")
        if self.gang_size not in limits.GANG_SIZES:
            raise FieldError("gang_size", self.gang_size, f"one of {limits.GANG_SIZES}")
        if len(self.inputs) > limits.INPUTS_MAX:
            raise FieldError("inputs", len(self.inputs), f"at most {limits.INPUTS_MAX} inputs")
        self._check_strength()
        if self.origin_site is not None:
            parse_name("origin_site", self.origin_site)
        _check_constraints(self.constraints)
        return self

    def _check_strength(self) -> None:
        parse_int("strength_milli", self.strength_milli, 0, limits.STRENGTH_MILLI_MAX)
        if self.image is None:
            if self.strength_milli:
                raise FieldError("strength_milli", self.strength_milli, f"0 without an input named {IMAGE_INPUT}")
        elif self.shape.steps * self.strength_milli < 1_000:
            least = -(-1_000 // self.shape.steps)
            expected = f"{least} to 1000 with an input named {IMAGE_INPUT}: at least one of {count(self.shape.steps, 'step')}"
            raise FieldError("strength_milli", self.strength_milli, expected)


def _check_prompt(field: str, text: str) -> None:
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > limits.PROMPT_BYTES:
        raise FieldError(field, f"{text[:20]}... ({size} bytes)", f"at most {limits.PROMPT_BYTES} bytes of UTF-8")
    if "\x00" in text:
        raise FieldError(field, text, "text without NUL characters")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise FieldError(field, text, "text that is valid UTF-8 (a lone surrogate is not)") from None


def _check_constraints(constraints: Constraints) -> None:
    for name, names in (("sites", constraints.sites), ("regions", constraints.regions), ("gpu_types", constraints.gpu_types)):
        if len(names) > limits.CONSTRAINT_NAMES_MAX:
            raise FieldError(f"constraints.{name}", len(names), f"at most {limits.CONSTRAINT_NAMES_MAX} names")
    for site in constraints.sites:
        parse_name("constraints.sites", site)
    for region in constraints.regions:
        if not region or len(region) > 63 or not region.isprintable():
            raise FieldError("constraints.regions", region, "1 to 63 printable characters")
    for gpu_type in constraints.gpu_types:
        parse_gpu_type("constraints.gpu_types", gpu_type)
    parse_int("constraints.max_price_usd_micros", constraints.max_price_usd_micros, 0, limits.PRICE_USD_MICROS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as users see it and as the store keeps it. Times are fleet time; 0: not yet.

    Invariants: attempts are ordered by ordinal without gaps; at most one has state `succeeded`, and then the job's state is too,
    with `result.key` naming it; a terminal job has no live attempt but `stopping` ones.
    """

    job_id: JobId
    spec: JobSpec
    state: JobState
    idempotency_key: str
    payload_digest: str
    request_id: str
    accepted_us: int
    started_us: int = 0
    ended_us: int = 0
    cancel_reason: str = ""
    attempts: tuple[Attempt, ...] = ()
    failure: Failure | None = None
    result: ResultManifest | None = None
    deferral: Deferral | None = None  # soft: why it waits just now; and why one waited that expired in the queue
    # In answers only, and no part of what a job is: when a placed or running one should be done, and the fleet time of the answer.
    eta: Eta | None = field(default=None, compare=False)
    as_of_us: int = field(default=0, compare=False)

    @property
    def waits_in_vain(self) -> bool:
        """Whether every pool rejects it for what no waiting changes, as far as it is told why it waits."""
        told = self.deferral
        return self.state is JobState.QUEUED and told is not None and told.waits_for is None and is_lasting(told.rejections)

    def decided(self, state: JobState, attempts: tuple[Attempt, ...], deferral: Deferral | None) -> Job:
        """The job after one more decision about it. What `dataclasses.replace` makes, in a third of its time: each decision makes one."""
        return Job(
            job_id=self.job_id,
            spec=self.spec,
            state=state,
            idempotency_key=self.idempotency_key,
            payload_digest=self.payload_digest,
            request_id=self.request_id,
            accepted_us=self.accepted_us,
            started_us=self.started_us,
            ended_us=self.ended_us,
            cancel_reason=self.cancel_reason,
            attempts=attempts,
            failure=self.failure,
            result=self.result,
            deferral=deferral,
            eta=self.eta,
            as_of_us=self.as_of_us,
        )
