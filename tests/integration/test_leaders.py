"""Two orchestrators as processes on a real etcd: one leads, the other takes over, and whoever asks finds the leader by itself."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from atoll.cli.app import main
from atoll.client import AsyncClient, Client, Settings
from atoll.model.ids import SiteId
from atoll.model.site import SiteConnection
from atoll.v1.job_service_pb2_grpc import JobServiceStub
from tests.integration.etcd_members import PATIENCE_S, Member, member, needs_etcd, running
from tests.integration.running_orchestrator import job, trailers, until
from tests.soak.leaders import MODEL, Orchestrator, Submits, asked, check, twins, two
from tests.unit.fleet_of_machines import pool, site

pytestmark = needs_etcd
# Of a GPU type that the program knows by itself.
POOL = pool("h100", gpu="H100-SXM")


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], int]) -> Iterator[Member]:
    with running(member(tmp_path_factory.mktemp("etcd"), free_ports)) as one:
        yield one


@pytest.fixture(scope="module")
def ones(etcd: Member, tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[], int]) -> Iterator[list[Orchestrator]]:
    with two(etcd, tmp_path_factory.mktemp("pair"), free_ports) as started:
        yield started


async def _roles(ones: list[Orchestrator]) -> tuple[Orchestrator, Orchestrator]:
    """The leader, and the one that stands by, level with it."""
    async with asked(ones) as both:
        leader = await both.leader()
    (other,) = [one for one in ones if one is not leader]
    return leader, other


async def test_one_leads_and_the_other_says_so(ones: list[Orchestrator], capsys: pytest.CaptureFixture[str]) -> None:
    leader, standby = await _roles(ones)
    for one, serving in ((leader, health_pb2.HealthCheckResponse.SERVING), (standby, health_pb2.HealthCheckResponse.NOT_SERVING)):
        async with grpc.aio.insecure_channel(str(one.address)) as channel:
            assert (await HealthStub(channel).Check(health_pb2.HealthCheckRequest())).status == serving
    async with grpc.aio.insecure_channel(str(standby.address)) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match=f"stands by: o{leader.address.port} leads at {leader.address}") as refused:
            await JobServiceStub(channel).Submit(job())
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert trailers(refused)["atoll-leader"] == str(leader.address)
    for one in ones:
        assert await asyncio.to_thread(main, ["orchestrators", "list", "--address", str(one.address), "-o", "json"]) == 0
        first, second = json.loads(capsys.readouterr().out)
        assert (first["address"], first["role"], first["term"]) == (str(leader.address), "leader", 1)
        assert (second["address"], second["role"], second["lag_ms"]) == (str(standby.address), "standby", 0)
        assert (first["name"], second["name"]) == (f"o{leader.address.port}", f"o{standby.address.port}")
        assert max(first["last_beat_ms"], second["last_beat_ms"]) < 15_000
    # What may not be asked twice, of one who only knows where the other is; and with that one named first.
    with Client(settings=Settings(addresses=(standby.address,))) as client:
        assert client.sites_add(site("one", POOL)).site_id == "one"
    with Client(settings=Settings(addresses=(standby.address, leader.address))) as client:
        assert client.sites_add(site("two", POOL)).site_id == "two"


async def test_a_leader_that_was_frozen_changes_nothing_when_it_goes_on(ones: list[Orchestrator]) -> None:
    leader, standby = await _roles(ones)
    async with asked(ones) as both, AsyncClient(settings=Settings(addresses=(leader.address,))) as stuck:
        before = await stuck.fleet()
        leader.send(signal.SIGSTOP)
        try:
            # It has this in its socket when it goes on: accepted by a leader, as far as it knows.
            async with grpc.aio.insecure_channel(str(leader.address)) as channel:
                late = asyncio.ensure_future(
                    JobServiceStub(channel).Submit(job("late", model_id=MODEL, simulated=True), timeout=PATIENCE_S)
                )
                # Left by itself, within the time that pings take.
                during = await both.client.submit(MODEL, "a reef", simulated=True, idempotency_key="during")
                leader.send(signal.SIGCONT)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await late
        finally:
            leader.send(signal.SIGCONT)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await both.leader() is standby
        after = await both.client.fleet()
        assert (after.term, after.fleet_id) == (before.term + 1, before.fleet_id)
        # Under its key there is nothing; what the other one accepted is there.
        jobs = {one.idempotency_key: one.job_id async for one in both.client.list()}
        assert jobs["during"] == during and "late" not in jobs
        # Whoever knows only the one that was frozen is sent on by it, now that it stands by.
        assert (await stuck.fleet()).term == after.term
    assert '"event": "deposed"' in leader.log


async def test_what_was_accepted_ends_exactly_once_when_the_leader_is_killed(ones: list[Orchestrator]) -> None:
    leader, standby = await _roles(ones)
    async with asked(ones) as both, twins(both, nodes=10):
        submits = Submits(both.client, rate=40)
        submitting = asyncio.create_task(submits.run())
        await until(lambda: len(submits.accepted) > 40)
        before = (await both.client.orchestrators())[0]
        await asyncio.to_thread(leader.end)
        killed = len(submits.accepted)
        await until(lambda: len(submits.accepted) > killed + 40)
        submits.stop.set()
        await submitting
        after = (await both.client.orchestrators())[0]
        assert (after.address, after.term) == (str(standby.address), before.term + 1)
        # The site came back by itself, and did the rest.
        assert await check(both, submits) == []
        lab = await both.client.sites_get("lab")
        assert (lab.spec.site_id, lab.connection) == (SiteId("lab"), SiteConnection.CONNECTED)
