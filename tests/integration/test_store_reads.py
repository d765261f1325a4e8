"""What every real store answers: pages, keys, sweeps, copies."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.model.address import Address
from atoll.model.audit import AuditEvent
from atoll.model.errors import FieldError, StateError
from atoll.model.ids import ChangeSeq, JobId, TenantId, Term
from atoll.model.job import TERMINAL, Job, JobState
from orchestrator.core.outputs import (
    AppendAudit,
)
from orchestrator.store.base import CommitOutcome, Store
from tests.integration.etcd_members import member, running
from tests.integration.store_backends import (
    STORES,
    Backend,
    Bench,
    audit,
    each_of,
    ended,
    placed,
    put,
    queued,
    reopened,
)

COMMITTED = CommitOutcome.COMMITTED


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], int]) -> Iterator[Address]:
    with running(member(tmp_path_factory.mktemp("etcd"), free_ports)) as one:
        yield one.address


@pytest.fixture(params=each_of(STORES))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend[Store]:
    return STORES[request.param](Bench(tmp_path, lambda: request.getfixturevalue("etcd")))


@pytest.fixture
async def store(backend: Backend[Store]) -> AsyncIterator[Store]:
    store = backend.open()
    yield store
    await store.close()


async def test_a_job_that_ended_is_listed_as_it_was_written_last(store: Store) -> None:
    term = (await store.take_over()).term
    first = ended(placed(queued("j1")), 9)
    # An attempt that was still stopping ends after its job has.
    late = replace(first, cancel_reason="no longer wanted")
    for job in (first, late):
        await put(store, term, job)
        assert await store.list_ended(tenant=None, states=frozenset(), before=None, limit=10) == (job,)


async def test_a_deposed_writer_forgets_nothing(backend: Backend[Store], store: Store) -> None:
    term = (await store.take_over()).term
    await put(store, term, ended(queued("done"), 5))
    await backend.depose()
    assert await store.sweep(now_us=10**12, retention_ms=0, max_ended=0) == 0
    again, stored = await reopened(backend, store)
    await again.close()
    assert stored.ended_count == 1


async def test_a_key_that_was_forgotten_is_found_with_the_youngest_job(store: Store) -> None:
    term = (await store.take_over()).term
    await put(store, term, ended(queued("old", key="k"), 5))
    await put(store, term, queued("new", key="k"))
    assert await store.find_keys(tenant=TenantId("team-a"), keys=["k"]) == ()
    await put(store, term, ended(queued("new", key="k"), 9))
    assert [key.job_id for key in await store.find_keys(tenant=TenantId("team-a"), keys=["k"])] == ["new"]


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
    assert [await store.audit_tail(most=most) for most in (1, 3, 10, 11, 1_000)] == [10, 8, 1, 0, 0]


async def test_keys_of_ended_jobs_are_found(backend: Backend[Store], store: Store) -> None:
    term = (await store.take_over()).term
    await put(store, term, *(ended(queued(f"j{number}"), 10 - number) for number in range(5)), queued("live"))
    await put(store, term, ended(queued("other", tenant="team-b", key="key-j1"), 3), ended(queued("keyless", key=""), 4))
    found = await store.find_keys(tenant=TenantId("team-a"), keys=["key-j1", "key-live", "unheard-of", "key-j3"])
    assert [(key.idempotency_key, key.job_id) for key in found] == [("key-j1", "j1"), ("key-j3", "j3")]
    again, stored = await reopened(backend, store)
    await again.close()
    # In the order in which they ended: whoever keeps a bounded number drops the oldest first.
    assert [key.job_id for key in stored.ended_keys] == ["other", "j4", "j3", "j2", "j1", "j0"]


async def test_a_sweep_forgets_by_age_and_by_number(backend: Backend[Store], store: Store) -> None:
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


async def test_a_backup_is_a_store_of_the_same_fleet(backend: Backend[Store], store: Store, tmp_path: Path) -> None:
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


async def test_nothing_works_before_take_over_or_after_close(backend: Backend[Store], store: Store, tmp_path: Path) -> None:
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
