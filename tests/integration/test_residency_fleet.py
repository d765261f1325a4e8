"""Day zero on a fleet of twins: a new model is pushed to four sites, warm on two, before its first job, and the first job is warm."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from atoll.client import AsyncClient, InputError, NotFoundError, StateError
from atoll.model.address import Address
from atoll.model.replica import Tier
from atoll.model.residency import Cause, ModelPlaces, Movement
from tests.integration.running_agent import agent, is_connected, twin_of, until
from tests.integration.running_orchestrator import orchestrator
from tests.integration.test_agent_fleet import quick
from tests.unit.fleet_of_machines import GB, model, pool, site

SITES = tuple(site(name, pool(f"p-{name}", gpus=2)) for name in ("one", "two", "three", "four"))
PATIENCE_S = 60.0


def there(places: ModelPlaces, tier: Tier) -> set[str]:
    return {view.site_id for view in places.copies if view.tier is tier and view.copies}


async def arrived(client: AsyncClient, *, disk: int, gpu: int) -> ModelPlaces:
    """Where the model is once it is on so many disks and GPUs."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            places = await client.models_where("m", why=True)
            if len(there(places, Tier.DISK)) >= disk and len(there(places, Tier.GPU)) >= gpu:
                return places
            await asyncio.sleep(0.05)


async def test_the_first_job_of_a_pushed_model_is_warm(tmp_path: Path) -> None:
    async with orchestrator(tmp_path, **quick()) as running, AsyncExitStack() as stack:
        await running.add_models(model("m", weights_gb=2))
        await running.apply(*SITES)
        for one in SITES:
            found = await stack.enter_async_context(agent(running.address, one.site_id, twin_of(one)))
            await until(lambda found=found: is_connected(found))  # type: ignore[misc] # bound now
        client = await stack.enter_async_context(AsyncClient(str(running.address)))
        asked = await client.models_push("m", sites=4, warm=2, dry_run=True)
        assert (await client.models_where("m")).push is None, "a dry run changes nothing"
        plan = await client.models_push("m", sites=4, warm=2, reason="launch")
        assert plan.steps == asked.steps
        assert [step.warm for step in plan.steps] == [True, True, False, False]
        assert {step.bytes for step in plan.steps} == {2 * GB}
        places = await arrived(client, disk=4, gpu=2)
        assert there(places, Tier.GPU) == {step.site_id for step in plan.steps if step.warm}
        assert {event.cause for event in places.events if event.movement is Movement.CAME} == {Cause.PUSH}
        job_id = await running.submit(model_id="m", simulated=True)
        job = (await running.ended(job_id))[job_id]
        assert not job.attempts[0].cold
        assert job.attempts[0].times.fetch_us == job.attempts[0].times.load_us == -1


async def test_a_pin_brings_the_model_and_survives_a_restart_of_the_orchestrator(tmp_path: Path, free_port: int) -> None:
    listen, one = Address(host="127.0.0.1", port=free_port), SITES[0]
    async with orchestrator(tmp_path, **quick(listen=listen)) as running:
        await running.add_models(model("m", weights_gb=2))
        await running.apply(one)
    async with agent(listen, one.site_id, twin_of(one)) as found:
        async with orchestrator(tmp_path, **quick(listen=listen)), AsyncClient(str(listen)) as client:
            await until(lambda: is_connected(found))
            await client.models_pin("m", "one", tier=Tier.GPU, reason="demo")
            places = await arrived(client, disk=1, gpu=1)
            assert [(pin.site_id, pin.tier, pin.reason) for pin in places.pins] == [("one", Tier.GPU, "demo")]
        async with orchestrator(tmp_path, **quick(listen=listen)), AsyncClient(str(listen)) as client:
            await until(lambda: is_connected(found))
            places = await arrived(client, disk=1, gpu=1)
            assert [pin.site_id for pin in places.pins] == ["one"]
            await client.models_unpin("m", "one")
            assert (await client.models_where("m")).pins == ()
            with pytest.raises(NotFoundError, match="not pinned"):
                await client.models_unpin("m", "one")


async def test_what_cannot_be_is_refused_by_field(tmp_path: Path) -> None:
    async with orchestrator(tmp_path, **quick()) as running, AsyncClient(str(running.address)) as client:
        await running.add_models(model("m", weights_gb=2))
        await running.apply(*SITES)
        with pytest.raises(NotFoundError, match="no model"):
            await client.models_where("none")
        with pytest.raises(InputError, match=r"no site can hold m \(4: the site is not connected\)"):
            await client.models_push("m", sites=2)
        with pytest.raises(StateError, match="the site is not connected"):
            await client.models_pin("m", "one")
        with pytest.raises(NotFoundError, match="no site"):
            await client.models_pin("m", "nowhere")
