"""A job as a client asks for it: what is left out is the model's own default.

Decides what can be said wrong before anything is sent. Whether models, sites and adapters exist is the orchestrator's matter.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypedDict

from atoll.client.errors import InputError
from atoll.client.transfers import Source, image_ref
from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.ids import AdapterId, parse_gpu_type, parse_key, parse_name
from atoll.model.job import IMAGE_INPUT, InputRef, Priority
from atoll.model.modelspec import AdapterUse
from atoll.model.shape import Precision, parse_int
from atoll.v1 import job_service_pb2 as job_pb
from atoll.v1 import types_pb2 as pb
from atoll.wire.enums import PRECISION_TO, PRIORITY_TO
from atoll.wire.jobs import adapter_use_to_proto, input_ref_to_proto

# Under gRPC's default limit of 4 MiB, with room for what frames a message.
_BATCH_BYTES_MAX: Final = 3 * 1024 * 1024
# Seeds that every generator takes, also those that read 32 bits.
_SEED_BITS: Final = 31
# Enough to be another picture, and still that one.
STRENGTH: Final = 0.6


class JobFields(TypedDict, total=False):
    """The fields of `JobRequest` that `submit` takes by name; their meaning and defaults are there."""

    negative_prompt: str
    seed: int | None
    width: int
    height: int
    frames: int
    steps: int
    cfg_passes: int
    batch: int
    guidance: float | None
    precision: Precision | None
    priority: Priority
    deadline_ms: int
    start_timeout_ms: int
    tenant: str
    sites: Sequence[str]
    regions: Sequence[str]
    gpu_types: Sequence[str]
    max_price_usd: float | None
    adapters: Sequence[AdapterUse | str]
    image: InputRef | Source | None
    strength: float | None
    gang_size: int
    origin_site: str
    simulated: bool
    idempotency_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest:
    """One job to submit. Figures of the shape that are 0 are the model's own, and so are `precision` None and `guidance` None.

    `seed` None is drawn from the idempotency key, so that a repeated call asks for the same picture. `deadline_ms` and
    `start_timeout_ms` count from acceptance, in fleet time; 0: none. `simulated`: a rehearsal, run by twins only.
    `gang_size` 2, 4 or 8: on so many GPUs of one node at once, all or nothing. `max_price_usd`: of the whole job; None: no limit.

    `adapters` are LoRAs with their scales: "NAME", "NAME:SCALE" or AdapterUse. `image` is a picture to begin with: a path or bytes of a
    PNG or JPEG, which a client uploads first, or what `upload` answered. `strength`: how much of it is made anew, up to 1 (None: 0.6).

    `origin_site` is the site nearest to who asks: where inputs come from and results go to. "": that of the client's settings, if any.
    """

    model: str
    prompt: str = ""
    negative_prompt: str = ""
    seed: int | None = None
    width: int = 0
    height: int = 0
    frames: int = 0
    steps: int = 0
    cfg_passes: int = 0
    batch: int = 0
    guidance: float | None = None
    precision: Precision | None = None
    priority: Priority = Priority.NORMAL
    deadline_ms: int = 0
    start_timeout_ms: int = 0
    tenant: str = ""
    sites: Sequence[str] = ()
    regions: Sequence[str] = ()
    gpu_types: Sequence[str] = ()
    max_price_usd: float | None = None
    adapters: Sequence[AdapterUse | str] = ()
    image: InputRef | Source | None = None
    strength: float | None = None
    gang_size: int = 1
    origin_site: str = ""
    simulated: bool = False
    idempotency_key: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def file(self) -> Source | None:
        """The image, if it is yet to be uploaded."""
        return None if isinstance(self.image, InputRef) else self.image

    def described(self) -> JobRequest:
        """The same with its image known by digest and size, as if it were uploaded. InputError for a file that is none."""
        return self if self.file is None else replace(self, image=image_ref(self.file))

    def asked_from(self, site: str) -> JobRequest:
        """The same, asked from near this site unless it says from where itself."""
        return self if self.origin_site or not site else replace(self, origin_site=site)

    def to_proto(self) -> job_pb.SubmitRequest:
        """The message. InputError for what cannot be right anywhere."""
        try:
            return self._message()
        except FieldError as error:
            raise InputError(str(error), field=error.field) from None

    def _message(self) -> job_pb.SubmitRequest:
        key = parse_key("idempotency_key", self.idempotency_key)
        self._check_texts()
        shape = pb.Shape(
            width=parse_int("shape.width", self.width, 0, limits.SIDE_PX_MAX),
            height=parse_int("shape.height", self.height, 0, limits.SIDE_PX_MAX),
            frames=parse_int("shape.frames", self.frames, 0, limits.FRAMES_MAX),
            steps=parse_int("shape.steps", self.steps, 0, limits.STEPS_MAX),
            cfg_passes=parse_int("shape.cfg_passes", self.cfg_passes, 0, limits.CFG_PASSES_MAX),
            batch=parse_int("shape.batch", self.batch, 0, limits.BATCH_MAX),
        )
        constraints = pb.Constraints(
            sites=_each("constraints.sites", self.sites, parse_name),
            regions=_each("constraints.regions", self.regions, _text),
            gpu_types=_each("constraints.gpu_types", self.gpu_types, parse_gpu_type),
            max_price_usd_micros=self._max_price_usd_micros(),
        )
        return job_pb.SubmitRequest(
            idempotency_key=key,
            spec=pb.JobSpec(
                tenant=parse_name("tenant", self.tenant) if self.tenant else "",
                model_id=parse_name("model", self.model),
                prompt=self.prompt,
                negative_prompt=self.negative_prompt,
                seed=_seed_of(key) if self.seed is None else parse_int("seed", self.seed, 0, 2**63 - 1),
                shape=shape,
                guidance_milli=0 if self.guidance is None else _scaled("guidance", self.guidance, 1_000, limits.GUIDANCE_MILLI_MAX),
                precision=pb.PRECISION_UNSPECIFIED if self.precision is None else PRECISION_TO[self.precision],
                priority=PRIORITY_TO[self.priority],
                deadline_ms=parse_int("deadline_ms", self.deadline_ms, 0, limits.DEADLINE_MS_MAX),
                start_timeout_ms=parse_int("start_timeout_ms", self.start_timeout_ms, 0, limits.DEADLINE_MS_MAX),
                adapters=[adapter_use_to_proto(adapter_use(f"adapters[{index}]", use)) for index, use in enumerate(self.adapters)],
                gang_size=parse_int("gang_size", self.gang_size, 1, max(limits.GANG_SIZES)),
                constraints=constraints,
                inputs=self._inputs(),
                strength_milli=self._strength_milli(),
                origin_site=parse_name("origin_site", self.origin_site) if self.origin_site else "",
                simulated=self.simulated,
            ),
        )

    def _inputs(self) -> list[pb.InputRef]:
        if self.image is None:
            return []
        if not isinstance(self.image, InputRef):
            raise FieldError("image", type(self.image).__name__, "what `upload` answered, or a file given to a client's `submit`")
        return [input_ref_to_proto(replace(self.image, name=IMAGE_INPUT))]

    def _strength_milli(self) -> int:
        if self.image is None:
            if self.strength is not None:
                raise FieldError("strength", self.strength, "an image to change by it")
            return 0
        found = _scaled("strength", STRENGTH if self.strength is None else self.strength, 1_000, limits.STRENGTH_MILLI_MAX)
        if not found:
            raise FieldError("strength", self.strength, "a number above 0, up to 1")
        return found

    def _max_price_usd_micros(self) -> int:
        if self.max_price_usd is None:
            return 0
        expected = f"a price from 0.000001 to {limits.PRICE_USD_MICROS_MAX // 1_000_000}, or None for no limit"
        found = _scaled("max_price_usd", self.max_price_usd, 1_000_000, limits.PRICE_USD_MICROS_MAX, expected)
        if not found:
            # On the wire 0 is no limit: the opposite of what such a price means.
            raise FieldError("max_price_usd", self.max_price_usd, expected)
        return found

    def _check_texts(self) -> None:
        for name, text in (("prompt", self.prompt), ("negative_prompt", self.negative_prompt)):
            if not isinstance(text, str):
                raise FieldError(name, text, "text")
            try:
                size = len(text.encode())
            except UnicodeEncodeError:
                raise FieldError(name, text, "text that is valid UTF-8 (a lone surrogate is not)") from None
            if size > limits.PROMPT_BYTES:
                raise FieldError(name, f"{text[:20]}... ({size} bytes)", f"at most {limits.PROMPT_BYTES} bytes of UTF-8")


def adapter_use(field_: str, use: AdapterUse | str) -> AdapterUse:
    """A LoRA with its scale, of "NAME" or "NAME:SCALE"."""
    if isinstance(use, AdapterUse):
        return use.check(field_)
    most = limits.ADAPTER_SCALE_MILLI_MAX
    expected = f"NAME or NAME:SCALE, the scale a number from {-most / 1_000:g} to {most / 1_000:g}"
    name, colon, text = use.partition(":") if isinstance(use, str) else ("", "", "")
    try:
        scale = float(text) if colon else 1.0
        parse_name(field_, name)
    except (ValueError, FieldError):
        raise FieldError(field_, use, expected) from None
    if not math.isfinite(scale) or abs(round(scale * 1_000)) > most:
        raise FieldError(field_, use, expected)
    return AdapterUse(adapter_id=AdapterId(name), scale_milli=round(scale * 1_000))


def batches(requests: Iterable[JobRequest]) -> list[job_pb.SubmitBatchRequest]:
    """The requests in messages of at most 1,000 jobs and 3 MiB, in order. InputError names the entry that is wrong."""
    found: list[job_pb.SubmitBatchRequest] = []
    current, current_bytes = job_pb.SubmitBatchRequest(), 0
    for index, request in enumerate(requests):
        try:
            message = request.to_proto()
        except InputError as error:
            raise InputError(f"jobs[{index}]: {error.message}", field=f"jobs[{index}].{error.field}") from None
        size = message.ByteSize() + 8
        if current.jobs and (len(current.jobs) == limits.BATCH_JOBS_MAX or current_bytes + size > _BATCH_BYTES_MAX):
            found.append(current)
            current, current_bytes = job_pb.SubmitBatchRequest(), 0
        current.jobs.append(message)
        current_bytes += size
    if current.jobs:
        found.append(current)
    return found


def _seed_of(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> (64 - _SEED_BITS)


def _scaled(name: str, value: float, factor: int, most: int, expected: str = "") -> int:
    """`value` times `factor` as a whole number; NaN, infinities, negatives and more than `most` are refused."""
    expected = expected or f"a number from 0 to {most / factor:g}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FieldError(name, value, expected)
    scaled = round(value * factor)
    if not 0 <= scaled <= most:
        raise FieldError(name, value, expected)
    return scaled


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > 63 or not value.isprintable():
        raise FieldError(name, value, "1 to 63 printable characters")
    return value


def _each(name: str, values: Sequence[str], parse: Callable[[str, object], str]) -> list[str]:
    if isinstance(values, str):
        raise FieldError(name, values, "a list of names")
    if len(values) > limits.CONSTRAINT_NAMES_MAX:
        raise FieldError(name, f"{len(values)} names", f"at most {limits.CONSTRAINT_NAMES_MAX}")
    return [parse(name, value) for value in values]
