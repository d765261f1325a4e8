"""A copy that is restored into etcd, and a fleet that moves there: whole, under a later term, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.model.errors import FieldError, StateError
from atoll.model.ids import ChangeSeq, JobId, TenantId
from orchestrator.core.demand import PutDemand
from orchestrator.core.outputs import AppendAudit, PutAdapter, PutEstimates, PutLinks, PutModel, PutPolicy, PutSite, Record
from orchestrator.core.placement.policy import Identity
from orchestrator.store.base import StoreError
from orchestrator.store.etcd import methods
from orchestrator.store.etcd.restoring import restore
from orchestrator.store.sqlite import SqliteStore
from tests.integration.cutting_proxy import cutting_proxy
from tests.integration.etcd_behind import etcd_behind
from tests.integration.etcd_members import Member, member, needs_etcd, running
from tests.integration.store_backends import EtcdBackend, adapter, audit, demand, ended, estimates, link, model, placed, put, queued, site

pytestmark = needs_etcd
WRITTEN_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], int]) -> Iterator[Member]:
    with running(member(tmp_path_factory.mktemp("etcd"), free_ports)) as one:
        yield one


@pytest.fixture
def backend(etcd: Member) -> EtcdBackend:
    return EtcdBackend.new(etcd.address)


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """A store with something of everything."""
    path = tmp_path / "atoll.sqlite"
    store = SqliteStore(path, wall_ms=lambda: WRITTEN_MS)
    term = (await store.take_over()).term
    await put(store, term, ended(queued("old", key="k"), 900))
    await put(store, term, ended(queued("younger", key="k", accepted_us=2), 5), *(queued(f"live-{number}") for number in (3, 1, 2)))
    await put(store, term, placed(queued("live-1")), *(ended(queued(f"e{number:03}", accepted_us=9), number) for number in range(300)))
    records: list[Record] = [
        PutSite(site=site("a")),
        PutLinks(links=(link("a", "b"),)),
        PutModel(model=model("m")),
        PutAdapter(adapter=adapter("l")),
        PutPolicy(policy=Identity(name="own", digest="d")),
        PutEstimates(estimates=estimates(3)),
        PutDemand(demand=demand("m")),
        AppendAudit(event=audit(1)),
    ]
    await store.commit(term, 78, records)
    await store.close()
    return path


async def test_a_fleet_goes_on_in_etcd_as_it_was(backend: EtcdBackend, path: Path) -> None:
    done = await restore(path, backend.target, ended_jobs_max=1_000)
    assert (done.jobs, done.ended_jobs, done.audit_lines) == (3, 302, 1)
    source = SqliteStore(path)
    before = await source.take_over()
    store = backend.open()
    after = await store.take_over()
    # The source was taken over once for the copy, and once above.
    assert after.term == before.term == 3
    assert after.demand_age_us >= 10**6 * 3600
    assert replace(after, demand_age_us=before.demand_age_us) == before
    for job_id in ("old", "younger", "e007", "live-1"):
        assert await store.get_job(JobId(job_id)) == await source.get_job(JobId(job_id)) is not None
    assert [key.job_id for key in await store.find_keys(tenant=TenantId("team-a"), keys=["k"])] == ["younger"]
    assert [line.written_ms for line in await store.list_audit(after=ChangeSeq(0), limit=9)] == [WRITTEN_MS]
    await source.close()
    await store.close()


async def test_of_terminal_jobs_the_youngest_come_along(backend: EtcdBackend, path: Path) -> None:
    assert (await restore(path, backend.target, ended_jobs_max=3)).ended_jobs == 3
    store = backend.open()
    assert [key.job_id for key in (await store.take_over()).ended_keys] == ["e298", "e299", "old"]
    assert await store.get_job(JobId("old")) == ended(queued("old", key="k"), 900)
    await store.close()


async def test_what_is_there_already_is_left_alone(backend: EtcdBackend, path: Path) -> None:
    store = backend.open()
    await put(store, (await store.take_over()).term, queued("mine"))
    await store.close()
    with pytest.raises(StateError, match="holds keys already: name an empty prefix"):
        await restore(path, backend.target, ended_jobs_max=1)
    again = backend.open()
    assert [job.job_id for job in (await again.take_over()).jobs] == ["mine"]
    await again.close()


async def test_nobody_starts_on_what_was_cut_off_and_it_can_be_repeated(etcd: Member, backend: EtcdBackend, path: Path) -> None:
    async with cutting_proxy(etcd.address) as (proxy, address):
        proxy.begin_outage(40_000)
        with pytest.raises(StoreError, match="does not answer"):
            await restore(path, replace(backend.target, members=(address,)), ended_jobs_max=1_000, patience_s=0.5)
    store = backend.open()
    with pytest.raises(StateError, match="were never written to their end: repeat `atoll store restore`"):
        await store.take_over()
    await store.close()
    assert (await restore(path, backend.target, ended_jobs_max=1_000)).jobs == 3
    again = backend.open()
    assert len((await again.take_over()).jobs) == 3
    await again.close()


async def test_a_source_that_is_none_is_told(backend: EtcdBackend, tmp_path: Path) -> None:
    with pytest.raises(FieldError, match="a file: a copy by `atoll store backup`"):
        await restore(tmp_path / "none.sqlite", backend.target, ended_jobs_max=1)
    (tmp_path / "notes.sqlite").write_bytes(b"notes" * 500)
    with pytest.raises(StateError, match="is not a database"):
        await restore(tmp_path / "notes.sqlite", backend.target, ended_jobs_max=1)


async def test_an_orchestrator_that_begins_there_meanwhile_is_left_alone(etcd: Member, backend: EtcdBackend, path: Path) -> None:
    other = backend.open()
    transactions = 0

    async def begin_before_the_second(method: str) -> None:
        nonlocal transactions
        transactions += method == methods.TXN.path
        if transactions == 2:
            transactions += 1
            await put(other, (await other.take_over()).term, queued("its-own"))

    async with etcd_behind(etcd.address) as (behind, address):
        behind.before = begin_before_the_second
        with pytest.raises(StoreError, match="somebody else writes to the prefix"):
            await restore(path, replace(backend.target, members=(address,)), ended_jobs_max=1_000)
    assert [job.job_id for job in (await other.take_over()).jobs] == ["its-own"]
    await other.close()
