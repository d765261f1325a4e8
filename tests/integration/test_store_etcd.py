"""The store in etcd against the real world: answers that are lost, processes that are killed, others that lead, and space that runs out."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from atoll.model.address import Address
from atoll.model.demand import KeptDemand
from atoll.model.errors import StateError
from atoll.model.ids import ChangeSeq, JobId
from atoll.model.learned import Estimates
from orchestrator.core.demand import PutDemand
from orchestrator.core.durable import Stored
from orchestrator.core.outputs import AppendAudit, PutEstimates, PutJob, PutModel
from orchestrator.leadership import regain
from orchestrator.store.base import CommitOutcome, StoreError
from orchestrator.store.etcd import leading
from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.errors import EtcdCompactedError
from orchestrator.store.etcd.layout import FORMAT, FleetValue, Layout, encode
from orchestrator.store.etcd.operations import Delete, Put, Unchanged, end_of
from orchestrator.store.etcd.pb import etcd_pb2 as pb
from orchestrator.store.etcd.quota import Fullness, fullness_of, why_shed
from orchestrator.store.etcd.store import EtcdStore
from orchestrator.store.etcd.target import EtcdTarget
from orchestrator.store.etcd.writing import Writer
from orchestrator.store.sqlite import SqliteStore
from orchestrator.store.sqlite_backup import TERM_GAP
from tests.integration.cutting_proxy import cutting_proxy
from tests.integration.etcd_members import PATIENCE_S, Member, member, needs_etcd, running
from tests.integration.killed_writer import check_whole, killed_after, writer
from tests.integration.running_orchestrator import until
from tests.integration.store_backends import EtcdBackend, audit, demand, ended, estimates, model, placed, put, queued

pytestmark = needs_etcd
COMMITTED = CommitOutcome.COMMITTED


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], int]) -> Iterator[Member]:
    with running(member(tmp_path_factory.mktemp("etcd"), free_ports)) as one:
        yield one


@pytest.fixture
def backend(etcd: Member) -> EtcdBackend:
    return EtcdBackend.new(etcd.address)


@pytest.fixture
async def store(backend: EtcdBackend) -> AsyncIterator[EtcdStore]:
    store = backend.open()
    yield store
    await store.close()


@pytest.fixture
async def client(etcd: Member) -> AsyncIterator[EtcdClient]:
    client = await EtcdClient.open(EtcdTarget(members=(etcd.address,)), patience_s=PATIENCE_S)
    yield client
    await client.close()


async def keys(client: EtcdClient, folder: bytes) -> list[bytes]:
    """What is there behind a slash."""
    page = await client.range(folder, end_of(folder), keys_only=True)
    return [kv.key.removeprefix(folder) for kv in page.kvs]


async def regained(store: EtcdStore) -> Stored:
    """As a driver does after an outage."""
    stored = await regain(store, asyncio.Event())
    assert stored is not None
    return stored


@pytest.mark.parametrize("jobs", [3, 400])
async def test_a_commit_whose_answer_is_lost_is_made_once_and_told(etcd: Member, backend: EtcdBackend, jobs: int) -> None:
    """Small ones and those in parts; whichever of its answers is lost."""
    async with cutting_proxy(etcd.address) as (proxy, address):
        store = EtcdStore(replace(backend.target, members=(address,)))
        term = (await store.take_over()).term
        promised: list[JobId] = []
        sizes = (400,) if jobs < 100 else (1_000, 700_000, 1_400_000, 2_600_000)
        for number, size in enumerate(sizes):
            cut = [queued(f"c{number}-{job:03}", prompt="x" * 5_000) for job in range(jobs)]
            before = proxy.cuts
            proxy.cut_answer_of(size)
            await put(store, term, *cut)
            assert proxy.cuts > before
            promised.extend(job.job_id for job in cut)
            await put(store, term, queued(f"then-{number}"))
            promised.append(JobId(f"then-{number}"))
        again = await store.take_over()
        assert [job.job_id for job in again.jobs] == promised
        await store.close()


async def test_a_commit_that_is_cut_off_anywhere_is_whole_or_absent(etcd: Member, backend: EtcdBackend) -> None:
    """In its parts, between them and the word that they count, and while they are carried out: then it is carried out by the next."""
    async with cutting_proxy(etcd.address) as (proxy, address):
        store = EtcdStore(replace(backend.target, members=(address,)), patience_s=0.5)
        term = (await store.take_over()).term
        whole: list[bool] = []
        for number, size in enumerate((1_000, 60_000, 120_000, 200_000, 260_000, 290_000, 340_000)):
            names = {f"c{number}-{job:03}" for job in range(150)}
            before = proxy.cuts
            proxy.begin_outage(size)
            with pytest.raises(StoreError):
                await put(store, term, *(queued(name, prompt="x" * 1_000) for name in sorted(names)))
            assert proxy.cuts > before
            proxy.end_outage()
            async with asyncio.timeout(PATIENCE_S):
                stored = await regained(store)
            term = stored.term
            held = names & {job.job_id for job in stored.jobs}
            assert held in (set(), names)
            whole.append(bool(held))
        await store.close()
    assert whole == sorted(whole), "cut off later, more of it had happened"
    assert set(whole) == {True, False}


async def test_a_request_that_arrives_late_finds_nothing_of_the_next_commit(backend: EtcdBackend, client: EtcdClient) -> None:
    """Given up by whoever asked, it may still be on its way: the end of a takeover, and a part of a commit."""
    layout = Layout(backend.target.prefix)
    head = await leading.take_over(client, layout, "me")
    writer = Writer(client, layout, head)
    await writer.recover()
    guards = [Unchanged(layout.leadership, head.leadership_revision), Unchanged(layout.commit, head.commit_revision)]
    assert not (await client.transact(guards, [Delete(layout.staged, end_of(layout.staged))])).succeeded
    guards[1] = Unchanged(layout.commit, writer.revision)
    assert await writer.commit(1, [Put(layout.live + b"%d" % number, b"new") for number in range(300)]) is COMMITTED
    assert not (await client.transact(guards, [Put(layout.live + b"7", b"old")])).succeeded
    assert (await client.range(layout.live + b"7")).kvs[0].value == b"new"
    assert await keys(client, layout.staged) == []


async def test_kill_at_any_moment_loses_nothing_promised_and_tears_no_batch(etcd: Member, backend: EtcdBackend) -> None:
    """Batches of up to 1,500 KB, of which most are committed in parts."""
    chance = random.Random(20)
    promised: dict[str, int] = {}
    rounds = 2
    for number in range(rounds):
        process = writer(str(backend.target), number, 300)
        lines = await asyncio.to_thread(killed_after, process, chance.randint(1, 25))
        promised.update((f"r{number}-b{batch}", int(jobs)) for batch, jobs in (line.split() for line in lines))
    store = backend.open()
    stored = await store.take_over()
    await check_whole(store, stored, promised)
    assert stored.term == rounds + 1
    await store.close()


async def test_a_second_store_is_told_who_holds_it_and_takes_over_once_that_has_gone(backend: EtcdBackend, store: EtcdStore) -> None:
    await store.take_over()
    other = backend.open()
    with pytest.raises(StateError, match=rf"in use by pid {os.getpid()} on .* one orchestrator at a time"):
        await other.take_over()
    await store.close()
    # It said goodbye: nobody waits for its silence.
    async with asyncio.timeout(1.0):
        assert (await other.take_over()).term == 2
    await other.close()


async def test_who_is_deposed_hears_of_it_without_writing(backend: EtcdBackend, store: EtcdStore) -> None:
    await store.take_over()
    await store.take_over()
    heard = asyncio.create_task(store.deposed())
    await asyncio.wait({heard}, timeout=0.3)
    assert not heard.done(), "its own takeovers are no other's"
    await backend.depose()
    await asyncio.wait_for(heard, PATIENCE_S)


async def test_terminal_jobs_leave_etcd_with_all_their_keys(backend: EtcdBackend, store: EtcdStore, client: EtcdClient) -> None:
    layout = Layout(backend.target.prefix)
    term = (await store.take_over()).term
    await put(store, term, *(queued(f"j{number:03}") for number in range(150)))
    await put(store, term, *(ended(queued(f"j{number:03}"), number) for number in range(149)))
    assert (len(await keys(client, layout.live)), len(await keys(client, layout.done)), len(await keys(client, layout.ended))) == (
        1,
        149,
        149,
    )
    assert await store.sweep(now_us=200, retention_ms=0, max_ended=10) == 149
    assert (await keys(client, layout.live), await keys(client, layout.done), await keys(client, layout.ended)) == ([b"j149"], [], [])


async def test_the_audit_is_trimmed_to_its_last_lines(backend: EtcdBackend, store: EtcdStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.store.etcd.store.AUDIT_LINES_MAX", 5)
    term = (await store.take_over()).term
    assert await store.commit(term, 1, [AppendAudit(event=audit(seq)) for seq in range(1, 13)]) is COMMITTED
    await store.sweep(now_us=1, retention_ms=0, max_ended=1)
    left = await store.list_audit(after=ChangeSeq(0), limit=100)
    assert [line.seq for line in left] == [8, 9, 10, 11, 12]
    assert (await store.take_over()).last_audit_seq == 12


async def test_history_is_compacted_as_it_is_written(backend: EtcdBackend, store: EtcdStore, client: EtcdClient) -> None:
    term = (await store.take_over()).term
    await put(store, term, queued("j1"))
    key = Layout(backend.target.prefix).live_job("j1")
    revision = (await client.range(key)).kvs[0].mod_revision
    big = [queued(f"big-{number}", prompt="\N{GRINNING FACE}" * 4_000) for number in range(500)]

    async def write_until_it_is_gone() -> None:
        while True:
            await put(store, term, *big)
            await client.range(key, revision=revision)

    with pytest.raises(EtcdCompactedError):
        await asyncio.wait_for(write_until_it_is_gone(), PATIENCE_S)
    assert await store.get_job(JobId("j1")) == queued("j1")


QUOTA_BYTES = 24 * 1024 * 1024


@pytest.fixture
def small_etcd(tmp_path: Path, free_ports: Callable[[], int]) -> Iterator[Member]:
    with running(member(tmp_path / "small", free_ports, "--quota-backend-bytes", str(QUOTA_BYTES))) as one:
        yield one


async def test_a_full_etcd_is_told_before_and_when_it_is_full(small_etcd: Member) -> None:
    store = EtcdStore(EtcdTarget(members=(small_etcd.address,)), quota_bytes=QUOTA_BYTES)
    client = await EtcdClient.open(EtcdTarget(members=(small_etcd.address,)))
    term = (await store.take_over()).term
    await put(store, term, queued("live"), *(ended(queued(f"done-{number}"), 1) for number in range(50)))
    assert store.why_shed() == ""
    batches = 0

    async def fill(jobs: int) -> None:
        nonlocal batches
        batches += 1
        await put(store, term, *(queued(f"b{batches}-{job}", prompt="x" * 15_000) for job in range(jobs)))

    while (await client.status()).dbSize < QUOTA_BYTES * 0.86:
        await fill(20)
    # Members are asked once a second.
    await until(lambda: bool(store.why_shed()))
    assert "% full" in store.why_shed()
    assert "from 85 % on nothing new is accepted" in store.why_shed()
    # The ends of what was accepted still have room.
    await put(store, term, ended(queued("live"), 5))

    async def fill_up() -> None:
        while True:
            await fill(100)

    with pytest.raises(StoreError, match=r"etcd is full: .*alarm disarm"):
        await asyncio.wait_for(fill_up(), PATIENCE_S)
    await client.close()
    await store.close()


def test_the_fullest_member_decides_and_alarms_always_do() -> None:
    roomy = Fullness(used_bytes=100, live_bytes=10, quota_bytes=0)
    assert why_shed([], 1_000) == why_shed([roomy], 1_000) == ""
    assert why_shed([roomy, replace(roomy, used_bytes=849)], 1_000) == ""
    assert why_shed([roomy, replace(roomy, used_bytes=850)], 1_000).startswith("the store's etcd is 85 % full")
    # What a member says of its quota counts more than what was configured here.
    assert why_shed([replace(roomy, used_bytes=850, quota_bytes=2_000)], 1_000) == ""
    assert why_shed([replace(roomy, used_bytes=400, quota_bytes=400), roomy], 1_000).startswith("the store's etcd is 100 % full")
    full = pb.StatusResponse(dbSize=100, errors=["memberID:9 alarm:NOSPACE "])
    assert "(memberID:9 alarm:NOSPACE)" in why_shed([roomy, fullness_of(full)], 1_000)
    # One that is cut off from the others says so in the same place.
    assert why_shed([roomy, fullness_of(pb.StatusResponse(dbSize=100, errors=["etcdserver: no leader"]))], 1_000) == ""


async def test_two_live_jobs_of_one_key_are_a_bug_and_change_nothing(store: EtcdStore) -> None:
    stored = await store.take_over()
    await put(store, stored.term, queued("one", key="k"))
    with pytest.raises(StoreError, match="UNIQUE"):
        await store.commit(stored.term, 2, [PutJob(job=queued("bystander")), PutJob(job=queued("two", key="k"))])
    again = await store.take_over()
    assert [job.job_id for job in again.jobs] == ["one"]
    assert again.fleet_time_us == 1


async def test_a_bounded_number_of_ended_keys_is_loaded_the_rest_is_found(backend: EtcdBackend) -> None:
    store = EtcdStore(backend.target, ended_keys_max=3)
    term = (await store.take_over()).term
    await put(store, term, *(ended(queued(f"j{number}"), number + 1) for number in range(6)))
    again = await store.take_over()
    assert ([key.job_id for key in again.ended_keys], again.ended_count) == (["j3", "j4", "j5"], 6)
    found = await store.find_keys(tenant=queued("x").spec.tenant, keys=["key-j0"])
    assert [key.job_id for key in found] == ["j0"]
    await store.close()


async def test_a_prefix_that_is_anothers_is_left_alone(etcd: Member, client: EtcdClient) -> None:
    target = EtcdTarget(members=(etcd.address,), prefix=f"another/{uuid.uuid4().hex}")
    layout = Layout(target.prefix)
    for value, told in (
        (b"notes", "holds what this program does not write"),
        (encode(FleetValue(format=FORMAT + 1, fleet_id="f")), "has format"),
    ):
        await client.transact([], [Put(layout.fleet, value)])
        store = EtcdStore(target)
        with pytest.raises(StateError, match=told):
            await store.take_over()
        await store.close()
        assert (await client.range(layout.fleet)).kvs[0].value == value
        assert (await client.read([layout.leadership])) == {}


async def test_estimates_and_demand_that_cannot_be_read_are_learned_again(
    backend: EtcdBackend, store: EtcdStore, client: EtcdClient
) -> None:
    layout = Layout(backend.target.prefix)
    term = (await store.take_over()).term
    await store.commit(term, 1, [PutModel(model=model("m")), PutEstimates(estimates=estimates(2)), PutDemand(demand=demand("m"))])
    await client.transact(
        [], [Put(layout.part(layout.estimates, 0), b"\x01\xc1"), Put(layout.part(layout.demand, 0), b"\x00" * 8 + b"\x01\xc1")]
    )
    loaded = await store.take_over()
    assert (loaded.models, loaded.estimates, loaded.demand) == ((model("m"),), Estimates(), KeptDemand())


@pytest.mark.parametrize(("later_ms", "age_us"), [(90_000, 90_000_000), (0, 0), (-5, 0)])
async def test_demand_is_as_old_as_peoples_clocks_say(backend: EtcdBackend, later_ms: int, age_us: int) -> None:
    """Also when they were set back: it is never younger than new."""
    written_ms = 1_700_000_000_000
    clock = [written_ms]
    store = EtcdStore(backend.target, wall_ms=lambda: clock[0])
    await store.commit((await store.take_over()).term, 1, [PutDemand(demand=demand("m"))])
    clock[0] += later_ms
    loaded = await store.take_over()
    await store.close()
    assert (loaded.demand, loaded.demand_age_us) == (demand("m"), age_us)


async def test_a_copy_is_an_embedded_store_that_goes_on_as_this_fleet(backend: EtcdBackend, tmp_path: Path) -> None:
    store = EtcdStore(backend.target, wall_ms=lambda: 1_700_000_000_000)
    stored = await store.take_over()
    await put(store, stored.term, ended(queued("old", key="k"), 5), placed(queued("live")))
    await put(store, stored.term, queued("new", key="k"), *(ended(queued(f"e{number:03}"), 9 + number) for number in range(300)))
    await store.commit(stored.term, 7, [AppendAudit(event=audit(1)), PutModel(model=model("m")), PutDemand(demand=demand("m"))])
    whole = await store.take_over()
    await store.backup(str(tmp_path / "copy.db"))
    await put(store, whole.term, queued("later"))
    await store.close()
    assert sorted(os.listdir(tmp_path)) == ["copy.db"]
    copy = SqliteStore(tmp_path / "copy.db", wall_ms=lambda: 1_700_000_000_000)
    copied = await copy.take_over()
    assert copied.term > whole.term + TERM_GAP
    assert replace(copied, term=whole.term, jobs=()) == replace(whole, jobs=())
    assert {job.job_id for job in copied.jobs} == {"live", "new"}
    assert [key.job_id for key in copied.ended_keys] == [f"e{number:03}" for number in range(300)]
    assert await copy.get_job(JobId("old")) == ended(queued("old", key="k"), 5)
    assert [line.written_ms for line in await copy.list_audit(after=ChangeSeq(0), limit=9)] == [1_700_000_000_000]
    await copy.close()


async def test_a_copy_of_a_store_in_use_is_of_one_moment(store: EtcdStore, tmp_path: Path) -> None:
    """Batches of 200, each committed in parts, go on being committed: a copy holds whole batches only."""
    stored = await store.take_over()
    stop = asyncio.Event()

    async def load() -> int:
        batch = 0
        while not stop.is_set():
            await put(store, stored.term, *(queued(f"b{batch}-j{job}", prompt="x" * 4_000) for job in range(200)), now_us=batch)
            batch += 1
        return batch

    loading = asyncio.create_task(load())
    targets = [tmp_path / f"copy{number}.db" for number in range(2)]
    for target in targets:
        await store.backup(str(target))
    stop.set()
    assert await loading > 0
    for target in targets:
        with sqlite3.connect(target) as connection:
            batches = Counter(job_id.partition("-")[0] for (job_id,) in connection.execute("SELECT job_id FROM jobs"))
        connection.close()
        assert set(batches.values()) <= {200}


async def test_nobody_there_is_told_with_the_url(free_port: int) -> None:
    store = EtcdStore(EtcdTarget(members=(Address(host="127.0.0.1", port=free_port),)), patience_s=0.3)
    with pytest.raises(StoreError, match=rf"etcd://127\.0\.0\.1:{free_port}/atoll: etcd does not answer"):
        await store.take_over()
    await store.close()
