"""Gangs at a real site: two slots of a Ray cluster make one picture together, and neither is held when the other is gone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

pytest.importorskip("ray", reason="needs the worker extra")
pytest.importorskip("diffusers", reason="needs the worker extra")

from agents.core.events import (
    AttemptAdvanced,
    AttemptErrored,
    AttemptFinished,
    AttemptHalted,
    ReplicaLoaded,
    SlotLost,
    SlotReady,
    WeightsFetched,
)
from agents.core.outputs import FetchWeights, LoadReplica
from agents.engine import encode
from agents.runtime import ray_runs
from agents.runtime.ray import RayConfig
from atoll.model.attempt import FailureKind
from atoll.model.ids import AttemptKey, SlotRef
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import ReplicaState
from tests.integration.ray_site import Site, build_origin, config_of, free_port_block, key_of, order_of, square, welcome_of

pytestmark = pytest.mark.slow
# Long enough to be interrupted on any machine.
LONG = square(128, 250)
# A picture whose two guidance passes the members share.
SHORT = replace(square(64, 4), cfg_passes=2)


@dataclass(frozen=True)
class Place:
    folder: Path
    config: RayConfig
    image: ModelSpec


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("ray")
    temp_dir = Path(f"/tmp/atg-{os.getpid()}")
    models = build_origin(folder)
    config = replace(config_of(folder, temp_dir, site="gamma", host=9, port_base=free_port_block()), cpu_slots=2)
    yield Place(folder=folder, config=config, image=models["tiny-image"])
    asyncio.run(_end(config, folder))


async def _end(config: RayConfig, folder: Path) -> None:
    site = Site(config)
    await site.start(welcome_of(folder))
    await site.runtime.close(keep_work=False)


@asynccontextmanager
async def attached(place: Place) -> AsyncIterator[Site]:
    """An agent's runtime that goes and leaves the work."""
    site = Site(place.config)
    await site.start(welcome_of(place.folder))
    try:
        yield site
    finally:
        await site.runtime.close(keep_work=True)


def members_of(site: Site) -> tuple[SlotRef, SlotRef]:
    return site.slot, site.slot._replace(index=1)


def process_of(site: Site, slot: SlotRef) -> psutil.Process:
    return psutil.Process(site.runtime._keepers[slot].pid)


async def load(site: Site, model: ModelSpec) -> None:
    """As the core would, in each member."""
    site.runtime.perform(FetchWeights(node_id=site.slot.node_id, model=model))
    await site.heard(WeightsFetched)
    for slot in members_of(site):
        site.runtime.perform(LoadReplica(slot=slot, model=model, gang_size=2))
    for slot in members_of(site):
        loaded = await site.heard(ReplicaLoaded, lambda event, slot=slot: event.slot == slot)  # type: ignore[misc]
        assert loaded.gang_size == 2 and loaded.memory_bytes > 0


def run(site: Site, key: AttemptKey, model: ModelSpec, shape: object = SHORT) -> None:
    site.runtime.perform(order_of(site.slot, key, model, shape=shape, gang_size=2))  # type: ignore[arg-type]


def pixels_of(finished: AttemptFinished) -> str:
    (artifact,) = finished.manifest.artifacts
    return encode.pixel_digest(Path(artifact.uri.removeprefix("file://")))


def ends(site: Site) -> list[object]:
    return [event for event in site.events if isinstance(event, AttemptFinished | AttemptErrored | AttemptHalted)]


async def test_a_gang_makes_one_picture_and_it_is_the_same_each_time(place: Place) -> None:
    async with attached(place) as site:
        await load(site, place.image)
        digests = []
        for job in ("one", "two"):
            run(site, key_of(job), place.image)
            finished = await site.heard(AttemptFinished, lambda event, job=job: event.key == key_of(job))  # type: ignore[misc]
            digests.append(pixels_of(finished))
        assert digests[0] == digests[1]
        assert len(ends(site)) == 2, "one end for each attempt, however many members it has"
        steps = [event.steps_done for event in site.events if isinstance(event, AttemptAdvanced) and event.key == key_of("one")]
        assert steps == sorted(steps) and steps[-1] == 4
        log = await site.runtime.logs(key_of("one"), 100)
        assert any("member 1 of a gang of 2" in line for line in log)
        assert not list((place.config.work_dir / "gangs").iterdir()), "nothing is left where they met"


async def test_what_cannot_be_shared_is_refused_in_all_members_and_they_go_on(place: Place) -> None:
    async with attached(place) as site:
        await load(site, place.image)
        site.runtime.perform(order_of(site.slot, key_of("odd"), place.image, shape=SHORT, gang_size=2, guidance_milli=1_000))
        errored = await site.heard(AttemptErrored)
        assert errored.failure.kind is FailureKind.BAD_INPUT
        assert "gang_size is 2: expected 1: a gang shares the 1 row" in errored.failure.message
        run(site, key_of("even"), place.image)
        await site.heard(AttemptFinished)


async def test_a_gang_that_is_stopped_halts_once_and_frees_both(place: Place) -> None:
    async with attached(place) as site:
        await load(site, place.image)
        run(site, key_of("stopped"), place.image, LONG)
        await site.progressed(key_of("stopped"), 2)
        site.stop(key_of("stopped"))
        assert (await site.heard(AttemptHalted)).key == key_of("stopped")
        assert len(ends(site)) == 1
        run(site, key_of("after"), place.image)
        await site.heard(AttemptFinished)


@pytest.mark.parametrize("struck", [1, 0])
async def test_a_killed_member_ends_the_gang_and_frees_the_other(place: Place, struck: int) -> None:
    async with attached(place) as site:
        await load(site, place.image)
        job = key_of(f"struck-{struck}")
        run(site, job, place.image, LONG)
        await site.progressed(job, 2)
        process_of(site, members_of(site)[struck]).kill()
        lost = await site.heard(SlotLost)
        assert lost.slot == members_of(site)[struck]
        assert site.runtime._keepers[members_of(site)[1 - struck]].running is None, "nobody works on it any more"
        assert not [event for event in site.events if isinstance(event, AttemptFinished | AttemptHalted)]
        await site.heard(SlotReady)
        site.events.clear()
        await load(site, place.image)
        again = key_of(f"struck-{struck}", 2)
        run(site, again, place.image)
        assert (await site.heard(AttemptFinished)).key == again


async def test_a_member_that_hangs_is_ended_after_a_grace(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_runs, "STRAGGLER_S", 0.2)
    async with attached(place) as site:
        await load(site, place.image)
        run(site, key_of("hung"), place.image, LONG)
        await site.progressed(key_of("hung"), 2)
        lead, member = (process_of(site, slot) for slot in members_of(site))
        member.suspend()
        lead.kill()
        await site.heard(SlotLost, lambda event: event.slot == members_of(site)[0])
        await site.heard(SlotLost, lambda event: event.slot == members_of(site)[1])
        for slot in members_of(site):
            await site.heard(SlotReady, lambda event, slot=slot: event.slot == slot)  # type: ignore[misc]


async def test_a_gang_survives_its_agent_and_is_found_whole(place: Place) -> None:
    job = key_of("orphan")
    async with attached(place) as site:
        await load(site, place.image)
        run(site, job, place.image, LONG)
        await site.progressed(job, 2)
    async with attached(place) as site:
        assert site.started is not None
        assert [(slot.running, slot.gang_size) for slot in site.started.slots] == [(job, 2), (job, 2)]
        busy = [fact for slot in site.started.slots for fact in slot.replicas if fact.state is ReplicaState.BUSY]
        assert [(fact.model_id, fact.gang_size) for fact in busy] == [("tiny-image", 2)] * 2
        assert (await site.heard(AttemptFinished)).key == job


async def test_a_gang_that_lost_a_member_while_no_agent_watched_is_not_found_whole(place: Place) -> None:
    job = key_of("broken")
    async with attached(place) as site:
        await load(site, place.image)
        run(site, job, place.image, LONG)
        await site.progressed(job, 2)
        member = process_of(site, members_of(site)[1])
    member.kill()
    async with attached(place) as site:
        assert site.started is not None
        told = {slot.slot: slot.running for slot in site.started.slots}
        assert told[members_of(site)[1]] is None and told[members_of(site)[0]] in (job, None)
        assert job not in [manifest.key for manifest in site.started.finished]
        assert site.runtime._keepers[site.slot].running is None, "nobody works on it any more"
        site.events.clear()
        await load(site, place.image)
        run(site, key_of("broken", 2), place.image)
        assert (await site.heard(AttemptFinished)).key == key_of("broken", 2)
