"""Stores under test, each behind the same few handles, and small nouns to put into them.

What is committed and read again is the same for all three (`JOURNALS`); pages, sweeps and copies are the real ones' (`STORES`).
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from atoll.model.adapter import AdapterSpec
from atoll.model.address import Address
from atoll.model.attempt import Attempt, AttemptState, Failure, FailureKind
from atoll.model.audit import AuditEvent, Severity
from atoll.model.demand import KeptDemand
from atoll.model.ids import (
    AdapterId,
    AttemptKey,
    ChangeSeq,
    GpuTypeId,
    JobId,
    ModelId,
    NodeId,
    Ordinal,
    PoolId,
    SiteId,
    SlotRef,
    TenantId,
    Term,
)
from atoll.model.job import Job, JobSpec, JobState
from atoll.model.learned import Estimates
from atoll.model.modelspec import DenoiserKind, Modality, ModelPhysics, ModelSpec
from atoll.model.shape import Shape
from atoll.model.site import LinkSpec, SiteRecord, SiteSpec
from orchestrator.core.demand import Demand
from orchestrator.core.durable import Stored
from orchestrator.core.learning.book import Book
from orchestrator.core.learning.corrections import Place
from orchestrator.core.learning.observation import COMPONENTS, Observation
from orchestrator.core.outputs import PutJob, Record
from orchestrator.store.base import CommitOutcome, Store
from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.layout import Layout, LeadershipValue, decode, encode
from orchestrator.store.etcd.operations import Put
from orchestrator.store.etcd.store import EtcdStore
from orchestrator.store.etcd.target import EtcdTarget
from orchestrator.store.sqlite import SqliteStore
from tests.integration.etcd_members import PATIENCE_S, needs_etcd
from tests.integration.sim_journal import SimBackend
from tests.unit.learned_world import completion

SHAPE = Shape(width=64, height=64, steps=4)


class Journal(Protocol):
    """The part of `Store` on which the core rests."""

    async def take_over(self) -> Stored:
        """See `Store`."""

    async def commit(self, term: Term, now_us: int, records: Sequence[Record]) -> CommitOutcome:
        """See `Store`."""

    async def get_job(self, job_id: JobId) -> Job | None:
        """See `Store`."""

    async def list_audit(self, *, after: ChangeSeq, limit: int) -> tuple[AuditEvent, ...]:
        """See `Store`."""

    async def close(self) -> None:
        """See `Store`."""


Opened_co = TypeVar("Opened_co", bound=Journal, covariant=True)


class Backend(Protocol[Opened_co]):
    """One store's storage, which outlives the objects that open it."""

    def open(self) -> Opened_co:
        """A store on this storage, not taken over yet."""

    async def depose(self) -> None:
        """Another one leads from now on, whatever those think who took over before."""


class SqliteBackend:
    """A file. Its lock keeps a second leader out, so deposing is done behind its back."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state" / "atoll.db"

    def open(self) -> Store:
        return SqliteStore(self.path)

    async def depose(self) -> None:
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.execute("UPDATE fleet SET term = term + 1")
        connection.close()


class EtcdBackend:
    """A prefix of a real etcd."""

    def __init__(self, target: EtcdTarget) -> None:
        self.target = target

    @classmethod
    def new(cls, member: Address) -> EtcdBackend:
        """A prefix that nobody has used."""
        return cls(EtcdTarget(members=(member,), prefix=f"test/{uuid.uuid4().hex}"))

    def open(self) -> EtcdStore:
        return EtcdStore(self.target)

    async def depose(self) -> None:
        """By the one key that a takeover writes: the leader goes on showing signs of life."""
        layout = Layout(self.target.prefix)
        client = await EtcdClient.open(self.target, patience_s=PATIENCE_S)
        kv = (await client.read([layout.leadership]))[layout.leadership]
        taken = LeadershipValue(term=decode(LeadershipValue, kv).term + 1, instance="another", holder="another")
        await client.transact([], [Put(layout.leadership, encode(taken))])
        await client.close()


class Bench:
    """What stores are made of: a folder of the test's own, and an etcd that is started for the first who wants one."""

    def __init__(self, folder: Path, etcd: Callable[[], Address]) -> None:
        self.folder = folder
        self.etcd = etcd


STORES: dict[str, Callable[[Bench], Backend[Store]]] = {
    "etcd": lambda bench: EtcdBackend.new(bench.etcd()),
    "sqlite": lambda bench: SqliteBackend(bench.folder),
}
JOURNALS: dict[str, Callable[[Bench], Backend[Journal]]] = {**STORES, "simulated": lambda _: SimBackend()}


def each_of(stores: dict[str, Callable[[Bench], Any]]) -> list[Any]:
    """Their names, as parameters."""
    return [pytest.param(name, marks=[needs_etcd] if name == "etcd" else []) for name in sorted(stores)]


async def put(store: Journal, term: Term, *jobs: Job, now_us: int = 1) -> None:
    """Commit these jobs as they are."""
    assert await store.commit(term, now_us, [PutJob(job=job) for job in jobs]) is CommitOutcome.COMMITTED


async def reopened(backend: Backend[Opened_co], store: Journal) -> tuple[Opened_co, Stored]:
    """As after a restart of the process."""
    await store.close()
    again = backend.open()
    return again, await again.take_over()


def queued(name: str, *, tenant: str = "team-a", accepted_us: int = 1, key: str | None = None, prompt: str = "a lighthouse") -> Job:
    return Job(
        job_id=JobId(name),
        spec=JobSpec(tenant=TenantId(tenant), model_id=ModelId("tiny-image"), prompt=prompt, shape=SHAPE),
        state=JobState.QUEUED,
        idempotency_key=f"key-{name}" if key is None else key,
        payload_digest="sha256:" + "0" * 64,
        request_id="r1",
        accepted_us=accepted_us,
    )


def placed(job: Job) -> Job:
    attempt = Attempt(
        key=AttemptKey(job_id=job.job_id, ordinal=Ordinal(len(job.attempts) + 1)),
        site_id=SiteId("aws-use1"),
        slot=SlotRef(pool_id=PoolId("h100"), node_id=NodeId("h100-0"), index=0),
        state=AttemptState.LEASED,
        cold=True,
        leased_us=job.accepted_us + 1,
        predicted_us=5,
    )
    return replace(job, state=JobState.PLACED, attempts=(*job.attempts, attempt))


def ended(job: Job, ended_us: int, state: JobState = JobState.CANCELLED) -> Job:
    failure = Failure(kind=FailureKind.INTERNAL, message="broke") if state is JobState.FAILED else None
    return replace(job, state=state, ended_us=ended_us, failure=failure)


def site(name: str, reason: str = "") -> SiteRecord:
    spec = SiteSpec(site_id=SiteId(name), region="eu", wan_bytes_per_s=1, origin_bytes_per_s=1)
    return SiteRecord(spec=spec, reason=reason)


def link(src: str, dst: str) -> LinkSpec:
    return LinkSpec(src=SiteId(src), dst=SiteId(dst), rtt_us=1_000, bytes_per_s=10**9)


def adapter(name: str) -> AdapterSpec:
    """An adapter of a family."""
    return AdapterSpec(adapter_id=AdapterId(name), family="SDXL", rank=32, weights_bytes=92_900_000)


def model(name: str, title: str = "") -> ModelSpec:
    physics = ModelPhysics(
        kind=DenoiserKind.UNET,
        denoiser_params=1,
        tokenwise_params=0,
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
    )
    return ModelSpec(
        model_id=ModelId(name),
        title=title,
        family="tiny",
        modality=Modality.IMAGE,
        pipeline_class="StableDiffusionPipeline",
        weights_bytes=1,
        resident_bytes=1,
        activation_bytes=1,
        default_shape=SHAPE,
        physics=physics,
    )


def demand(*names: str) -> KeptDemand:
    """These models are asked for."""
    found = Demand(half_lives_ms=(1, 2, 3), weights_milli=(500, 300, 200), prior_per_hour_milli=1_000)
    for name in names:
        found.arrived(ModelId(name), 1)
    return found.save(2)


def estimates(observations: int) -> Estimates:
    """What is learned of so many attempts: every part of it is there."""
    book = Book()
    for number in range(observations):
        place = Place(model_id=ModelId(f"m{number}"), gpu_type=GpuTypeId("H100-SXM"), site_id=SiteId("a"))
        for component in COMPONENTS:
            one = Observation(component=component, predicted_us=10**6, factor_milli=1_000, actual_us=2 * 10**6, at_least=number % 2 == 1)
            book.observe(place, one, number)
        book.observe_total(completion(cold=True, before_us=5 * 10**5, execution_us=5 * 10**5, actual_us=2 * 10**6, actual_before_us=10**6))
    return book.save(observations)


def audit(seq: int, detail: str = "") -> AuditEvent:
    return AuditEvent(
        seq=ChangeSeq(seq), at_us=seq, severity=Severity.INFO, actor="ops", verb="site_cordoned", subject="site/a", detail=detail
    )
