"""A real disk and fetches that nobody waits for: they let nothing go, stop when told and go on later; what is pinned stays."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from agents.core.events import AgentEvent, FetchFailed, FetchYielded, WeightsDeleted, WeightsFetched
from agents.core.outputs import FetchWeights, PinWeights, YieldFetch
from agents.core.rates import Rates
from agents.runtime.node_weights import NodeWeights
from agents.weights import WeightsCache
from atoll.model.attempt import FailureKind
from atoll.model.ids import ModelId, NodeId
from atoll.model.modelspec import ModelSpec
from tests.unit.fleet_of_machines import model
from tests.unit.model_folders import make_model

NODE = NodeId("cpu-0")


class Disk:
    """A node's disk with room for two models, and what was told of it."""

    def __init__(self, tmp_path: Path) -> None:
        self.origin = tmp_path / "origin"
        self.told: list[AgentEvent] = []
        self.models: dict[str, ModelSpec] = {}
        for name in ("m", "n", "o"):
            manifest = make_model(self.origin / name, name)
            self.models[name] = replace(model(name), weights_digest=manifest.digest, weights_bytes=manifest.total_bytes)
        quota = 2 * self.models["m"].weights_bytes + 1_000
        self.cache = WeightsCache(tmp_path / "cache", quota_bytes=quota, reserve_bytes=0)
        self.weights = NodeWeights(self.cache, nodes=(NODE,), tell=self.told.append, rates=Rates(self.told.append))

    async def fetch(self, name: str, *, ahead: bool) -> AgentEvent:
        """The word that ended the fetch."""
        self.told.clear()
        await self.weights.fetch(FetchWeights(node_id=NODE, model=self.models[name], ahead=ahead), f"file://{self.origin}")
        return next(event for event in self.told if isinstance(event, WeightsFetched | FetchFailed | FetchYielded))


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Disk]:
    found = Disk(tmp_path)
    yield found
    await found.weights.close()


def held(disk: Disk) -> set[str]:
    return {entry.model_id for entry in disk.cache.entries()}


async def test_a_fetch_ahead_lets_nothing_go_and_one_that_is_waited_for_does(disk: Disk) -> None:
    assert isinstance(await disk.fetch("m", ahead=True), WeightsFetched)
    assert isinstance(await disk.fetch("n", ahead=True), WeightsFetched)
    failed = await disk.fetch("o", ahead=True)
    assert isinstance(failed, FetchFailed)
    assert failed.failure.kind is FailureKind.DISK_FULL
    assert held(disk) == {"m", "n"}
    assert isinstance(await disk.fetch("o", ahead=False), WeightsFetched)
    assert [event.model_id for event in disk.told if isinstance(event, WeightsDeleted)] == ["m"]


async def test_what_is_pinned_stays_when_the_disk_is_full(disk: Disk) -> None:
    for name in ("m", "n"):
        await disk.fetch(name, ahead=True)
    await disk.weights.perform(PinWeights(node_id=NODE, disk=((ModelId("m"), disk.models["m"].weights_digest),)))
    assert isinstance(await disk.fetch("o", ahead=False), WeightsFetched)
    assert held(disk) == {"m", "o"}


async def test_a_fetch_ahead_stops_when_told_and_a_later_one_ends_it(disk: Disk) -> None:
    go_on, begun = threading.Event(), threading.Event()
    real = disk.cache.fetch

    def slow(*args: object, **kwargs: object) -> object:
        begun.set()
        go_on.wait(30)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    disk.cache.fetch = slow  # type: ignore[method-assign,assignment]
    fetching = asyncio.create_task(disk.fetch("m", ahead=True))
    await asyncio.to_thread(begun.wait, 30)
    await disk.weights.perform(YieldFetch(node_id=NODE, model_id=ModelId("m")))
    assert isinstance(await fetching, FetchYielded)
    go_on.set()
    assert isinstance(await disk.fetch("m", ahead=False), WeightsFetched)
    await disk.weights.perform(YieldFetch(node_id=NODE, model_id=ModelId("m")))
    assert not [event for event in disk.told if isinstance(event, FetchYielded)], "nothing is on its way any more"
