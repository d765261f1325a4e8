"""A whole orchestrator on a real etcd: jobs over a restart, no room for more, and others that lead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest

from atoll.client import AsyncClient
from atoll.v1 import operator_service_pb2 as pb
from atoll.v1 import types_pb2
from orchestrator.app import serve
from orchestrator.config import ExitCode, StartError
from orchestrator.parts import Catalogue
from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.operations import Put
from orchestrator.store.etcd.store import EtcdStore
from orchestrator.store.etcd.target import EtcdTarget
from tests.integration.cutting_proxy import cutting_proxy
from tests.integration.etcd_members import Member, member, needs_etcd, running
from tests.integration.running_orchestrator import PATIENCE_S, QUICK, ScriptedAgent, config, orchestrator, trailers, until
from tests.integration.store_backends import EtcdBackend
from tests.unit.fleet_of_machines import GPUS, model, pool, site

pytestmark = needs_etcd
# Small enough to be filled in a moment.
QUOTA_BYTES = 32 * 1024 * 1024


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], int]) -> Iterator[Member]:
    with running(member(tmp_path_factory.mktemp("etcd"), free_ports, "--quota-backend-bytes", str(QUOTA_BYTES))) as one:
        yield one


@pytest.fixture
def backend(etcd: Member) -> EtcdBackend:
    return EtcdBackend.new(etcd.address)


async def test_a_job_that_was_accepted_outlives_the_orchestrator_and_its_folder(backend: EtcdBackend, tmp_path: Path) -> None:
    async with orchestrator(tmp_path / "here", store=backend.target) as first:
        await first.add_models(model("m"))
        await first.apply(site("a", pool("big")))
        job_id = await first.submit("key")
        assert await first.submit("key") == job_id
    async with orchestrator(tmp_path / "elsewhere", store=backend.target) as second:
        assert (await second.get(job_id)).state == types_pb2.JOB_STATE_QUEUED
        assert await second.submit("key") == job_id
        async with ScriptedAgent(second, "a"):
            assert (await second.ended(job_id))[job_id].state == types_pb2.JOB_STATE_SUCCEEDED
        assert (await second.get(job_id)).state == types_pb2.JOB_STATE_SUCCEEDED


async def test_without_standing_by_a_second_one_is_refused_and_one_that_was_taken_over_ends(backend: EtcdBackend, tmp_path: Path) -> None:
    ready: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    first = asyncio.create_task(
        serve(
            config(tmp_path / "a", store=backend.target, standby=False),
            policy=QUICK,
            catalogue=Catalogue(gpus=GPUS),
            ready=ready.set_result,
        )
    )
    await asyncio.wait_for(ready, PATIENCE_S)
    with pytest.raises(StartError, match="the store is in use by pid") as refused:
        await serve(config(tmp_path / "b", store=backend.target, standby=False), policy=QUICK, catalogue=Catalogue(gpus=GPUS))
    assert refused.value.code is ExitCode.STORE_HELD
    assert not first.done()
    # Nobody asks anything of it: it hears of it by itself.
    await backend.depose()
    assert await asyncio.wait_for(first, PATIENCE_S) == ExitCode.DEPOSED


async def test_a_leader_that_is_cut_off_from_the_store_sends_everybody_on(
    backend: EtcdBackend, etcd: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent that stayed with it would never hear of the next leader."""
    monkeypatch.setattr("orchestrator.store.etcd.store.OUT_OF_TOUCH_S", 1.0)
    other = EtcdStore(backend.target)
    async with cutting_proxy(etcd.address) as (proxy, address):
        cut_off = replace(backend.target, members=(address,))
        async with orchestrator(tmp_path, store=cut_off) as running, AsyncClient(str(running.address)) as client:
            await running.apply(site("a", pool("big")))
            async with ScriptedAgent(running, "a") as agent, asyncio.timeout(PATIENCE_S):
                standing = asyncio.create_task(other.stand_by())
                while len(await client.orchestrators()) < 2:  # noqa: ASYNC110 - it hears over the network
                    await asyncio.sleep(0.05)
                proxy.begin_outage(1)
                await standing
                assert (await other.take_over()).term == 2
                await until(lambda: agent.error is not None)
            with pytest.raises(grpc.aio.AioRpcError, match="does not reach its store, and another may lead") as refused:
                await running.operators.GetFleet(pb.GetFleetRequest())
            assert trailers(refused)["atoll-leader"] == "none"
            # Once it hears of the other one it stands by.
            proxy.end_outage()
            async with asyncio.timeout(PATIENCE_S):
                while (await client.orchestrators())[0].term < 2:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.05)
    await other.close()


async def test_without_room_new_jobs_are_refused_and_operators_are_served(backend: EtcdBackend, tmp_path: Path) -> None:
    async with orchestrator(tmp_path / "data", store=backend.target, store_quota_bytes=QUOTA_BYTES) as running:
        await running.add_models(model("m"))
        await running.submit("before")
        client = await EtcdClient.open(EtcdTarget(members=backend.target.members))
        number = 0
        while (await client.status()).dbSize < QUOTA_BYTES * 0.86:
            number += 1
            await client.transact([], [Put(b"ballast/%d" % number, b"x" * 500_000)])
        await client.close()

        async def submit_for_ever() -> None:
            while True:
                try:
                    await running.submit()
                except grpc.aio.AioRpcError as error:
                    # A member that has just taken in all of the ballast may be late with a commit.
                    if "did not confirm the write" not in (error.details() or ""):
                        raise

        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asyncio.wait_for(submit_for_ever(), PATIENCE_S)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        details = refused.value.details() or ""
        assert details.startswith("no room for new jobs: the store's etcd is ")
        assert "from 85 % on nothing new is accepted" in details
        assert int(trailers(refused)["grpc-retry-pushback-ms"]) == 30_000
        await running.apply(site("a", pool("big")))
        assert (await running.operators.GetFleet(pb.GetFleetRequest())).term == 1
