"""Weights from site to site: two real agents as processes, an orchestrator, and an origin store that goes away and comes back."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs the worker extra")
pytest.importorskip("diffusers", reason="needs the worker extra")
pytest.importorskip("aiohttp", reason="peers are read over http")

from agents.engine.errors import BadWeightsError
from agents.engine.manifest import verify_folder
from agents.weights import WeightsCache
from atoll.client import AsyncClient
from atoll.client.errors import StateError
from atoll.model.address import Address
from atoll.model.ids import ModelId, SiteId
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import Tier
from atoll.model.site import LinkSpec, SiteConnection, SiteSpec
from atoll.packaged import load_packaged
from orchestrator.core.placement.policy import Policy
from orchestrator.parts import Catalogue
from tests.integration.ray_site import build_origin, free_port_block
from tests.integration.running_orchestrator import orchestrator
from tests.integration.test_agent_programs import AGENT, end, start

# A start of Ray, where many share two cores.
WAIT_S = 150.0
HAS, WANTS = SiteId("has"), SiteId("wants")


def _agent(folder: Path, address: Address, site: SiteId, host: int, **flags: Any) -> subprocess.Popen[str]:
    return start(
        AGENT,
        site=site,
        orchestrator=address,
        state_dir=folder / site,
        cache_dir=folder / f"{site}-cache",
        cache_bytes=10**9,
        node_ip=f"127.0.1.{host}",
        port_base=free_port_block(),
        use_gpus="false",
        end_work="true",
        peer_token_file=folder / "token",
        log_format="json",
        **flags,
    )


def _sites(port: int) -> tuple[SiteSpec, SiteSpec]:
    """One that serves, and one to which the origin store is far."""
    has, wants = (SiteSpec(site_id=name, region="here", wan_bytes_per_s=10**9, origin_bytes_per_s=10**6) for name in (HAS, WANTS))
    return replace(has, weights_url=f"http://127.0.0.1:{port}"), wants


async def _connected(client: AsyncClient, process: subprocess.Popen[str], site: SiteId) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            view = await client.sites_get(site)
            if view.connection is SiteConnection.CONNECTED and view.runtime is not None:
                return
            assert process.poll() is None, process.communicate()[0]
            await asyncio.sleep(0.1)


async def _pinned(client: AsyncClient, model: ModelSpec, site: SiteId) -> None:
    """The model is on a disk of the site, because somebody wants it there."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await client.models_pin(model.model_id, site, tier=Tier.DISK, reason="test")
                break
            except StateError:  # connected, but it has not said yet what it has
                await asyncio.sleep(0.1)
        while True:
            places = await client.models_where(model.model_id)
            if any(copy.site_id == site and copy.tier is Tier.DISK and copy.copies for copy in places.copies):
                return
            await asyncio.sleep(0.1)


def _folder(folder: Path, site: SiteId, model: ModelSpec) -> Path:
    return WeightsCache(folder / f"{site}-cache", quota_bytes=10**9).folder_of(model.model_id, model.weights_digest)


@pytest.mark.slow
@pytest.mark.timeout(420)  # two starts of Ray, each up to a minute and a half where many share two cores
async def test_a_site_fetches_from_its_peer_and_the_origin_store_heals_what_is_corrupt(tmp_path: Path, free_port: int) -> None:
    (tmp_path / "token").write_text("a-secret-of-the-whole-fleet\n")
    models = build_origin(tmp_path)
    image, other = models[ModelId("tiny-image")], next(one for name, one in sorted(models.items()) if name != "tiny-image")
    origin, away = tmp_path / "origin", tmp_path / "away"
    urls = {"origin_url": origin.as_uri(), "artifacts_url": (tmp_path / "artifacts").as_uri()}
    async with orchestrator(tmp_path / "fleet", policy=Policy(), catalogue=Catalogue(gpus=load_packaged().gpus), **urls) as running:
        await running.add_models(image, other)
        await running.apply(*_sites(free_port), links=(LinkSpec(src=HAS, dst=WANTS, rtt_us=100, bytes_per_s=10**9),))
        processes = {
            HAS: _agent(tmp_path, running.address, HAS, 31, weights_listen=f"127.0.0.1:{free_port}"),
            WANTS: _agent(tmp_path, running.address, WANTS, 32),
        }
        async with AsyncClient(str(running.address)) as client:
            for site, process in processes.items():
                await _connected(client, process, site)
            for model in (image, other):
                await _pinned(client, model, HAS)

            origin.rename(away)
            await _pinned(client, image, WANTS)
            assert verify_folder(_folder(tmp_path, WANTS, image)).digest == image.weights_digest

            away.rename(origin)
            (damaged, *_) = sorted(_folder(tmp_path, HAS, other).rglob("*.safetensors"))
            data = bytearray(damaged.read_bytes())
            data[-1] ^= 1
            damaged.write_bytes(data)
            with pytest.raises(BadWeightsError):
                verify_folder(_folder(tmp_path, HAS, other))
            await _pinned(client, other, WANTS)
            assert verify_folder(_folder(tmp_path, WANTS, other)).digest == other.weights_digest
        said = {site: (await end(process, signal.SIGTERM))[1] for site, process in processes.items()}
    for site in processes:
        mark = hashlib.sha256(os.fsencode(tmp_path / site / "ray")).hexdigest()[:10]
        shutil.rmtree(f"/tmp/atoll-{mark}", ignore_errors=True)
    (given_up,) = [line for line in said[WANTS].splitlines() if "peer_given_up" in line]
    assert str(other.model_id) in given_up and "which the manifest says" in given_up and origin.as_uri() in given_up
    assert "a-secret-of" not in said[HAS] + said[WANTS]
