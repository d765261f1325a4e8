"""Agents of twins with a real orchestrator: jobs end, restarts on either side lose and double nothing, a rehearsal of a whole fleet."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agents.app import fleet_of, packaged_gpus
from agents.config import Reach, RehearseConfig
from agents.rehearse import rehearse
from agents.session import AgentEndedError
from atoll.model.address import Address
from atoll.model.site import SiteSpec
from atoll.v1 import job_service_pb2 as jobs_pb
from atoll.v1 import operator_service_pb2 as operators_pb
from atoll.v1 import types_pb2
from atoll.wire.sites import site_spec_to_proto
from orchestrator.core.placement.policy import Policy
from orchestrator.parts import Catalogue
from tests.integration.running_agent import agent, is_connected, machine_of, twin_of, until
from tests.integration.running_orchestrator import Running, orchestrator
from tests.unit.fleet_of_machines import model, pool, site

SITE = site("twin", pool("p", gpus=4))
# Fleet time runs 50 times as fast: a job of 5 s takes 0.1 s. Silence is a matter of real time, so its figures grow with the scale.
SCALE = 50
POLICY = Policy(
    report_interval_ms=100 * SCALE, silent_after_ms=2_000 * SCALE, lost_after_min_ms=60_000 * SCALE, lost_after_max_ms=60_000 * SCALE,
    resend_after_ms=1_000 * SCALE,
)  # fmt: skip
FLEET = Path(__file__).resolve().parents[2] / "clusters.yaml"


def quick(**changes: Any) -> dict[str, Any]:
    """How a test runs its orchestrator."""
    return {"policy": POLICY, "time_scale_milli": SCALE * 1_000, **changes}


async def _declare(running: Running, *specs: SiteSpec) -> None:
    await running.add_models(model("m", weights_gb=2), model("n", weights_gb=3))
    await running.apply(*specs)


def _succeeded(job: types_pb2.Job) -> bool:
    return job.state == types_pb2.JOB_STATE_SUCCEEDED


async def test_rehearsed_jobs_end_with_results_that_say_they_are_simulated(tmp_path: Path) -> None:
    async with orchestrator(tmp_path, **quick()) as running:
        await _declare(running, SITE)
        async with agent(running.address, "twin", twin_of(SITE)):
            submitted = [await running.submit(model_id=name, simulated=True, seed=seed) for seed in range(10) for name in ("m", "n")]
            jobs = await running.ended(*submitted)
        assert all(_succeeded(job) for job in jobs.values())
        assert all(job.result.simulated for job in jobs.values())
        assert {artifact.media_type for job in jobs.values() for artifact in job.result.artifacts} == {"application/json"}
        times = [job.attempts[-1].times for job in jobs.values()]  # one may have been moved to a slot that became better
        assert all(one.run_us > 0 and one.waiting_us >= 0 for one in times)
        assert any(one.fetch_us > 0 and one.load_us > 0 for one in times), "the first of a model is cold"
        assert any(one.fetch_us == -1 and one.load_us == -1 for one in times), "later ones are warm"


async def test_the_same_seed_takes_the_same_time_and_another_world_another(tmp_path: Path) -> None:
    took = []
    for number, seed in enumerate((1, 1, 2)):
        async with orchestrator(tmp_path / str(number), **quick()) as running:
            await _declare(running, SITE)
            async with agent(running.address, "twin", twin_of(SITE, seed)) as found:
                job_id = await running.submit(simulated=True)
                await running.ended(job_id)
                hidden = found.runtime.plant._truth  # type: ignore[attr-defined]
                took.append(hidden.factor_milli("execution", "twin"))
    assert took[0] == took[1] != took[2]


async def test_running_work_goes_on_when_the_orchestrator_restarts(tmp_path: Path, free_port: int) -> None:
    listen = Address(host="127.0.0.1", port=free_port)
    async with orchestrator(tmp_path, **quick(listen=listen)) as running:
        await _declare(running, SITE)
    async with agent(listen, "twin", twin_of(SITE)) as found:
        async with orchestrator(tmp_path, **quick(listen=listen)) as running:
            submitted = [await running.submit(simulated=True) for _ in range(8)]
            machine = machine_of(found)
            await until(lambda: any(slot.executing for slot in machine.state.slots.values()))
        async with orchestrator(tmp_path, **quick(listen=listen)) as running:
            jobs = await running.ended(*submitted)
    assert all(_succeeded(job) for job in jobs.values())
    assert {len(job.attempts) for job in jobs.values()} == {1}


async def test_an_end_that_nobody_heard_survives_the_agent(tmp_path: Path, free_port: int) -> None:
    listen = Address(host="127.0.0.1", port=free_port)
    store, folder = tmp_path / "orchestrator", tmp_path / "agent"
    async with orchestrator(store, **quick(listen=listen)) as running:
        await _declare(running, SITE)
    async with agent(listen, "twin", twin_of(SITE), folder=folder) as found:
        async with orchestrator(store, **quick(listen=listen)) as running:
            await until(lambda: is_connected(found))
            job_id = await running.submit(simulated=True)
            await until(lambda: any(slot.executing for slot in machine_of(found).state.slots.values()))
        await until(lambda: bool(machine_of(found).state.outbox))
        await found.die()
    async with (
        agent(listen, "twin", twin_of(SITE), folder=folder) as found,
        orchestrator(store, **quick(listen=listen)) as running,
    ):
        jobs = await running.ended(job_id)
        assert _succeeded(jobs[job_id])
        assert len(jobs[job_id].attempts) == 1
        await until(lambda: not machine_of(found).state.outbox)


async def test_a_cancelled_job_is_stopped_at_its_twin(tmp_path: Path) -> None:
    async with orchestrator(tmp_path, **quick(time_scale_milli=1_000)) as running:
        await _declare(running, SITE)
        async with agent(running.address, "twin", twin_of(SITE)) as found:
            await running.add_models(model("tiny", weights_gb=0))
            shape = types_pb2.Shape(width=1024, height=1024, frames=1, steps=1_000, cfg_passes=1, batch=1)
            job_id = await running.submit(model_id="tiny", simulated=True, shape=shape)
            machine = machine_of(found)
            await until(lambda: any(slot.executing for slot in machine.state.slots.values()))
            await running.jobs.Cancel(jobs_pb.CancelJobRequest(job_id=job_id, reason="enough"))
            await until(lambda: not machine.state.works)
        assert (await running.get(job_id)).state == types_pb2.JOB_STATE_CANCELLED


async def test_a_site_that_nobody_added_is_refused_with_the_remedy(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running, agent(running.address, "twin", twin_of(SITE)) as found:
        with pytest.raises(AgentEndedError, match="add it first"):
            await found.ended()


async def test_a_second_agent_under_the_same_name_ends_with_a_clear_error(tmp_path: Path) -> None:
    async with orchestrator(tmp_path, **quick()) as running:
        await _declare(running, SITE)
        async with agent(running.address, "twin", twin_of(SITE)) as first:
            await until(lambda: is_connected(first))
            async with agent(running.address, "twin", twin_of(SITE), name_patience_s=0.5) as second:
                with pytest.raises(AgentEndedError, match="another agent speaks as site twin"):
                    await second.ended()
            assert is_connected(first)


async def test_a_token_joins_once_and_the_credential_serves_from_then_on(tmp_path: Path) -> None:
    from orchestrator.api.auth import operator_token

    token = "an-operators-token"
    async with orchestrator(tmp_path / "o", token=token, tokens=(operator_token(token),)) as running:
        request = operators_pb.AddSiteRequest(spec=site_spec_to_proto(SITE), reason="new")
        added = await running.operators.AddSite(request, metadata=running.metadata)
        async with agent(running.address, "twin", twin_of(SITE), folder=tmp_path / "a", token=added.join_token) as found:
            await until(lambda: is_connected(found))
        async with agent(running.address, "twin", twin_of(SITE), folder=tmp_path / "a") as found:
            await until(lambda: is_connected(found))
        async with agent(running.address, "twin", twin_of(SITE), token="atoll-join_guessed") as stranger:
            with pytest.raises(AgentEndedError, match="join token"):
                await stranger.ended()


async def test_twins_wait_for_their_sites_to_be_declared_and_go_on_without_one_that_never_is(tmp_path: Path) -> None:
    gpus = packaged_gpus()
    late, never = (next(spec for spec in fleet_of(FLEET, gpus).sites if spec.site_id == name) for name in ("neo-cdg", "edge-scl"))
    async with orchestrator(tmp_path, **quick(catalogue=Catalogue(gpus=gpus))) as running:

        async def connection(name: str) -> int:
            listed = await running.operators.ListSites(operators_pb.ListSitesRequest())
            return next((one.connection for one in listed.sites if one.spec.site_id == name), types_pb2.SITE_CONNECTION_UNSPECIFIED)

        async def rehearsed(give_up_after_s: float | None, stop: asyncio.Event) -> None:
            reach = Reach(orchestrators=(running.address,), give_up_after_s=give_up_after_s)
            await rehearse(RehearseConfig(fleet=FLEET, sites=(late.site_id, never.site_id), reach=reach), stop=stop)

        def told(logs: list[Any], event: str) -> set[str]:
            return {line["site"] for line in logs if line["event"] == event}

        stop = asyncio.Event()
        with capture_logs() as logs:
            twins = asyncio.create_task(rehearsed(None, stop))
            await until(lambda: told(logs, "site_unknown") == {late.site_id, never.site_id})
            await running.apply(late)
            await until(lambda: late.site_id in told(logs, "connected"))
            stop.set()
            await asyncio.wait_for(twins, 30)
        assert not told(logs, "twin_ended")
        with capture_logs() as logs:
            twins = asyncio.create_task(rehearsed(0.0, asyncio.Event()))
            await until(lambda: told(logs, "twin_ended") == {never.site_id} and told(logs, "connected") == {late.site_id})
        assert await connection(late.site_id) == types_pb2.SITE_CONNECTION_CONNECTED and not twins.done()
        await running.operators.RemoveSite(operators_pb.RemoveSiteRequest(site_id=late.site_id, reason="moved", force=True))
        with pytest.raises(AgentEndedError, match="refuses site"):
            await asyncio.wait_for(twins, 30)


async def test_a_rehearsal_connects_every_site_of_the_reference_fleet(tmp_path: Path) -> None:
    gpus = packaged_gpus()
    async with orchestrator(tmp_path, **quick(catalogue=Catalogue(gpus=gpus))) as running:
        specs = fleet_of(FLEET, gpus).sites
        await _declare(running, *specs)
        stop = asyncio.Event()
        config = RehearseConfig(fleet=FLEET, reach=Reach(orchestrators=(running.address,)))
        twins = asyncio.create_task(rehearse(config, stop=stop))
        submitted = [await running.submit(simulated=True) for _ in range(20)]
        jobs = await running.ended(*submitted)
        listed = await running.operators.ListSites(operators_pb.ListSitesRequest())
        stop.set()
        await asyncio.wait_for(twins, 30)
    assert all(_succeeded(job) for job in jobs.values())
    assert len(listed.sites) == len(specs) == 36
    assert {one.connection for one in listed.sites} == {types_pb2.SITE_CONNECTION_CONNECTED}
