"""A real site: one Ray cluster for this module, found again by a new runtime in each test, as a restarted agent would."""

from __future__ import annotations

import asyncio
import os
import stat
import time
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
    FetchFailed,
    RatesMeasured,
    ReplicaEvicted,
    ReplicaLoadFailed,
    SlotLost,
    SlotReady,
    WeightsDeleted,
)
from agents.core.outputs import DeleteWeights, EvictReplica, FetchWeights, LoadReplica
from agents.engine import encode
from agents.engine.manifest import write_manifest
from agents.results import ArtifactStore, CommittedResult
from agents.runtime.cluster import ClusterError
from agents.runtime.ray import RayConfig
from atoll.model.attempt import AttemptState, FailureKind, ResultManifest
from atoll.model.errors import FieldError, StateError
from atoll.model.ids import AttemptKey, ModelId
from atoll.model.modelspec import Modality, ModelSpec
from atoll.model.replica import ReplicaState
from tests.integration.ray_agent import Agent
from tests.integration.ray_site import (
    WAIT_S,
    Site,
    build_origin,
    config_of,
    free_port_block,
    key_of,
    processes_of,
    square,
    welcome_of,
)

pytestmark = pytest.mark.slow
# Long enough to be interrupted on any machine, short enough to wait for: some 3 s.
LONG = square(128, 250)


@dataclass(frozen=True)
class Place:
    folder: Path
    config: RayConfig
    image: ModelSpec
    video: ModelSpec
    temp_dir: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("ray")
    temp_dir = Path(f"/tmp/at-{os.getpid()}")
    models = build_origin(folder)
    config = config_of(folder, temp_dir, site="alpha", host=7, port_base=free_port_block())
    yield Place(folder=folder, config=config, image=models["tiny-image"], video=models["tiny-video"], temp_dir=temp_dir)
    if (config.work_dir / "ray-head.json").exists():
        asyncio.run(_end(config, folder))
    if temp_dir.exists():  # left by a cluster that died rather than was ended
        temp_dir.rmdir()


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


@pytest.fixture
async def site(place: Place) -> AsyncIterator[Site]:
    async with attached(place) as site:
        yield site


def slot_process(site: Site) -> psutil.Process:
    return psutil.Process(site.runtime._keepers[site.slot].pid)


def file_of(finished: AttemptFinished) -> Path:
    (artifact,) = finished.manifest.artifacts
    return Path(artifact.uri.removeprefix("file://"))


def wait_for_result(place: Place, key: AttemptKey) -> None:
    store = ArtifactStore((place.folder / "artifacts").as_uri())
    deadline_s = time.monotonic() + WAIT_S
    while store.result(key) is None:
        assert time.monotonic() < deadline_s, f"{key} never committed a result"
        time.sleep(0.05)


async def test_an_image_is_made_step_by_step_stored_and_logged(site: Site, place: Place) -> None:
    loaded = await site.load(place.image)
    assert loaded.memory_bytes == place.image.resident_bytes
    measured = await site.heard(RatesMeasured)
    assert measured.rates.origin_bytes_per_s > 0
    key = key_of("image")
    site.run(key, place.image, shape=square(64, 40))
    finished = await site.heard(AttemptFinished)
    told = [event for event in site.events if isinstance(event, AttemptAdvanced)]
    steps = [event.steps_done for event in told if event.state is AttemptState.RUNNING]
    assert steps == sorted(set(steps)) and steps[0] == 0 and steps[-1] == 40
    assert len(steps) > 10  # each step is told; only a listener that is busy hears of several at once
    assert told[-1].state is AttemptState.UPLOADING
    assert finished.times.run_us > 0 and finished.times.upload_us > 0
    assert encode.pixel_digest(file_of(finished)) == finished.manifest.artifacts[0].pixel_digest
    facts = encode.PictureFacts.from_text(encode.read_metadata(file_of(finished)))
    assert (facts.prompt, facts.seed, facts.job, facts.model_digest) == ("a lighthouse", 7, "image", place.image.weights_digest)
    log = await site.runtime.logs(key, 1000)
    assert "request req-1" in log[0]
    assert sum("step " in line for line in log) == 40
    assert "succeeded" in log[-1]
    assert await site.runtime.logs(key, 2) == log[-2:]
    assert await site.runtime.logs(key_of("another"), 10) == ()
    with pytest.raises(FieldError, match=r"job is '\.\./x'"):
        await site.runtime.logs(key_of("../x"), 10)


async def test_a_video_is_made_beside_the_resident_image_model(site: Site, place: Place) -> None:
    await site.load(place.video)
    site.run(key_of("video"), place.video, shape=square(64, 2, frames=5))
    finished = await site.heard(AttemptFinished)
    assert finished.manifest.artifacts[0].media_type == "video/mp4"
    assert encode.PictureFacts.from_text(encode.read_metadata(file_of(finished))).frames == 5


async def test_a_stopped_attempt_leaves_the_slot_usable(site: Site, place: Place) -> None:
    await site.load(place.image)
    site.run(key_of("stopped"), place.image, shape=LONG)
    await site.progressed(key_of("stopped"), 2)
    site.stop(key_of("stopped"))
    await site.heard(AttemptHalted, lambda event: event.key == key_of("stopped"))
    assert max(event.steps_done for event in site.events if isinstance(event, AttemptAdvanced)) < LONG.steps
    assert ArtifactStore((place.folder / "artifacts").as_uri()).result(key_of("stopped")) is None
    site.run(key_of("next"), place.image, shape=square(64, 2))
    await site.heard(AttemptFinished, lambda event: event.key == key_of("next"))
    assert any("stopped after step" in line for line in await site.runtime.logs(key_of("stopped"), 5))


async def test_what_a_pipeline_cannot_make_is_the_jobs_fault(site: Site, place: Place) -> None:
    await site.load(place.image)
    site.run(key_of("odd"), place.image, shape=square(63, 2))
    errored = await site.heard(AttemptErrored)
    assert errored.failure.kind is FailureKind.BAD_INPUT
    assert "shape is '63x63': expected sides that are multiples of 8, such as 64x64" in errored.failure.message


async def test_a_killed_slot_is_told_and_made_again_and_the_next_agent_hears_whether_it_has_generated(place: Place) -> None:
    async with attached(place) as site:
        await site.load(place.image)
        site.run(key_of("struck"), place.image, shape=LONG)
        await site.progressed(key_of("struck"), 2)
        slot_process(site).kill()
        lost = await site.heard(SlotLost)
        assert lost.slot == site.slot
        await site.heard(SlotReady)
        assert not any(isinstance(event, AttemptFinished) for event in site.events)
    async with attached(place) as site:
        assert site.started is not None and site.started.slots[0].fresh
        await site.load(place.image)
        site.run(key_of("struck", 2), place.image, shape=square(64, 2))
        await site.heard(AttemptFinished, lambda event: event.key == key_of("struck", 2))
    async with attached(place) as site:
        assert site.started is not None and not site.started.slots[0].fresh


async def test_a_committed_manifest_counts_though_the_slot_died(site: Site, place: Place) -> None:
    await site.load(place.image)
    key = key_of("committed")
    site.run(key, place.image, shape=LONG)
    await site.progressed(key, 1)
    manifest = ResultManifest(key=key, artifacts=(), seed=7, simulated=False)
    ArtifactStore((place.folder / "artifacts").as_uri()).commit(CommittedResult(manifest=manifest, committed_us=1))
    slot_process(site).kill()
    await site.heard(SlotLost)
    ends = [event for event in site.events if isinstance(event, AttemptFinished | SlotLost)]
    assert [type(event) for event in ends] == [AttemptFinished, SlotLost]
    assert isinstance(ends[0], AttemptFinished) and ends[0].manifest == manifest
    await site.heard(SlotReady)


async def test_damaged_weights_are_refused_and_given_up(site: Site, place: Place) -> None:
    await site.load(place.video)
    site.runtime.perform(EvictReplica(slot=site.slot, model_id=place.video.model_id))
    await site.heard(ReplicaEvicted)
    (folder,) = (place.config.cache_dir / "tiny-video").iterdir()
    (folder / "vae" / "evil.pkl").write_bytes(b"\x80\x04.")
    site.runtime.perform(LoadReplica(slot=site.slot, model=place.video))
    failed = await site.heard(ReplicaLoadFailed)
    assert failed.failure.kind is FailureKind.BAD_WEIGHTS
    assert "evil.pkl" in failed.failure.message
    await site.heard(WeightsDeleted, lambda event: event.model_id == place.video.model_id)
    site.events.clear()
    await site.load(place.video)


async def test_an_origin_with_a_pickle_is_refused(site: Site, place: Place) -> None:
    origin = place.folder / "origin" / "evil"
    origin.mkdir()
    (origin / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    good = write_manifest(origin, model_id=ModelId("evil"), modality=Modality.IMAGE)
    manifest = origin / "atoll-manifest.json"
    manifest.write_text(manifest.read_text().replace("model_index.json", "model.pkl"))
    evil = replace(place.image, model_id=ModelId("evil"), origin_path="evil", weights_digest=good.digest)
    site.runtime.perform(FetchWeights(node_id=site.slot.node_id, model=evil))
    failed = await site.heard(FetchFailed)
    assert failed.failure.kind is FailureKind.BAD_WEIGHTS
    assert "model.pkl" in failed.failure.message
    for path, wrong in (("../origin/evil", "origin_path"), ("", "origin_path")):
        site.events.clear()
        site.runtime.perform(FetchWeights(node_id=site.slot.node_id, model=replace(evil, origin_path=path)))
        assert wrong in (await site.heard(FetchFailed)).failure.message


async def test_deleted_weights_are_gone_and_a_load_without_them_says_so(site: Site, place: Place) -> None:
    await site.load(place.video)
    site.runtime.perform(DeleteWeights(node_id=site.slot.node_id, model_id=place.video.model_id))
    await site.heard(WeightsDeleted)
    assert not (place.config.cache_dir / "tiny-video").exists()
    site.runtime.perform(EvictReplica(slot=site.slot, model_id=place.video.model_id))
    await site.heard(ReplicaEvicted)
    site.runtime.perform(LoadReplica(slot=site.slot, model=place.video))
    assert "not on this disk" in (await site.heard(ReplicaLoadFailed)).failure.message


async def test_a_real_site_refuses_a_fast_clock_and_a_second_agent(site: Site, place: Place) -> None:
    with pytest.raises(StateError, match="time_scale is 20: expected 1"):
        site.runtime.welcome(welcome_of(place.folder, time_scale_milli=20_000))
    second = Site(place.config)
    with pytest.raises(StateError, match="another agent works on"):
        await second.runtime.start(second.hear)


async def test_an_attempt_survives_its_agent_and_is_found(place: Place) -> None:
    agent = Agent(place.folder, place.config)
    agent.hear("started")
    agent.tell("load")
    agent.hear("loaded")
    agent.tell("run orphan 400 60000")
    agent.hear("AttemptAdvanced")
    agent.kill()
    async with attached(place) as site:
        assert site.started is not None
        (slot,) = site.started.slots
        assert slot.running == key_of("orphan")
        assert [fact.state for fact in slot.replicas if fact.model_id == "tiny-image"] == [ReplicaState.BUSY]
        assert ("cpu-0", "tiny-image", place.image.weights_digest) in site.started.disk_models
        finished = await site.heard(AttemptFinished)
        assert finished.key == key_of("orphan")
        assert encode.pixel_digest(file_of(finished)) == finished.manifest.artifacts[0].pixel_digest


async def test_what_ends_while_no_agent_watches_is_told_to_the_next(place: Place) -> None:
    agent = Agent(place.folder, place.config)
    agent.hear("started")
    agent.tell("load")
    agent.hear("loaded")
    agent.tell("run unwatched 2 60000")
    agent.hear("AttemptAdvanced")
    agent.kill()
    wait_for_result(place, key_of("unwatched"))
    async with attached(place) as site:
        assert site.started is not None
        if site.started.slots[0].running is None:
            assert key_of("unwatched") in [manifest.key for manifest in site.started.finished]
        else:  # committed, and its slot has not taken notice yet
            await site.heard(AttemptFinished, lambda event: event.key == key_of("unwatched"))


async def test_an_attempt_that_nobody_renews_ends_in_its_slot(place: Place) -> None:
    async with attached(place) as site:
        await site.load(place.image)
        site.run(key_of("unrenewed"), place.image, shape=LONG, stop_after_ms=400)
        await site.progressed(key_of("unrenewed"), 1)
    async with attached(place) as site:
        errored = await site.heard(AttemptErrored)
        assert (errored.key, errored.failure.kind) == (key_of("unrenewed"), FailureKind.LOST)
        assert "nobody renewed unrenewed/1 for 0.4 s" in errored.failure.message


async def test_a_taken_port_is_named(place: Place, tmp_path: Path) -> None:
    config = replace(place.config, work_dir=tmp_path / "other", port_base=place.config.port_base)
    site = Site(config)
    if not (place.config.work_dir / "ray-head.json").exists():
        async with attached(place):
            pass  # alone, without the tests before: the cluster that takes the port
    with pytest.raises(ClusterError, match=f"port {config.port_base} .port. is taken.*choose another port_base"):
        await site.runtime.start(site.hear)


async def test_closing_for_good_leaves_nothing(place: Place) -> None:
    async with attached(place) as site:
        processes = processes_of(place.config)
        token = place.config.work_dir / "ray-token"
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert stat.S_IMODE(place.temp_dir.stat().st_mode) == 0o700
        assert len(processes.members()) > 3
        assert token.read_text() not in " ".join(word for process in processes.members() for word in process.cmdline())
        site.runtime.perform(LoadReplica(slot=site.slot, model=place.image))
        await site.runtime.close(keep_work=False)
        assert processes.members() == []
        assert not place.temp_dir.exists()
