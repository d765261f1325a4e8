"""A slot's process as Ray makes an actor of it, here without Ray: what it promises whether or not an agent listens."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import pytest
from PIL import Image

os.environ.setdefault("OMP_NUM_THREADS", "1")
pytest.importorskip("torch", reason="needs the worker extra")
pytest.importorskip("diffusers", reason="needs the worker extra")

import torch

from agents.core.events import (
    AttemptAdvanced,
    AttemptErrored,
    AttemptFinished,
    AttemptHalted,
    ReplicaAdapted,
    ReplicaAdaptFailed,
    ReplicaEvicted,
    ReplicaLoaded,
    ReplicaLoadFailed,
)
from agents.core.outputs import AdaptReplica, RunAttempt
from agents.engine.encode import PictureFacts, read_metadata
from agents.engine.manifest import verify_folder
from agents.engine.request import AdapterFile
from agents.engine.starter_adapters import build_starter_adapters
from agents.engine.starters import StarterModel, build_starters
from agents.results import ArtifactStore
from agents.runtime.attempt_files import AttemptFiles
from agents.runtime.execution import Execution
from agents.runtime.slot_actor import SlotActor
from agents.runtime.slot_state import CodeHeld, Notice, SlotOptions
from atoll.model.attempt import AttemptState, FailureKind
from atoll.model.compiled import form_of
from atoll.model.errors import StateError
from atoll.model.ids import AdapterId, NodeId, PoolId, SlotRef
from atoll.model.job import InputRef
from atoll.model.modelspec import AdapterUse, ModelSpec
from atoll.model.shape import Shape
from tests.integration.ray_site import WAIT_S, key_of, order_of, square

N = TypeVar("N", bound=Notice)
SLOT = SlotRef(pool_id=PoolId("cpu"), node_id=NodeId("cpu-0"), index=0)


@dataclass
class Slot:
    """The actor and what it told a listener that asks for all of it."""

    actor: SlotActor
    model: ModelSpec
    folder: Path
    artifacts_url: str
    heard: list[Notice] = field(default_factory=list)
    seq: int = 0

    async def listen(self) -> None:
        self.seq, notices = await self.actor.poll(self.seq, WAIT_S)
        self.heard.extend(notices)

    async def hear(self, kind: type[N], wanted: Callable[[N], bool] = lambda _: True) -> N:
        async with asyncio.timeout(WAIT_S):
            while True:
                for notice in self.heard:
                    if isinstance(notice, kind) and wanted(notice):
                        return notice
                await self.listen()

    async def run(self, job: str, *, steps: int = 2, stop_after_ms: int = 60_000, **spec: Any) -> RunAttempt:
        order = order_of(SLOT, key_of(job), self.model, shape=square(64, steps), stop_after_ms=stop_after_ms, **spec)
        await self.actor.run(order, self.artifacts_url)
        return order


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSpec, Path]:
    (starter,) = build_starters(tmp_path_factory.mktemp("slot"), only=("tiny-image",))
    return starter.spec, starter.folder


def _options(folder: Path, **changes: Any) -> SlotOptions:
    options = SlotOptions(slot=SLOT, work_dir=folder / "work", cache_dir=folder / "cache", cache_bytes=10**9, stuck_grace_s=0.2)
    return replace(options, **changes)


@pytest.fixture
async def slot(model: tuple[ModelSpec, Path], tmp_path: Path) -> AsyncIterator[Slot]:
    actor = SlotActor(_options(tmp_path))
    slot = Slot(actor=actor, model=model[0], folder=model[1], artifacts_url=(tmp_path / "artifacts").as_uri())
    await actor.load(slot.model, str(slot.folder))
    await slot.hear(ReplicaLoaded)
    yield slot
    state = await actor.attach()
    if state.running is not None:
        await actor.stop(state.running)
        await slot.hear(AttemptHalted)
    actor._thread.shutdown()


async def test_the_same_order_twice_is_one_execution_with_one_end(slot: Slot, tmp_path: Path) -> None:
    order = await slot.run("twice", steps=20)
    await slot.actor.run(order, slot.artifacts_url)
    finished = await slot.hear(AttemptFinished)
    slot.heard.clear()
    await slot.actor.run(order, slot.artifacts_url)
    assert await slot.hear(AttemptFinished) == finished
    log = AttemptFiles(tmp_path / "work").tail(order.key, 1000)
    assert sum("step 1/" in line for line in log) == 1


async def test_an_end_is_kept_for_the_next_agent_until_it_is_forgotten(slot: Slot) -> None:
    order = await slot.run("kept")
    finished = await slot.hear(AttemptFinished)
    state = await slot.actor.attach()
    assert (state.running, state.ended) == (None, finished)
    await slot.actor.forget(key_of("another"))
    assert (await slot.actor.attach()).ended == finished
    await slot.actor.forget(order.key)
    assert (await slot.actor.attach()).ended is None


async def test_progress_that_nobody_hears_is_not_hoarded(slot: Slot) -> None:
    await slot.run("unheard", steps=200)
    async with asyncio.timeout(WAIT_S):
        await asyncio.wait({*slot.actor._tasks})
    seq, notices = await slot.actor.poll(slot.seq, 0)
    assert seq > 200
    assert [type(notice) for notice in notices] == [AttemptAdvanced, AttemptFinished]
    assert await slot.actor.poll(seq, 0) == (seq, ())


async def test_one_attempt_at_a_time(slot: Slot) -> None:
    await slot.run("first", steps=500)
    with pytest.raises(StateError, match="executes first/1: second/1 must wait"):
        await slot.run("second")
    await slot.actor.stop(key_of("first"))
    await slot.hear(AttemptHalted)
    await slot.run("second")
    await slot.hear(AttemptFinished, lambda end: end.key == key_of("second"))


async def test_a_stop_that_overtakes_its_order_wins(slot: Slot) -> None:
    await slot.actor.stop(key_of("early"))
    await slot.hear(AttemptHalted)
    await slot.run("early")
    assert (await slot.actor.attach()).running is None
    assert ArtifactStore(slot.artifacts_url).result(key_of("early")) is None


async def test_renewals_keep_an_attempt_alive_and_their_end_ends_it(slot: Slot) -> None:
    await slot.run("renewed", steps=900, stop_after_ms=300)
    for _ in range(8):
        await slot.listen()
        await slot.actor.renew((key_of("renewed"), key_of("another")))
    await slot.actor.renew((key_of("another"),))
    errored = await slot.hear(AttemptErrored)
    assert errored.failure.kind is FailureKind.LOST
    assert errored.times.run_us > 300_000
    assert ArtifactStore(slot.artifacts_url).result(key_of("renewed")) is None


async def test_a_step_that_never_ends_costs_the_process(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    exits: list[int] = []
    monkeypatch.setattr("agents.runtime.slot_actor.os._exit", exits.append)
    hangs = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang(self: object, loaded: object) -> AttemptHalted:
        asyncio.run_coroutine_threadsafe(hangs.wait(), loop).result()
        return AttemptHalted(key=key_of("stuck"))

    monkeypatch.setattr(Execution, "run", hang)
    await slot.run("stuck", stop_after_ms=1)
    guard = max(slot.actor._tasks, key=lambda task: "_guard" in repr(task))
    async with asyncio.timeout(WAIT_S):
        await asyncio.wait({guard})
    assert exits == [70]
    hangs.set()
    await slot.hear(AttemptHalted)


async def test_what_a_real_site_does_not_know_is_refused(slot: Slot) -> None:
    await slot.run("masked", inputs=(InputRef(name="mask", digest="sha256:" + "0" * 64, bytes=1),))
    errored = await slot.hear(AttemptErrored)
    assert errored.failure.kind is FailureKind.BAD_INPUT
    assert "inputs is mask" in errored.failure.message


async def pixels_of(slot: Slot, job: str, *uses: tuple[str, int], **spec: Any) -> str:
    used = tuple(AdapterUse(adapter_id=AdapterId(name), scale_milli=scale) for name, scale in uses)
    await slot.run(job, adapters=used, **spec)
    finished = await slot.hear(AttemptFinished, lambda end: end.key == key_of(job))
    return finished.manifest.artifacts[0].pixel_digest


async def test_adapters_are_put_on_the_replica_used_and_taken_off_again(slot: Slot, tmp_path: Path) -> None:
    starter = StarterModel(spec=slot.model, folder=slot.folder, manifest=verify_folder(slot.folder), reused=True)
    ink, wash = build_starter_adapters(tmp_path, (starter,))
    files = tuple(AdapterFile(adapter_id=one.spec.adapter_id, path=one.path, digest=one.spec.weights_digest) for one in (ink, wash))
    plain = await pixels_of(slot, "before")
    order = AdaptReplica(slot=SLOT, model_id=slot.model.model_id, adapters=(ink.spec, wash.spec))
    await slot.actor.adapt(order, files)
    adapted = await slot.hear(ReplicaAdapted)
    assert adapted.adapters == ("tiny-ink", "tiny-wash")
    assert adapted.memory_bytes > slot.model.resident_bytes
    with_ink = await pixels_of(slot, "ink", ("tiny-ink", 1_000))
    assert await pixels_of(slot, "half", ("tiny-ink", 500)) not in (with_ink, plain)
    assert await pixels_of(slot, "again", ("tiny-ink", 1_000)) == with_ink != plain
    assert await pixels_of(slot, "plain") == plain
    (fact,) = (await slot.actor.attach()).replicas
    assert (fact.adapters, fact.memory_bytes) == (adapted.adapters, adapted.memory_bytes)
    await slot.actor.adapt(replace(order, adapters=(), unload=adapted.adapters), ())
    assert (await slot.hear(ReplicaAdapted, lambda event: not event.adapters)).memory_bytes == slot.model.resident_bytes
    assert await pixels_of(slot, "after") == plain


async def test_an_adapter_whose_file_is_damaged_or_gone_fails_and_the_replica_goes_on(slot: Slot, tmp_path: Path) -> None:
    starter = StarterModel(spec=slot.model, folder=slot.folder, manifest=verify_folder(slot.folder), reused=True)
    ink, wash = build_starter_adapters(tmp_path, (starter,))
    ink.path.write_bytes(ink.path.read_bytes()[:-1] + b"x")
    wash.path.unlink()
    for one in (ink, wash):
        file = AdapterFile(adapter_id=one.spec.adapter_id, path=one.path, digest=one.spec.weights_digest)
        slot.heard.clear()
        await slot.actor.adapt(AdaptReplica(slot=SLOT, model_id=slot.model.model_id, adapters=(one.spec,)), (file,))
        failed = await slot.hear(ReplicaAdaptFailed)
        assert (failed.failure.kind, failed.adapters, failed.memory_bytes) == (FailureKind.BAD_WEIGHTS, (), slot.model.resident_bytes)
    await slot.run("on")
    await slot.hear(AttemptFinished)


def _input(slot: Slot, data: bytes) -> InputRef:
    """As the orchestrator keeps what clients upload."""
    digits = sha256(data).hexdigest()
    path = Path(slot.artifacts_url.removeprefix("file://")) / "sha256" / digits[:2] / digits
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return InputRef(name="image", digest=f"sha256:{digits}", bytes=len(data))


async def test_a_generation_begins_with_an_uploaded_image(slot: Slot) -> None:
    red = BytesIO()
    Image.new("RGB", (96, 64), "red").save(red, format="PNG")
    first = _input(slot, red.getvalue())
    plain = await pixels_of(slot, "plain", steps=4)
    found = [await pixels_of(slot, f"red-{number}", steps=4, inputs=(first,), strength_milli=600) for number in (1, 2)]
    assert found[0] == found[1] != plain
    assert await pixels_of(slot, "less", steps=4, inputs=(first,), strength_milli=300) != found[0]
    assert await pixels_of(slot, "plain-again", steps=4) == plain
    finished = await slot.hear(AttemptFinished, lambda end: end.key == key_of("red-1"))
    path = Path(finished.manifest.artifacts[0].uri.removeprefix("file://"))
    facts = PictureFacts.from_text(read_metadata(path))
    assert (facts.image, facts.strength) == (first.digest, 0.6)


async def test_an_image_that_is_none_or_gone_is_the_jobs_own_failure(slot: Slot) -> None:
    broken = _input(slot, b"\x89PNG\r\n\x1a\n and then nothing")
    gone = replace(broken, digest="sha256:" + "0" * 64)
    for job, one, words in (("broken", broken, "a whole PNG or JPEG"), ("gone", gone, "is not in the artifact store")):
        await slot.run(job, inputs=(one,), strength_milli=500)
        errored = await slot.hear(AttemptErrored, lambda end, job=job: end.key == key_of(job))  # type: ignore[misc]
        assert errored.failure.kind is FailureKind.BAD_INPUT
        assert words in errored.failure.message


async def test_a_result_that_cannot_be_stored_says_where(slot: Slot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.runtime.execution._STORE_PAUSES_S", (0.01,))
    (tmp_path / "file").write_text("no folder")
    slot.artifacts_url = (tmp_path / "file" / "store").as_uri()
    order = await slot.run("homeless")
    errored = await slot.hear(AttemptErrored)
    assert errored.failure.kind is FailureKind.UPLOAD_FAILED
    assert str(tmp_path / "file") in errored.failure.message
    log = AttemptFiles(tmp_path / "work").tail(order.key, 1000)
    assert any("again in 0.01 s" in line for line in log)


async def test_other_weights_under_the_same_name_do_not_run(slot: Slot) -> None:
    slot.model = replace(slot.model, weights_digest="sha256:" + "0" * 64)
    await slot.run("stale")
    errored = await slot.hear(AttemptErrored)
    assert errored.failure.kind is FailureKind.LOAD_FAILED
    assert "other weights of it are resident" in errored.failure.message
    await slot.hear(ReplicaEvicted)
    assert (await slot.actor.attach()).replicas == ()


async def test_a_folder_with_a_pickle_is_never_loaded(slot: Slot, tmp_path: Path) -> None:
    await slot.actor.evict(slot.model.model_id)
    folder = tmp_path / "model"
    shutil.copytree(slot.folder, folder)
    (folder / "unet" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    await slot.actor.load(slot.model, str(folder))
    failed = await slot.hear(ReplicaLoadFailed)
    assert failed.failure.kind is FailureKind.BAD_WEIGHTS
    assert "pytorch_model.bin" in failed.failure.message


async def test_code_is_compiled_once_in_a_fleet_that_shares_it(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Two sites' slots, each with a cache of its own; the first makes the code and the second finds it in the artifact store."""
    (starter,) = build_starters(tmp_path_factory.mktemp("film"), only=("tiny-video",))
    model = replace(starter.spec, compiled=True)
    shape = Shape(width=32, height=32, frames=5, steps=2, cfg_passes=2)
    artifacts_url = (tmp_path / "artifacts").as_uri()
    form, times, misses = form_of(model, shape), [], []
    torch.compiler.reset()
    for name in ("first", "second"):
        slot = Slot(
            actor=SlotActor(_options(tmp_path / name, share_compiled=True)), model=model, folder=starter.folder, artifacts_url=artifacts_url
        )
        assert (await slot.actor.attach()).forms == ()
        await slot.actor.load(model, str(starter.folder))
        await slot.hear(ReplicaLoaded)
        order = replace(order_of(SLOT, key_of(name), model, shape=shape, stop_after_ms=600_000), form=form)
        await slot.actor.run(order, artifacts_url)
        assert (await slot.hear(AttemptAdvanced)).state is AttemptState.COMPILING
        assert (await slot.hear(CodeHeld)).forms == (form,) == (await slot.actor.attach()).forms
        times.append((await slot.hear(AttemptFinished)).times)
        slot.heard.clear()
        await slot.actor.run(replace(order, key=key_of(f"{name}-again")), artifacts_url)
        again = await slot.hear(AttemptFinished)
        assert again.times.compile_us == -1, "it is at hand"
        slot.actor._thread.shutdown()
        misses.append(torch._dynamo.utils.counters["inductor"]["fxgraph_cache_miss"])
        torch.compiler.reset()  # what this process remembers: the next slot is another's
        log = AttemptFiles(tmp_path / name / "work").tail(order.key, 1000)
        assert any("comes from the artifact store" in line for line in log) is (name == "second")
    assert all(one.compile_us > 0 and one.run_us > 0 for one in times)
    assert misses[0] > 0 and misses[1] in (0, misses[0]), "the second made no graph of its own"
    made, taken = (sorted(path.name for path in (tmp_path / name / "cache").rglob("*.main.so")) for name in ("first", "second"))
    assert made and taken == made


async def test_a_compiled_model_is_refused_by_a_host_without_a_compiler(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    await slot.actor.evict(slot.model.model_id)
    await slot.actor.load(replace(slot.model, compiled=True), str(slot.folder))
    failed = await slot.hear(ReplicaLoadFailed)
    assert failed.failure.kind is FailureKind.LOAD_FAILED and "needs a C++ compiler" in failed.failure.message
