"""Those that stand by on a store in etcd: what they have at hand is what a takeover would read, and one goes on when the leader is gone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from atoll.model.ids import JobId, SiteId, TenantId, Term
from atoll.model.job import Job
from atoll.model.orchestrators import Introduction, OrchestratorRole
from orchestrator.core.demand import PutDemand
from orchestrator.core.outputs import AppendAudit, DeleteSite, PutEstimates, PutJob, PutLinks, PutModel, PutSite, Record
from orchestrator.store.base import CommitOutcome, HeldError
from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.layout import Layout
from orchestrator.store.etcd.loading import Reader
from orchestrator.store.etcd.store import EtcdStore
from tests.integration.etcd_members import PATIENCE_S, Member, member, needs_etcd, running
from tests.integration.killed_writer import check_whole, killed_after, writer
from tests.integration.running_orchestrator import until
from tests.integration.store_backends import EtcdBackend, audit, demand, ended, estimates, link, model, placed, put, queued, site

pytestmark = needs_etcd


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], int]) -> Iterator[Member]:
    with running(member(tmp_path_factory.mktemp("etcd"), free_ports)) as one:
        yield one


@pytest.fixture
def backend(etcd: Member) -> EtcdBackend:
    return EtcdBackend.new(etcd.address)


@pytest.fixture
async def opened(backend: EtcdBackend) -> AsyncIterator[Callable[[str], EtcdStore]]:
    """Stores on one prefix, by name."""
    async with AsyncExitStack() as stack:

        def open_store(name: str) -> EtcdStore:
            store = EtcdStore(backend.target, me=Introduction(name=name, address=f"{name}:7443"))
            stack.push_async_callback(store.close)
            return store

        yield open_store


def lags(store: EtcdStore) -> dict[str, int | None]:
    """How far behind those are that stand by."""
    return {view.name: view.lag_ms for view in store.orchestrators() if view.role is OrchestratorRole.STANDBY}


async def level(store: EtcdStore, name: str) -> None:
    """Until it has read everything."""
    await until(lambda: lags(store).get(name) == 0)


def changes(chance: random.Random, jobs: dict[JobId, Job], number: int) -> list[Record]:
    """Some of whatever a fleet does, jobs most of all; and what a job leaves behind when a younger one takes its key."""
    records: list[Record] = [AppendAudit(event=audit(number + 1))]
    for job in chance.sample(sorted(jobs.values(), key=lambda one: one.job_id), min(len(jobs), chance.randrange(30))):
        live = not job.ended_us
        if live:
            changed = placed(job) if chance.random() < 0.5 else ended(job, number + 1)
            jobs[job.job_id] = changed
            records.append(PutJob(job=changed))
    for copy in range(chance.randrange(40)):
        keys = [one.idempotency_key for one in jobs.values() if one.ended_us]
        held = {one.idempotency_key for one in jobs.values() if not one.ended_us}
        key = chance.choice(keys) if keys and chance.random() < 0.2 else None
        job = queued(f"j{number:03}-{copy:02}", accepted_us=number + 1, key=None if key in held else key)
        jobs[job.job_id] = job
        records.append(PutJob(job=job))
    several: list[Record] = [
        PutSite(site=site(f"s{chance.randrange(5)}", f"why {number}")),
        DeleteSite(site_id=SiteId(f"s{chance.randrange(5)}")),
        PutModel(model=model("m", f"title {number}")),
        PutLinks(links=(link("s1", f"s{number}"),)),
        PutEstimates(estimates=estimates(number % 3)),
        PutDemand(demand=demand(f"m{number}")),
    ]
    return [*records, chance.choice(several)]


@pytest.mark.parametrize("seed", [1, 2])
async def test_what_is_at_hand_is_what_would_be_read(
    opened: Callable[[str], EtcdStore], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was committed before it stood by and while it did: in one request, in parts, and taken away."""
    chance, jobs = random.Random(seed), dict[JobId, Job]()
    leader, standby = opened("a"), opened("b")
    term = (await leader.take_over()).term

    async def commit(number: int) -> None:
        assert await leader.commit(term, number + 1, changes(chance, jobs, number)) is CommitOutcome.COMMITTED

    for number in range(10):
        await commit(number)
    standing = asyncio.create_task(standby.stand_by())
    for number in range(10, 20):
        await commit(number)
    await level(leader, "b")
    for number in range(20, 60):
        await commit(number)
        if number % 15 == 0:
            await leader.sweep(now_us=number, retention_ms=0, max_ended=30)
    await leader.close()
    await asyncio.wait_for(standing, PATIENCE_S)
    with monkeypatch.context() as patch:
        patch.delattr(Reader, "jobs")  # nobody reads them again
        warm = await standby.take_over()
    asked = [await _asked(standby, sorted(jobs))]
    cold = await standby.take_over()
    asked.append(await _asked(standby, sorted(jobs)))
    assert warm == replace(cold, term=warm.term, demand_age_us=warm.demand_age_us)
    assert (warm.term, len(warm.jobs) > 50, warm.ended_count > 20) == (term + 1, True, True)
    assert asked[0] == asked[1]
    # What comes next is numbered after what is there.
    await put(standby, cold.term, queued("last"))
    assert [job.job_id for job in (await standby.take_over()).jobs][-1] == "last"


async def _asked(store: EtcdStore, job_ids: list[JobId]) -> object:
    keys = await store.find_keys(tenant=TenantId("team-a"), keys=[f"key-{job_id}" for job_id in job_ids])
    listed = await store.list_ended(tenant=None, states=frozenset(), before=None, limit=1_000)
    return keys, listed, [await store.get_job(job_id) for job_id in job_ids[::7]]


async def _led(backend: EtcdBackend) -> None:
    """Until somebody has taken over."""
    client, layout = await EtcdClient.open(backend.target), Layout(backend.target.prefix)
    async with asyncio.timeout(PATIENCE_S):
        while layout.leadership not in await client.read([layout.leadership]):  # noqa: ASYNC110 - another process brings it about
            await asyncio.sleep(0.01)
    await client.close()


async def test_one_of_two_that_stand_by_goes_on_when_the_leader_is_killed(backend: EtcdBackend, opened: Callable[[str], EtcdStore]) -> None:
    process = writer(str(backend.target), 1, 300)
    stores = [opened("b"), opened("c")]
    killing = asyncio.create_task(asyncio.to_thread(killed_after, process, 40))

    async def lead(store: EtcdStore) -> EtcdStore:
        while True:
            try:
                await store.stand_by()
                await store.take_over()
                return store
            except HeldError:
                await asyncio.sleep(0)

    await _led(backend)
    leading = [asyncio.create_task(lead(store)) for store in stores]
    promised = {f"r1-b{batch}": int(jobs) for batch, jobs in (line.split() for line in await killing)}
    done, pending = await asyncio.wait(leading, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
    (first,) = [task.result() for task in done]
    stored = await first.take_over()
    await check_whole(first, stored, promised)
    # The other one hears that it is alive.
    (other,) = [store for store in stores if store is not first]
    await until(lambda: other.orchestrators()[0].term == stored.term)
    views = other.orchestrators()
    assert [view.role for view in views] == [OrchestratorRole.LEADER, OrchestratorRole.STANDBY]
    assert {view.name for view in views} == {"b", "c"}
    await put(first, stored.term, queued("after"))
    assert all(not task.done() for task in pending)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)


async def test_of_several_that_begin_a_fleet_at_once_one_leads(etcd: Member) -> None:
    for _ in range(5):
        backend = EtcdBackend.new(etcd.address)
        stores = [backend.open() for _ in range(4)]
        found = await asyncio.gather(*(store.take_over() for store in stores), return_exceptions=True)
        assert sorted(type(one).__name__ for one in found) == ["HeldError", "HeldError", "HeldError", "Stored"]
        for store in stores:
            await store.close()


async def test_a_leader_that_beats_again_in_the_last_moment_stays(backend: EtcdBackend, opened: Callable[[str], EtcdStore]) -> None:
    leader, standby = opened("a"), opened("b")
    term = (await leader.take_over()).term
    standing = asyncio.create_task(standby.stand_by())
    await level(leader, "b")
    # As if it had been silent until now.
    standby._silent_revision = 1
    with pytest.raises(HeldError, match="in use by"):
        await standby.take_over()
    await put(leader, term, queued("j"))
    assert lags(leader) == {"b": 0}
    assert leader.orchestrators()[0].term == Term(1)
    standing.cancel()
    await asyncio.gather(standing, return_exceptions=True)
