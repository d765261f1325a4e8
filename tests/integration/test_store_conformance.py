"""What every store keeps, whatever it is made of."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.model.attempt import AttemptState
from atoll.model.audit import AuditEvent
from atoll.model.errors import FieldError, StateError
from atoll.model.ids import AdapterId, ChangeSeq, JobId, ModelId, SiteId, TenantId, Term
from atoll.model.job import TERMINAL, Job, JobState
from atoll.model.learned import Estimates
from atoll.model.replica import Tier
from atoll.model.residency import Pin, Push
from orchestrator.core.demand import PutDemand
from orchestrator.core.durable import EndedKey, Stored
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
from orchestrator.store.base import CommitOutcome, Store
from tests.integration.store_backends import BACKENDS, Backend, adapter, audit, demand, ended, estimates, link, model, placed, queued, site

COMMITTED = CommitOutcome.COMMITTED


def pin(model_id: str, site_id: str, tier: Tier = Tier.GPU) -> Pin:
    return Pin(model_id=ModelId(model_id), site_id=SiteId(site_id), tier=tier, actor="t", reason="r", created_us=5)


def push(model_id: str) -> Push:
    return Push(model_id=ModelId(model_id), sites=(SiteId("a"), SiteId("b")), warm=(SiteId("b"),), actor="t", until_us=9)


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return BACKENDS[request.param](tmp_path)


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[Store]:
    store = backend.open()
    yield store
    await store.close()


async def put(store: Store, term: Term, *jobs: Job, now_us: int = 1) -> None:
    assert await store.commit(term, now_us, [PutJob(job=job) for job in jobs]) is COMMITTED


async def reopened(backend: Backend, store: Store) -> tuple[Store, Stored]:
    """As after a restart of the process."""
    await store.close()
    again = backend.open()
    return again, await again.take_over()


async def test_a_new_store_is_empty_and_names_its_fleet(backend: Backend, store: Store) -> None:
    first = await store.take_over()
    assert (first.term, first.fleet_time_us, first.last_audit_seq, first.ended_count) == (1, 0, 0, 0)
    assert (first.jobs, first.sites, first.links, first.models, first.ended_keys) == ((), (), (), (), ())
    again, second = await reopened(backend, store)
    await again.close()
    assert first.estimates == Estimates()
    assert first.fleet_id
    assert second.fleet_id == first.fleet_id
    assert second.term == first.term + 1


async def test_everything_committed_is_there_after_a_restart(backend: Backend, store: Store) -> None:
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


async def test_jobs_come_back_in_the_order_in_which_they_were_accepted(backend: Backend, store: Store) -> None:
    term = (await store.take_over()).term
    names = [f"j{number:03}" for number in (5, 1, 9, 3, 7)]
    for name in names:
        await put(store, term, queued(name))
    # A later change does not move a job.
    await put(store, term, placed(queued(names[0])))
    again, stored = await reopened(backend, store)
    await again.close()
    assert [job.job_id for job in stored.jobs] == names


async def test_readers_see_each_state_in_turn(store: Store) -> None:
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
    page = await store.list_ended(tenant=None, states=frozenset(), before=None, limit=10)
    assert page == (late,)


async def test_a_deposed_writer_changes_nothing(backend: Backend, store: Store) -> None:
    term = (await store.take_over()).term
    await put(store, term, queued("before"), now_us=10)
    await backend.depose()
    refused = await store.commit(term, 999, [PutJob(job=queued("after")), AppendAudit(event=audit(1))])
    assert refused is CommitOutcome.REFUSED
    assert await store.get_job(JobId("after")) is None
    assert await store.sweep(now_us=10**12, retention_ms=0, max_ended=0) == 0
    again, stored = await reopened(backend, store)
    await again.close()
    assert stored.term > term + 1
    assert [job.job_id for job in stored.jobs] == ["before"]
    assert (stored.fleet_time_us, stored.last_audit_seq) == (10, 0)


async def test_terms_of_others_are_refused(store: Store) -> None:
    term = (await store.take_over()).term
    for other in (0, term - 1, term + 1, 2**62):
        assert await store.commit(Term(other), 1, [PutJob(job=queued("x"))]) is CommitOutcome.REFUSED
    assert await store.get_job(JobId("x")) is None


async def test_taking_over_again_deposes_the_own_former_term(store: Store) -> None:
    """What a driver does after a commit of unknown outcome."""
    first = await store.take_over()
    await put(store, first.term, queued("j1"))
    second = await store.take_over()
    assert second.term == first.term + 1
    assert second.jobs == (queued("j1"),)
    assert await store.commit(first.term, 2, [PutJob(job=queued("j2"))]) is CommitOutcome.REFUSED
    await put(store, second.term, placed(queued("j1")))


async def test_fleet_time_never_steps_back(backend: Backend, store: Store) -> None:
    term = (await store.take_over()).term
    for now_us in (50, 2**60, 3):
        await put(store, term, queued("j1"), now_us=now_us)
    again, stored = await reopened(backend, store)
    await again.close()
    assert stored.fleet_time_us == 2**60


async def test_ended_jobs_are_paged_youngest_first(store: Store) -> None:
    term = (await store.take_over()).term
    # Ties in time are broken by id; two tenants; one live job that must not show.
    jobs = [ended(queued(f"j{number:02}", tenant=f"team-{number % 2}"), 100 + number // 3) for number in range(20)]
    jobs.append(ended(queued("failed", tenant="team-1"), 500, JobState.FAILED))
    await put(store, term, queued("live"), *jobs)
    expected = sorted(jobs, key=lambda job: (job.ended_us, job.job_id), reverse=True)

    async def pages(tenant: str | None, states: frozenset[JobState], limit: int) -> list[Job]:
        found: list[Job] = []
        before = None
        named = None if tenant is None else TenantId(tenant)
        while page := await store.list_ended(tenant=named, states=states, before=before, limit=limit):
            assert len(page) <= limit
            found.extend(page)
            before = (page[-1].ended_us, page[-1].job_id)
        return found

    assert await pages(None, frozenset(), 3) == expected
    assert await pages(None, TERMINAL, 100) == expected
    assert await pages("team-1", frozenset(), 2) == [job for job in expected if job.spec.tenant == "team-1"]
    assert [job.job_id for job in await pages("team-1", frozenset({JobState.FAILED}), 2)] == ["failed"]
    assert await pages("team-0", frozenset({JobState.FAILED}), 2) == []
    assert await pages(None, frozenset({JobState.QUEUED}), 2) == []
    assert await pages("nobody", frozenset(), 2) == []


async def test_the_audit_is_paged_in_order(store: Store) -> None:
    term = (await store.take_over()).term
    assert await store.list_audit(after=ChangeSeq(0), limit=5) == ()
    lines = [audit(seq) for seq in range(1, 12)]
    for start in range(0, 11, 4):
        assert await store.commit(term, 1, [AppendAudit(event=line) for line in lines[start : start + 4]]) is COMMITTED
    found: list[AuditEvent] = []
    while page := await store.list_audit(after=found[-1].seq if found else ChangeSeq(0), limit=3):
        found.extend(page)
    assert found == lines


async def test_keys_of_ended_jobs_are_found(backend: Backend, store: Store) -> None:
    term = (await store.take_over()).term
    await put(store, term, *(ended(queued(f"j{number}"), 10 - number) for number in range(5)), queued("live"))
    await put(store, term, ended(queued("other", tenant="team-b", key="key-j1"), 3), ended(queued("keyless", key=""), 4))
    found = await store.find_keys(tenant=TenantId("team-a"), keys=["key-j1", "key-live", "unheard-of", "key-j3"])
    assert [(key.idempotency_key, key.job_id) for key in found] == [("key-j1", "j1"), ("key-j3", "j3")]
    again, stored = await reopened(backend, store)
    await again.close()
    # In the order in which they ended: whoever keeps a bounded number drops the oldest first.
    assert [key.job_id for key in stored.ended_keys] == ["other", "j4", "j3", "j2", "j1", "j0"]


async def test_a_key_that_was_forgotten_belongs_to_the_youngest_job(backend: Backend, store: Store) -> None:
    """The core remembers a bounded number of keys: a store that kept them longer must not refuse its writes for ever."""
    term = (await store.take_over()).term
    await put(store, term, ended(queued("old", key="k"), 5))
    await put(store, term, queued("new", key="k"), queued("bystander"))
    assert await store.find_keys(tenant=TenantId("team-a"), keys=["k"]) == ()
    await put(store, term, ended(queued("new", key="k"), 9))
    assert [key.job_id for key in await store.find_keys(tenant=TenantId("team-a"), keys=["k"])] == ["new"]
    assert await store.get_job(JobId("old")) == ended(queued("old", key="k"), 5)
    again, stored = await reopened(backend, store)
    await again.close()
    assert [job.job_id for job in stored.jobs] == ["bystander"]


async def test_a_sweep_forgets_by_age_and_by_number(backend: Backend, store: Store) -> None:
    term = (await store.take_over()).term
    minute_us = 60_000_000
    jobs = [ended(queued(f"j{number:04}"), number * minute_us) for number in range(1_300)]
    for start in range(0, len(jobs), 500):
        await put(store, term, *jobs[start : start + 500])
    await put(store, term, queued("live"))
    now_us = 1_300 * minute_us
    assert await store.sweep(now_us=now_us, retention_ms=10**12, max_ended=10**9) == 0
    assert await store.sweep(now_us=now_us, retention_ms=700 * 60_000, max_ended=10**9) == 600
    assert await store.sweep(now_us=now_us, retention_ms=10**12, max_ended=50) == 650
    assert await store.sweep(now_us=now_us, retention_ms=10**12, max_ended=50) == 0
    left = await store.list_ended(tenant=None, states=frozenset(), before=None, limit=1_000)
    assert [job.job_id for job in left] == [f"j{number:04}" for number in range(1_299, 1_249, -1)]
    assert await store.get_job(JobId("j0000")) is None
    assert await store.find_keys(tenant=TenantId("team-a"), keys=["key-j0000"]) == ()
    # A forgotten job may be written again, and its key be used again.
    await put(store, term, queued("j0000"))
    again, stored = await reopened(backend, store)
    await again.close()
    assert ([job.job_id for job in stored.jobs], stored.ended_count) == (["live", "j0000"], 50)


async def test_values_at_their_limits_survive(store: Store) -> None:
    term = (await store.take_over()).term
    jobs = [
        queued("x" * 63, tenant="t" * 63, key="!" * 128, prompt="\N{GRINNING FACE}" * 4_096, accepted_us=2**60),
        queued("quote", key="'; DROP TABLE jobs; --", prompt="\"\\'\x01\x7f\u2028"),
        ended(queued("late"), 2**60),
    ]
    await put(store, term, *jobs)
    for job in jobs:
        assert await store.get_job(job.job_id) == job
    for hostile in ("", "x\x00y", "%", "' OR 1=1 --", "../../etc/passwd", "\N{GRINNING FACE}" * 10_000):
        assert await store.get_job(JobId(hostile)) is None
        assert await store.find_keys(tenant=TenantId(hostile), keys=[hostile]) == ()
        assert await store.list_ended(tenant=TenantId(hostile), states=frozenset(), before=(1, JobId(hostile)), limit=1) == ()


async def test_a_backup_is_a_store_of_the_same_fleet(backend: Backend, store: Store, tmp_path: Path) -> None:
    stored = await store.take_over()
    await put(store, stored.term, placed(queued("live")), ended(queued("done"), 5))
    target = tmp_path / "copy.db"
    size = await store.backup(str(target))
    assert size == target.stat().st_size > 0
    await put(store, stored.term, queued("later"))
    for bad in ("copy.db", "", "/", str(tmp_path), str(target), f"{tmp_path}/no/such/folder", f"{tmp_path}/../x", f"{tmp_path}/a\nb"):
        with pytest.raises(FieldError, match="path"):
            await store.backup(bad)
    assert sorted(name for name in os.listdir(tmp_path) if name.startswith("copy")) == ["copy.db"]


async def test_nothing_works_before_take_over_or_after_close(backend: Backend, store: Store, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="not taken over"):
        await store.commit(Term(1), 1, [])
    with pytest.raises(StateError, match="not taken over"):
        await store.get_job(JobId("j1"))
    with pytest.raises(StateError, match="not taken over"):
        await store.backup(str(tmp_path / "copy.db"))
    await store.take_over()
    await store.close()
    await store.close()
    with pytest.raises(StateError, match="closed"):
        await store.get_job(JobId("j1"))


async def test_the_attempt_of_a_terminal_job_ends_once_and_the_job_stays_as_it_ended(backend: Backend, store: Store) -> None:
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
    assert await store.list_ended(tenant=None, states=frozenset(), before=None, limit=9) == (found,)
