"""The twin of a site: shares its link, keeps to its disk and its slots' memory, says that it is one, and stops when told or forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import TypeVar

import pytest

from agents.core.commands import RuntimeCommand
from agents.core.events import (
    AgentEvent,
    AttemptAdvanced,
    AttemptErrored,
    AttemptFinished,
    AttemptHalted,
    CodeChanged,
    FetchFailed,
    NodeMeasured,
    ReplicaEvicted,
    ReplicaLoaded,
    ReplicaLoadFailed,
    WeightsDeleted,
    WeightsFetched,
)
from agents.core.outputs import DeleteWeights, EvictReplica, FetchWeights, LoadReplica, RenewAttempts, RunAttempt, StopAttempt
from agents.runtime.twin import TwinRuntime
from agents.twin.fair_link import FairLink
from atoll.model.attempt import AttemptState, FailureKind
from atoll.model.compiled import needed_form
from atoll.model.errors import FieldError
from atoll.model.ids import FleetId, ModelId, PoolId, SlotRef, Term
from atoll.model.report import Welcome
from atoll.physics.hidden import HiddenWorld
from tests.unit.agent_core_site import key
from tests.unit.fleet_of_machines import GB, GPUS, model, pool, site, spec

E = TypeVar("E", bound=AgentEvent)
POOL = pool("p")
NODE = POOL.node_id(0)
SLOT = SlotRef(pool_id=PoolId("p"), node_id=NODE, index=0)
PATIENCE_S = 20.0


class Heard:
    """A twin and what it said. Fleet time runs 10,000 times as fast, so that hours pass in a test."""

    def __init__(self, runtime: TwinRuntime, scale: int = 10_000) -> None:
        self.runtime = runtime
        self.events: list[AgentEvent] = []
        self.scale = scale

    async def start(self) -> Heard:
        await self.runtime.start(self.events.append)
        self.rescale(self.scale)
        return self

    def rescale(self, scale: int) -> None:
        """Fleet time from now on."""
        welcome = Welcome(
            fleet_id=FleetId("f"), term=Term(1), time_scale_milli=scale * 1_000, report_interval_ms=1, origin_url="", artifacts_url=""
        )
        self.runtime.welcome(welcome)

    async def perform(self, command: RuntimeCommand, wanted: type[E]) -> E:
        """Perform, and wait for an answer of this kind."""
        self.runtime.perform(command)
        return await self.next(wanted)

    async def next(self, wanted: type[E]) -> E:
        """The next event of this kind; it and those before it are taken."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for position, event in enumerate(self.events):
                    if isinstance(event, wanted):
                        del self.events[: position + 1]
                        return event
                await asyncio.sleep(0.001)


def run(job: str, steps: int = 20, stop_after_ms: int = 10**9) -> RunAttempt:
    """An attempt on model `m`."""
    wanted = spec(simulated=True)
    shape = replace(wanted.shape, steps=steps)
    return RunAttempt(
        slot=SLOT, key=key(job), spec=replace(wanted, shape=shape), model=model("m"), stop_after_ms=stop_after_ms, request_id=f"r-{job}"
    )


@pytest.fixture
async def heard() -> AsyncIterator[Heard]:
    runtime = TwinRuntime(site("s", POOL), gpus=GPUS, hidden=HiddenWorld(1))
    yield await Heard(runtime).start()
    await runtime.close(keep_work=True)


async def test_an_attempt_is_fetched_loaded_and_executed_in_the_time_of_its_world(heard: Heard) -> None:
    fetched = await heard.perform(FetchWeights(node_id=NODE, model=model("m")), WeightsFetched)
    assert (fetched.bytes, fetched.weights_digest) == (10 * GB, model("m").weights_digest)
    measured = await heard.next(NodeMeasured)
    assert measured.disk_free_bytes == 1_990 * GB
    loaded = await heard.perform(LoadReplica(slot=SLOT, model=model("m")), ReplicaLoaded)
    assert loaded.memory_bytes == model("m").resident_bytes
    heard.runtime.perform(run("a"))
    assert (await heard.next(AttemptAdvanced)).state is AttemptState.RUNNING
    done = await heard.next(AttemptFinished)
    assert done.manifest.simulated
    assert [artifact.media_type for artifact in done.manifest.artifacts] == ["application/json"]
    wanted = run("a").spec
    truth = HiddenWorld(1).execution_us(model("m"), wanted.shape, GPUS[POOL.gpu_type], wanted.precision, site("s").site_id, "a/1")
    assert done.times.run_us == truth
    assert any("nothing is generated" in line for line in await heard.runtime.logs(key("a"), 10))
    assert await heard.runtime.logs(key("nobody"), 10) == ()


async def test_a_gang_is_loaded_in_each_slot_and_takes_the_time_of_a_gang(heard: Heard) -> None:
    members = [SLOT._replace(index=index) for index in range(2)]
    await heard.perform(FetchWeights(node_id=NODE, model=model("m")), WeightsFetched)
    for member in members:
        loaded = await heard.perform(LoadReplica(slot=member, model=model("m"), gang_size=2), ReplicaLoaded)
        assert (loaded.slot, loaded.gang_size, loaded.memory_bytes) == (member, 2, model("m").resident_bytes)
    alone = await heard.perform(LoadReplica(slot=SLOT, model=model("m")), ReplicaLoaded)
    assert alone.gang_size == 1, "beside its share of the gang's"
    command = run("g")
    heard.runtime.perform(replace(command, spec=replace(command.spec, gang_size=2)))
    done = await heard.next(AttemptFinished)
    heard.runtime.perform(run("g"))
    assert done.times.run_us < (await heard.next(AttemptFinished)).times.run_us
    assert any("on 2 " in line for line in await heard.runtime.logs(key("g"), 10))
    evicted = await heard.perform(EvictReplica(slot=members[1], model_id=model("m").model_id, gang_size=2), ReplicaEvicted)
    assert (evicted.slot, evicted.gang_size) == (members[1], 2)


async def test_the_first_generation_of_a_new_process_takes_longer_and_the_next_does_not(heard: Heard) -> None:
    world, wanted, where = HiddenWorld(1), run("a").spec, site("s").site_id
    heard.runtime.plant.take(NODE)
    heard.runtime.plant.give_back(NODE)
    for job, first_us in (("a", world.first_generation_us(where, "a/1")), ("b", 0)):
        heard.runtime.perform(run(job))
        ran_us = (await heard.next(AttemptFinished)).times.run_us
        alone_us = world.execution_us(model("m"), wanted.shape, GPUS[POOL.gpu_type], wanted.precision, where, f"{job}/1")
        assert ran_us == alone_us + first_us


def compiled_run(job: str, width: int = 1024, index: int = 0) -> RunAttempt:
    """An attempt on model `m`, compiled."""
    plain, one = run(job), replace(model("m"), compiled=True)
    shape = replace(plain.spec.shape, width=width)
    slot = SLOT._replace(index=index)
    return replace(plain, slot=slot, model=one, spec=replace(plain.spec, shape=shape), form=needed_form(one, shape, 1))


async def test_code_is_made_once_per_node_and_form_and_taken_over_by_each_replica(heard: Heard) -> None:
    world, gpu, where = HiddenWorld(1), GPUS[POOL.gpu_type], site("s").site_id
    one = compiled_run("a").model
    first, again, beside, other = (compiled_run("a"), compiled_run("b"), compiled_run("c", index=1), compiled_run("d", width=512))
    wanted = (
        (first, world.compile_us(one, gpu, where, "a/1")),
        (again, -1),
        (beside, world.artifact_load_us(one, gpu, where, "c/1")),
        (other, world.compile_us(one, gpu, where, "d/1")),
    )
    told: CodeChanged | None = None
    for command, compile_us in wanted:
        heard.runtime.perform(command)
        state = (await heard.next(AttemptAdvanced)).state
        assert state is (AttemptState.RUNNING if compile_us < 0 else AttemptState.COMPILING)
        if compile_us >= 0:
            told = await heard.next(CodeChanged)
            assert told.node_id == NODE and told.forms[0] == command.form
        done = await heard.next(AttemptFinished)
        assert done.times.compile_us == compile_us
        assert done.times.run_us == world.execution_us(one, command.spec.shape, gpu, command.spec.precision, where, str(command.key))
    assert told is not None and set(told.forms) == {first.form, other.form}
    await heard.perform(LoadReplica(slot=SLOT, model=one), ReplicaLoaded)
    await heard.perform(EvictReplica(slot=SLOT, model_id=one.model_id), ReplicaEvicted)
    heard.runtime.perform(compiled_run("e"))
    assert (await heard.next(AttemptFinished)).times.compile_us == world.artifact_load_us(one, gpu, where, "e/1"), "a new replica"


async def test_a_twin_that_is_stopped_while_it_compiles_has_the_code_and_no_result(heard: Heard) -> None:
    heard.rescale(100)
    heard.runtime.perform(compiled_run("a"))
    assert (await heard.next(AttemptAdvanced)).state is AttemptState.COMPILING
    heard.runtime.perform(StopAttempt(slot=SLOT, key=key("a")))
    await heard.next(CodeChanged)
    assert (await heard.next(AttemptHalted)).key == key("a")
    assert not [event for event in heard.events if isinstance(event, AttemptFinished)]


async def test_a_twin_stops_at_a_step_and_says_so(heard: Heard) -> None:
    heard.rescale(1)
    heard.runtime.perform(run("a", steps=1_000))
    await heard.next(AttemptAdvanced)
    heard.runtime.perform(StopAttempt(slot=SLOT, key=key("a")))
    assert (await heard.next(AttemptHalted)).key == key("a")
    heard.runtime.perform(StopAttempt(slot=SLOT, key=key("a")))
    assert not [event for event in heard.events if isinstance(event, AttemptFinished | AttemptErrored)]


async def test_work_that_nobody_renews_ends_by_itself(heard: Heard) -> None:
    heard.rescale(1)
    heard.runtime.plant.pace_us = 10_000
    heard.runtime.perform(run("forgotten", steps=1_000, stop_after_ms=300))
    await heard.next(AttemptAdvanced)
    heard.runtime.perform(replace(run("renewed", steps=1_000, stop_after_ms=300), slot=SLOT._replace(index=1)))

    async def renew() -> None:
        while True:
            heard.runtime.perform(RenewAttempts(keys=(key("renewed"),)))
            await asyncio.sleep(0.02)

    renewing = asyncio.create_task(renew())
    ended = await heard.next(AttemptErrored)
    renewing.cancel()
    assert (ended.key, ended.failure.kind) == (key("forgotten"), FailureKind.LOST)


async def test_a_full_disk_gives_up_what_is_not_in_memory_and_refuses_what_does_not_fit(heard: Heard) -> None:
    for name in ("m", "n"):
        await heard.perform(FetchWeights(node_id=NODE, model=model(name, 900)), WeightsFetched)
    await heard.perform(LoadReplica(slot=SLOT, model=replace(model("m", 900), resident_bytes=GB)), ReplicaLoaded)
    deleted = await heard.perform(FetchWeights(node_id=NODE, model=model("o", 800)), WeightsDeleted)
    assert deleted.model_id == "n"
    await heard.next(WeightsFetched)
    failed = await heard.perform(FetchWeights(node_id=NODE, model=model("p", 1_200)), FetchFailed)
    assert failed.failure.kind is FailureKind.DISK_FULL
    assert "1.20 TB" in failed.failure.message


async def test_a_slot_holds_no_more_than_its_memory(heard: Heard) -> None:
    await heard.perform(LoadReplica(slot=SLOT, model=model("m", 50)), ReplicaLoaded)
    failed = await heard.perform(LoadReplica(slot=SLOT, model=model("n", 40)), ReplicaLoadFailed)
    assert failed.failure.kind is FailureKind.OUT_OF_MEMORY
    await heard.perform(EvictReplica(slot=SLOT, model_id=ModelId("m")), ReplicaEvicted)
    await heard.perform(LoadReplica(slot=SLOT, model=model("n", 40)), ReplicaLoaded)


async def test_weights_are_deleted_when_told(heard: Heard) -> None:
    await heard.perform(FetchWeights(node_id=NODE, model=model("m")), WeightsFetched)
    await heard.perform(DeleteWeights(node_id=NODE, model_id=ModelId("m")), WeightsDeleted)
    assert (await heard.next(NodeMeasured)).disk_free_bytes == 2_000 * GB


async def test_nothing_is_said_after_the_end(heard: Heard) -> None:
    heard.runtime.perform(run("a"))
    await heard.runtime.close(keep_work=True)
    heard.events.clear()
    await asyncio.sleep(0.05)
    assert not heard.events


def test_an_unknown_gpu_type_is_named() -> None:
    with pytest.raises(FieldError, match=r"pool p\.gpu_type is 'H1000'"):
        TwinRuntime(site("s", pool("p", gpu="H1000")), gpus=GPUS, hidden=HiddenWorld(1))


# --- the shared link --------------------------------------------------------------------------------------------------------------


def _ends(*transfers: tuple[float, float] | tuple[float, float, float]) -> list[float]:
    """When transfers that begin at and take alone (s, s), with a share of the link at most, end, in order of their numbers."""
    link, ends = FairLink(), [0.0] * len(transfers)
    ended: list[int] = []
    waiting = sorted(range(len(transfers)), key=lambda number: transfers[number][0])
    while waiting or len(link):
        end = link.next_end()
        if waiting and (end is None or transfers[waiting[0]][0] <= end):
            number = waiting.pop(0)
            begin, work, *share = transfers[number]
            link.add(begin, work, partial(ended.append, number), share=share[0] if share else 1.0)
            continue
        assert end is not None
        for done in link.take_done(end):
            done()
        while ended:
            ends[ended.pop()] = end
    return ends


def test_a_transfer_alone_takes_its_own_time() -> None:
    assert _ends((1.0, 5.0)) == [6.0]


def test_transfers_share_the_link_equally() -> None:
    assert _ends((0.0, 4.0), (0.0, 4.0)) == pytest.approx([8.0, 8.0])
    assert _ends((0.0, 4.0), (0.0, 2.0)) == pytest.approx([6.0, 4.0])
    assert _ends((0.0, 4.0), (2.0, 1.0)) == pytest.approx([5.0, 4.0])


def test_what_one_cannot_use_of_the_link_is_for_the_others() -> None:
    assert _ends((0.0, 10.0, 0.1)) == [10.0]
    # A tenth for the one that its source holds back, which takes no longer than alone; nine tenths for the other.
    assert _ends((0.0, 10.0, 0.1), (0.0, 9.0)) == pytest.approx([10.0, 10.0])
    # A third of the link would do for the first, but there are four: it is one of four equals until two have ended.
    assert _ends((0.0, 3.0, 1 / 3), (0.0, 1.0), (0.0, 1.0), (0.0, 8.0)) == pytest.approx([4.0, 4.0, 4.0, 11.0])


def test_the_link_is_never_idle_while_there_is_work() -> None:
    works = [3.0, 1.0, 7.0, 2.0]
    assert max(_ends(*((0.5 * number, work) for number, work in enumerate(works)))) == pytest.approx(sum(works))
