"""Nouns <-> the bytes that a store keeps: one format byte, then msgpack with fields by name.

Decides how a noun outlives a program. Fields that a later version adds are ignored by this one, fields that an earlier version
lacked take their defaults; what cannot be read is a StoredFormatError, never a guess. Must not know which store keeps the bytes.
"""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from typing import Any, Final, Generic, TypeVar, get_type_hints

import msgspec

from atoll.model.adapter import AdapterSpec
from atoll.model.audit import AuditEvent
from atoll.model.demand import KeptDemand
from atoll.model.errors import AtollError
from atoll.model.job import Job, JobSpec
from atoll.model.learned import Estimates
from atoll.model.modelspec import ModelSpec
from atoll.model.report import AttemptEvent
from atoll.model.residency import Pin, Push
from atoll.model.site import LinkSpec, SiteRecord

T = TypeVar("T")

# Grows when a reader of the former number would misread what is written now; additions do not count.
FORMAT: Final = 1
_FORMAT_BYTE: Final = bytes([FORMAT])


class StoredFormatError(AtollError):
    """Stored bytes cannot be read: damaged, or written by a later version."""

    def __init__(self, noun: str, why: str) -> None:
        super().__init__(f"a stored {noun} cannot be read: {why}")
        self.noun = noun


class _Blob(Generic[T]):
    """Encoder and decoder of one noun, made once."""

    __slots__ = ("_decode", "_encode", "_noun")

    def __init__(self, noun: str, kind: Any) -> None:
        self._noun = noun
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(kind).decode

    def encode(self, value: object) -> bytes:
        """Format byte and msgpack."""
        return _FORMAT_BYTE + self._encode(value)

    def decode(self, blob: bytes) -> T:
        """The noun; StoredFormatError for anything else than what `encode` wrote."""
        if not blob:
            raise StoredFormatError(self._noun, "it is empty")
        if blob[0] != FORMAT:
            raise StoredFormatError(self._noun, f"its format is {blob[0]}, this version reads {FORMAT}")
        try:
            decoded: T = self._decode(memoryview(blob)[1:])
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
            raise StoredFormatError(self._noun, str(error)) from error
        return decoded


_JOB: Final = _Blob[Job]("job", Job)
_JOB_SPEC: Final = _Blob[JobSpec]("job specification", JobSpec)
_SITE: Final = _Blob[SiteRecord]("site", SiteRecord)
_MODEL: Final = _Blob[ModelSpec]("model", ModelSpec)
_ADAPTER: Final = _Blob[AdapterSpec]("adapter", AdapterSpec)
_LINKS: Final = _Blob[tuple[LinkSpec, ...]]("list of links", tuple[LinkSpec, ...])
_ESTIMATES: Final = _Blob[Estimates]("set of estimates", Estimates)
_DEMAND: Final = _Blob[KeptDemand]("record of demand", KeptDemand)
_PIN: Final = _Blob[Pin]("pin", Pin)
_PUSH: Final = _Blob[Push]("push", Push)
_AUDIT: Final = _Blob[AuditEvent]("line of the audit", AuditEvent)
_ATTEMPT_EVENT: Final = _Blob[AttemptEvent]("event of an attempt", AttemptEvent)

encode_job_spec, decode_job_spec = _JOB_SPEC.encode, _JOB_SPEC.decode
encode_site, decode_site = _SITE.encode, _SITE.decode
encode_model, decode_model = _MODEL.encode, _MODEL.decode
encode_adapter, decode_adapter = _ADAPTER.encode, _ADAPTER.decode
encode_links, decode_links = _LINKS.encode, _LINKS.decode
encode_estimates, decode_estimates = _ESTIMATES.encode, _ESTIMATES.decode
encode_demand, decode_demand = _DEMAND.encode, _DEMAND.decode
encode_pin, decode_pin = _PIN.encode, _PIN.decode
encode_push, decode_push = _PUSH.encode, _PUSH.decode
encode_audit, decode_audit = _AUDIT.encode, _AUDIT.decode
encode_attempt_event, decode_attempt_event = _ATTEMPT_EVENT.encode, _ATTEMPT_EVENT.decode


def _progress_fields() -> list[tuple[str, Any] | tuple[str, Any, Any]]:
    hints = get_type_hints(Job)
    return [
        (each.name, hints[each.name]) if each.default is MISSING else (each.name, hints[each.name], each.default)
        for each in fields(Job)
        if each.name != "spec"
    ]


# A specification of up to 32 KiB never changes, the rest of a job is written three times or more: so they are kept apart.
_Progress: Final = msgspec.defstruct("_Progress", _progress_fields(), kw_only=True, frozen=True)
_PROGRESS_NAMES: Final = tuple(each.name for each in fields(Job) if each.name != "spec")
_PROGRESS: Final = _Blob[Any]("job", _Progress)


def encode_job(job: Job) -> bytes:
    """All of a job."""
    return _JOB.encode(_unpacked(job))


def decode_job(blob: bytes) -> Job:
    """The job again."""
    return _unpacked(_JOB.decode(blob))


def encode_job_progress(job: Job) -> bytes:
    """Everything of a job but its specification."""
    job = _unpacked(job)
    return _PROGRESS.encode({name: getattr(job, name) for name in _PROGRESS_NAMES})


def _unpacked(job: Job) -> Job:
    """With its candidates in tuples: packed ones are the memory of one kind of machine, and what is read of a sequence is a list."""
    if not any(attempt.explanation is not None and not isinstance(attempt.explanation.others, tuple) for attempt in job.attempts):
        return job
    attempts = tuple(
        attempt
        if attempt.explanation is None
        else replace(attempt, explanation=replace(attempt.explanation, others=tuple(attempt.explanation.others)))
        for attempt in job.attempts
    )
    return replace(job, attempts=attempts)


def decode_job_progress(blob: bytes, spec: JobSpec) -> Job:
    """The job again, of both its parts."""
    progress = _PROGRESS.decode(blob)
    return _unpacked(Job(spec=spec, **{name: getattr(progress, name) for name in _PROGRESS_NAMES}))
