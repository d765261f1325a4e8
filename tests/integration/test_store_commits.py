"""What every store makes of commits, whatever it is made of: the simulated one too, or the simulation would prove too little."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.model.address import Address
from atoll.model.attempt import AttemptState
from atoll.model.ids import AdapterId, ChangeSeq, JobId, ModelId, SiteId, TenantId, Term
from atoll.model.job import JobState
from atoll.model.learned import Estimates
from atoll.model.replica import Tier
from atoll.model.residency import Pin, Push
from orchestrator.core.demand import PutDemand
from orchestrator.core.durable import EndedKey
from orchestrator.core.ends import EndAttempt
from orchestrator.core.outputs import (
    AppendAudit,
    DeleteAdapter,
    DeleteModel,
    DeletePin,
    DeletePush,
    DeleteSite,
    PutAdapter,
    PutEstimates,
    PutJob,
    PutLinks,
    PutModel,
    PutPin,
    PutPolicy,
    PutPush,
    PutSite,
    Record,
)
from orchestrator.core.placement.policy import Identity
from orchestrator.store.base import CommitOutcome
from tests.integration.etcd_members import member, running
from tests.integration.store_backends import (
    JOURNALS,
    Backend,
    Bench,
    Journal,
    adapter,
    audit,
    demand,
    each_of,
    ended,
    estimates,
    link,
    model,
    placed,
    put,
    queued,
    reopened,
    site,
)

COMMITTED = CommitOutcome.COMMITTED


def pin(model_id: str, site_id: str, tier: Tier = Tier.GPU) -> Pin:
    return Pin(model_id=ModelId(model_id), site_id=SiteId(site_id), tier=tier, actor="t", reason="r", created_us=5)


def push(model_id: str) -> Push:
    return Push(model_id=ModelId(model_id), sites=(SiteId("a"), SiteId("b")), warm=(SiteId("b"),), actor="t", until_us=9)


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], int]) -> Iterator[Address]:
    with running(member(tmp_path_factory.mktemp("etcd"), free_ports)) as one:
        yield one.address


@pytest.fixture(params=each_of(JOURNALS))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend[Journal]:
    return JOURNALS[request.param](Bench(tmp_path, lambda: request.getfixturevalue("etcd")))


@pytest.fixture
async def store(backend: Backend[Journal]) -> AsyncIterator[Journal]:
    store = backend.open()
    yield store
    await store.close()


async def test_a_new_store_is_empty_and_names_its_fleet(backend: Backend[Journal], store: Journal) -> None:
    first = await store.take_over()
    assert (first.term, first.fleet_time_us, first.last_audit_seq, first.ended_count) == (1, 0, 0, 0)
    assert (first.jobs, first.sites, first.links, first.models, first.ended_keys) == ((), (), (), (), ())
    again, second = await reopened(backend, store)
    await again.close()
    assert first.estimates == Estimates()
    assert first.fleet_id
    assert second.fleet_id == first.fleet_id
    assert second.term == first.term + 1


async def test_everything_committed_is_there_after_a_restart(backend: Backend[Journal], store: Journal) -> None:
    term = (await store.take_over()).term
    live, done = placed(queued("live")), ended(placed(queued("done")), 50, JobState.FAILED)
    records: list[Record] = [
        *(PutJob(job=job) for job in (queued("live"), live, queued("done"), done)),
        *(PutSite(site=site(name)) for name in ("b", "a", "gone")),
        DeleteSite(site_id=SiteId("gone")),
        PutSite(site=site("b", "flaky rack")),
        PutLinks(links=(link("a", "gone"),)),
        PutLinks(links=(link("a", "b"), link("b", "a"))),
        *(PutModel(model=model(name)) for name in ("m1", "m2")),
        DeleteModel(model_id=ModelId("m1")),
        *(PutAdapter(adapter=adapter(name)) for name in ("l1", "l2")),
        DeleteAdapter(adapter_id=AdapterId("l1")),
        *(PutPin(pin=pin("m2", name)) for name in ("a", "b")),
        PutPin(pin=pin("m2", "b", Tier.DISK)),
        DeletePin(model_id=ModelId("m2"), site_id=SiteId("a")),
        *(PutPush(push=push(name)) for name in ("m1", "m2")),
        DeletePush(model_id=ModelId("m1")),
        *(PutEstimates(estimates=estimates(observations)) for observations in (3, 5)),
        *(PutDemand(demand=demand(name)) for name in ("m1", "m2")),
        *(PutPolicy(policy=Identity(name=name, digest="d")) for name in ("default", "own")),
        AppendAudit(event=audit(1)),
        AppendAudit(event=audit(2)),
    ]
    assert await store.commit(term, 77, records) is COMMITTED
    again, stored = await reopened(backend, store)
    assert stored.jobs == (live,)
    assert {record.spec.site_id: record for record in stored.sites} == {"a": site("a"), "b": site("b", "flaky rack")}
    assert stored.links == (link("a", "b"), link("b", "a"))
    assert stored.models == (model("m2"),)
    assert stored.adapters == (adapter("l2"),)
    assert stored.pins == (pin("m2", "b", Tier.DISK),)
    assert stored.pushes == (push("m2"),)
    assert stored.estimates == estimates(5)
    assert stored.demand == demand("m2")
    assert stored.policy == Identity(name="own", digest="d")
    assert (stored.fleet_time_us, stored.last_audit_seq, stored.ended_count) == (77, 2, 1)
    key = EndedKey(tenant=TenantId("team-a"), idempotency_key="key-done", job_id=JobId("done"), payload_digest=done.payload_digest)
    assert stored.ended_keys == (key,)
    assert await again.get_job(JobId("done")) == done
    assert await again.get_job(JobId("live")) == live
    assert await again.list_audit(after=ChangeSeq(0), limit=10) == (audit(1), audit(2))
    await again.close()


async def test_jobs_come_back_in_the_order_in_which_they_were_accepted(backend: Backend[Journal], store: Journal) -> None:
    term = (await store.take_over()).term
    names = [f"j{number:03}" for number in (5, 1, 9, 3, 7)]
    for name in names:
        await put(store, term, queued(name))
    # A later change does not move a job.
    await put(store, term, placed(queued(names[0])))
    again, stored = await reopened(backend, store)
    await again.close()
    assert [job.job_id for job in stored.jobs] == names


async def test_readers_see_each_state_in_turn(store: Journal) -> None:
    term = (await store.take_over()).term
    assert await store.get_job(JobId("j1")) is None
    states = [queued("j1"), placed(queued("j1")), placed(placed(queued("j1"))), ended(placed(queued("j1")), 9)]
    for job in states:
        await put(store, term, job)
        assert await store.get_job(JobId("j1")) == job
    # An attempt that was still stopping ends after its job has.
    late = replace(states[-1], cancel_reason="no longer wanted")
    await put(store, term, late)
    assert await store.get_job(JobId("j1")) == late


async def test_a_deposed_writer_changes_nothing(backend: Backend[Journal], store: Journal) -> None:
    term = (await store.take_over()).term
    await put(store, term, queued("before"), now_us=10)
    await backend.depose()
    refused = await store.commit(term, 999, [PutJob(job=queued("after")), AppendAudit(event=audit(1))])
    assert refused is CommitOutcome.REFUSED
    assert await store.get_job(JobId("after")) is None
    again, stored = await reopened(backend, store)
    await again.close()
    assert stored.term > term + 1
    assert [job.job_id for job in stored.jobs] == ["before"]
    assert (stored.fleet_time_us, stored.last_audit_seq) == (10, 0)


async def test_terms_of_others_are_refused(store: Journal) -> None:
    term = (await store.take_over()).term
    for other in (0, term - 1, term + 1, 2**62):
        assert await store.commit(Term(other), 1, [PutJob(job=queued("x"))]) is CommitOutcome.REFUSED
    assert await store.get_job(JobId("x")) is None


async def test_taking_over_again_deposes_the_own_former_term(store: Journal) -> None:
    """What a driver does after a commit of unknown outcome."""
    first = await store.take_over()
    await put(store, first.term, queued("j1"))
    second = await store.take_over()
    assert second.term == first.term + 1
    assert second.jobs == (queued("j1"),)
    assert await store.commit(first.term, 2, [PutJob(job=queued("j2"))]) is CommitOutcome.REFUSED
    await put(store, second.term, placed(queued("j1")))


async def test_fleet_time_never_steps_back(backend: Backend[Journal], store: Journal) -> None:
    term = (await store.take_over()).term
    for now_us in (50, 2**60, 3):
        await put(store, term, queued("j1"), now_us=now_us)
    again, stored = await reopened(backend, store)
    await again.close()
    assert stored.fleet_time_us == 2**60


async def test_the_attempt_of_a_terminal_job_ends_once_and_the_job_stays_as_it_ended(backend: Backend[Journal], store: Journal) -> None:
    term = (await store.take_over()).term
    job = ended(placed(queued("done")), 50, JobState.CANCELLED)
    (attempt,) = job.attempts
    stopping = replace(job, attempts=(replace(attempt, state=AttemptState.STOPPING),))
    end = EndAttempt(key=attempt.key, site_id=attempt.site_id, state=AttemptState.STOPPED, ended_us=60)
    later = replace(end, state=AttemptState.FAILED, ended_us=70)
    stranger = replace(end, key=end.key._replace(job_id=JobId("unknown")))
    assert await store.commit(term, 77, [PutJob(job=placed(queued("live"))), PutJob(job=stopping)]) is COMMITTED
    store, stored = await reopened(backend, store)
    assert ([one.job_id for one in stored.jobs], stored.stopping) == (["live"], (stopping,)), "it is not live again"
    assert await store.commit(stored.term, 78, [stranger, end, later]) is COMMITTED
    store, stored = await reopened(backend, store)
    assert ([one.job_id for one in stored.jobs], stored.stopping) == (["live"], ())
    found = await store.get_job(JobId("done"))
    assert found == replace(stopping, attempts=(replace(stopping.attempts[0], state=AttemptState.STOPPED, ended_us=60),))


async def test_keys_of_ended_jobs_come_in_the_order_in_which_they_ended(backend: Backend[Journal], store: Journal) -> None:
    """Whoever keeps a bounded number drops the oldest first."""
    term = (await store.take_over()).term
    await put(store, term, *(ended(queued(f"j{number}"), 10 - number) for number in range(5)), queued("live"))
    await put(store, term, ended(queued("other", tenant="team-b", key="key-j1"), 3), ended(queued("keyless", key=""), 4))
    again, stored = await reopened(backend, store)
    await again.close()
    assert [key.job_id for key in stored.ended_keys] == ["other", "j4", "j3", "j2", "j1", "j0"]
    assert stored.ended_count == 7


async def test_a_key_that_was_forgotten_belongs_to_the_youngest_job(backend: Backend[Journal], store: Journal) -> None:
    """The core remembers a bounded number of keys: a store that kept them longer must not refuse its writes for ever."""
    term = (await store.take_over()).term
    await put(store, term, ended(queued("old", key="k"), 5))
    await put(store, term, queued("new", key="k"), queued("bystander"))
    store, stored = await reopened(backend, store)
    assert stored.ended_keys == ()
    await put(store, stored.term, ended(queued("new", key="k"), 9))
    assert await store.get_job(JobId("old")) == ended(queued("old", key="k"), 5)
    again, stored = await reopened(backend, store)
    await again.close()
    assert [job.job_id for job in stored.jobs] == ["bystander"]
    assert [key.job_id for key in stored.ended_keys] == ["new"]


async def test_a_commit_of_any_size_is_one(backend: Backend[Journal], store: Journal) -> None:
    """More records, and more bytes, than a store may take at once by its nature."""
    term = (await store.take_over()).term
    jobs = [queued(f"j{number:04}", prompt="x" * (number * 7 % 8_000)) for number in range(700)]
    placed_jobs = [placed(job) for job in jobs]
    records: list[Record] = [*(PutJob(job=job) for job in jobs), *(AppendAudit(event=audit(seq)) for seq in range(1, 200))]
    assert await store.commit(term, 7, records) is COMMITTED
    await put(store, term, *placed_jobs[:500], *(ended(job, 9) for job in placed_jobs[500:]), now_us=9)
    await put(store, term, queued("last"))
    again, stored = await reopened(backend, store)
    assert stored.jobs == (*placed_jobs[:500], queued("last"))
    assert (stored.ended_count, stored.fleet_time_us, stored.last_audit_seq) == (200, 9, 199)
    assert await again.get_job(JobId("j0699")) == ended(placed_jobs[699], 9)
    await again.close()


async def test_a_large_commit_of_a_deposed_writer_changes_nothing(backend: Backend[Journal], store: Journal) -> None:
    term = (await store.take_over()).term
    await backend.depose()
    records = [PutJob(job=queued(f"j{number}", prompt="x" * 8_000)) for number in range(300)]
    assert await store.commit(term, 1, records) is CommitOutcome.REFUSED
    again, stored = await reopened(backend, store)
    await again.close()
    assert (stored.jobs, stored.fleet_time_us) == ((), 0)
