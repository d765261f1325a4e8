"""Jobs on two slots from submit to picture: a real orchestrator, a real agent, Ray and diffusers; nobody in between is played."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest

pytest.importorskip("ray", reason="needs the worker extra")
pytest.importorskip("diffusers", reason="needs the worker extra")

import numpy as np
from PIL import Image

from agents.runtime.ray import RayRuntime
from atoll.model.errors import AtollError
from atoll.model.ids import SlotRef
from atoll.model.site import SiteSpec
from atoll.packaged import load_packaged
from atoll.v1 import types_pb2
from orchestrator.core.placement.policy import Policy
from orchestrator.parts import Catalogue
from tests.integration.ray_site import build_origin, config_of, free_port_block
from tests.integration.running_agent import agent
from tests.integration.running_orchestrator import Running, orchestrator

# A start of Ray and torch, where many share two cores.
WAIT_S = 150.0
# Products of other sizes are rounded otherwise; two of 255 levels are not to be seen.
LEVELS_OFF_MAX = 2
SUCCEEDED, FAILED = types_pb2.JOB_STATE_SUCCEEDED, types_pb2.JOB_STATE_FAILED


@asynccontextmanager
async def fleet(folder: Path, temp_dir: Path) -> AsyncIterator[tuple[Running, RayRuntime]]:
    """An orchestrator and one site with two CPU slots."""
    config = replace(config_of(folder, temp_dir, site="omega", host=11, port_base=free_port_block()), cpu_slots=2)
    image = build_origin(folder)["tiny-image"]
    fatal: asyncio.Future[AtollError] = asyncio.get_running_loop().create_future()
    urls = {"origin_url": (folder / "origin").as_uri(), "artifacts_url": (folder / "artifacts").as_uri()}
    async with orchestrator(folder / "fleet", policy=Policy(), catalogue=Catalogue(gpus=load_packaged().gpus), **urls) as running:
        await running.add_models(image)
        runtime = RayRuntime(config, on_fatal=fatal.set_result)
        await running.apply(
            SiteSpec(site_id=config.site_id, region="here", pools=runtime.pools, wan_bytes_per_s=10**8, origin_bytes_per_s=10**9)
        )
        async with agent(running.address, config.site_id, runtime):
            yield running, runtime
    await runtime.close(keep_work=False)


def shape(px: int, steps: int, batch: int = 1) -> types_pb2.Shape:
    return types_pb2.Shape(width=px, height=px, frames=1, steps=steps, cfg_passes=2, batch=batch)


async def submit(running: Running, **spec: Any) -> str:
    return await running.submit(**{"model_id": "tiny-image", "seed": 7, "shape": shape(64, 4), **spec})


async def reached(running: Running, job_id: str, *states: int) -> types_pb2.Job:
    """The job, once it is in one of these states."""
    async with asyncio.timeout(WAIT_S):
        while True:
            job = await running.get(job_id)
            if job.state in states:
                return job
            assert job.state not in (SUCCEEDED, FAILED), job
            await asyncio.sleep(0.05)


def pixels_of(job: types_pb2.Job) -> Any:
    (artifact,) = job.result.artifacts
    return np.asarray(Image.open(artifact.uri.removeprefix("file://"))).astype(int)


@pytest.mark.slow
@pytest.mark.timeout(420)  # two starts of torch, each up to a minute and a half where many share two cores
async def test_a_gang_from_submit_to_picture_and_from_a_dead_member_to_the_next_attempt(tmp_path: Path, short_path: Path) -> None:
    async with fleet(tmp_path, short_path / "r") as (running, runtime):
        alone = await reached(running, await submit(running), SUCCEEDED)
        together, again = [await reached(running, await submit(running, gang_size=2), SUCCEEDED) for _ in range(2)]
        assert together.attempts[0].slot.index == 0 and together.attempts[0].cold, "a replica of singles serves no gang"
        assert not again.attempts[0].cold
        assert int(np.abs(pixels_of(alone) - pixels_of(together)).max()) <= LEVELS_OFF_MAX
        assert again.result.artifacts[0].pixel_digest == together.result.artifacts[0].pixel_digest

        with pytest.raises(grpc.aio.AioRpcError) as odd:
            await submit(running, gang_size=2, guidance_milli=1_000)
        assert odd.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "gang_size is 2: expected 1: a gang shares the 1 row" in (odd.value.details() or "")

        waits = await submit(running, gang_size=4, shape=shape(64, 4, batch=2))
        struck = await submit(running, gang_size=2, shape=shape(128, 300))
        await reached(running, struck, types_pb2.JOB_STATE_RUNNING)
        (pool,) = runtime.pools
        member = SlotRef(pool_id=pool.pool_id, node_id=pool.node_id(0), index=1)
        psutil.Process(runtime._keepers[member].pid).kill()
        done = await reached(running, struck, SUCCEEDED)
        first, *others = done.attempts
        assert first.failure.kind == types_pb2.FAILURE_KIND_RUNTIME_LOST and others

        impossible = await running.get(waits)
        assert impossible.state == types_pb2.JOB_STATE_QUEUED
        reasons = {one.reason for one in impossible.deferral.rejections}
        assert reasons == {"gang_too_large"}
