"""Blocks of gangs: the index says what a walk over all blocks would, whatever happened before, and its steps cost what evictions do."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.model.ids import AttemptKey, JobId, ModelId, NodeId, Ordinal, PoolId, SiteId, SlotRef
from atoll.model.replica import ReplicaState, Tier
from atoll.model.residency import Pin
from atoll.model.site import SiteRecord
from orchestrator.core.placement.blocks import Blocks, Members
from orchestrator.core.placement.column import Column, free_bytes, is_free
from orchestrator.core.placement.eviction import Prices, Wishes
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.rows import FORBIDDEN_US, VICTIMS, Room
from orchestrator.core.state import Node, Pool, Replica, ReplicaKey, Site, Slot
from tests.unit.fleet_of_machines import GB, GPUS, model, pool, site

MODELS = {ModelId(name): model(name, size) for name, size in (("m0", 5), ("m1", 9), ("m2", 14), ("m3", 20))}
PINNED, SITE = ModelId("m3"), SiteId("a")
SOMEBODY = AttemptKey(job_id=JobId("j"), ordinal=Ordinal(1))


def _prices(rates: dict[ModelId, int]) -> Prices:
    pins = {(PINNED, SITE): Pin(model_id=PINNED, site_id=SITE, tier=Tier.GPU, actor="t")}
    wishes = Wishes(rate_per_hour_milli=lambda name: rates[name], busy_eighths=Counter(), pins=pins, pushes={})
    return Prices(Policy(), MODELS, wishes)


def _column(nodes: int) -> Column:
    spec = pool("p", nodes=nodes, gpus=8)
    slots = [
        [
            Slot(ref=SlotRef(pool_id=PoolId("p"), node_id=NodeId(f"p-{node}"), index=gpu), node_index=node, index=gpu, memory_bytes=40 * GB)
            for gpu in range(8)
        ]
        for node in range(nodes)
    ]
    there = Pool(
        site_id=SITE,
        spec=spec,
        gpu=GPUS[spec.gpu_type],
        nodes=[Node(node_id=NodeId(f"p-{number}"), slots=own) for number, own in enumerate(slots)],
    )
    column = Column(index=0, site=Site(record=SiteRecord(spec=site("a", spec))), pool=there, depth=2)
    column.node_free = [0] * nodes
    return column


def _change(slot: Slot, size: int, chance: random.Random) -> None:
    """The slot is another from now on. Replicas of gangs come to all slots of a block, or to none."""
    slot.ready = chance.random() < 0.9
    slot.last_used_us, slot.busy_until_us = chance.randrange(5), chance.randrange(20)
    slot.attempts = [SOMEBODY] if chance.random() < 0.3 else []
    slot.claimed_until_us = chance.choice([0, 0, 0, 30])
    slot.replicas = {}
    for name in chance.sample(sorted(MODELS), chance.randrange(4)):
        key = ReplicaKey(name, chance.choice([1, size]))
        if free_bytes(slot) >= MODELS[name].resident_bytes:
            slot.replicas[key] = Replica(
                model_id=name, gang_size=key.gang_size, memory_bytes=MODELS[name].resident_bytes, state=ReplicaState.WARM,
                last_used_us=chance.randrange(9),
            )  # fmt: skip


def _all(column: Column, size: int) -> list[Members]:
    """Every block whose slots work."""
    found = [tuple(node.slots[first : first + size]) for node in column.pool.nodes for first in range(0, len(node.slots), size)]
    return [slots for slots in found if all(slot.ready for slot in slots)]


def _is_free(slots: Members) -> bool:
    return all(is_free(slot) for slot in slots)


def _until_us(slots: Members) -> int:
    return max(slot.free_from_us for slot in slots)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([2, 4, 8]), st.integers(1, 5), st.integers(1, 45))
def test_the_index_says_what_a_walk_over_all_blocks_would(seed: int, size: int, nodes: int, need_gb: int) -> None:
    chance, column = random.Random(seed), _column(nodes)
    rates = {name: chance.randrange(100_000) for name in MODELS}
    prices, need = _prices(rates), need_gb * GB
    blocks = Blocks(column, size, prices, {})
    slots = [slot for node in column.pool.nodes for slot in node.slots]
    for _ in range(6):
        for slot in chance.sample(slots, chance.randrange(1, len(slots))):
            _change(slot, size, chance)
            blocks.touch(slot)
        column.node_free = [sum(is_free(slot) for slot in node.slots) for node in column.pool.nodes]
        assert blocks.told() == Blocks(column, size, prices, {}).told()
        free = [one for one in _all(column, size) if _is_free(one)]
        busy = [one for one in _all(column, size) if not _is_free(one)]
        assert blocks.free_count == len(free)
        first = blocks.soonest()
        assert (first is None) == (not busy) and (first is None or _until_us(first) == min(map(_until_us, busy)))
        assert [_until_us(one) for one in blocks.in_turn(3)] == sorted(map(_until_us, busy))[:3]
        taken = blocks.to_load_in(need, None)
        assert (taken is None) == (not free)
        if taken is not None:
            assert _is_free(taken)
            fits = [one for one in free if all(free_bytes(slot) >= need for slot in one)]
            assert all(free_bytes(slot) >= need for slot in taken) or not fits
            if not any(blocks.price_us(one, need) < FORBIDDEN_US for one in free):
                assert blocks.price_us(taken, need) >= FORBIDDEN_US
        for name in MODELS:
            whole = [one for one in _all(column, size) if all(ReplicaKey(name, size) in slot.replicas for slot in one)]
            ready = blocks.ready(name)
            assert (ready is None) == (not whole)
            assert ready is None or _is_free(ready) or not any(map(_is_free, whole))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([2, 4, 8]), st.integers(1, 60))
def test_the_steps_of_a_line_cost_what_would_leave_the_block(seed: int, size: int, need_gb: int) -> None:
    """One node and one block: what the tables reckon is what evicting slot by slot costs."""
    chance, column = random.Random(seed), _column(1)
    blocks = Blocks(column, size, _prices({name: chance.randrange(100_000) for name in MODELS}), {})
    for slot in column.pool.nodes[0].slots:
        _change(slot, size, chance)
        slot.ready, slot.attempts, slot.claimed_until_us = slot.index < size, [], 0
        blocks.touch(slot)
    blocks.refresh()
    column.node_free = [size]
    line, (slots,) = blocks.line(), _all(column, size)
    kept = line[Room.LEAST] == line[Room.VICTIM] == 0 and any(key.model_id == PINNED for slot in slots for key in slot.replicas)
    least, first = (Room.KEPT_LEAST, Room.KEPT_VICTIM) if kept else (Room.LEAST, Room.VICTIM)
    short, price_us, steps = need_gb * GB - line[least], 0, 0
    while short > 0 and steps < VICTIMS:
        short, price_us, steps = short - line[first + 2 * steps], price_us + line[first + 2 * steps + 1], steps + 1
    told_us = min(FORBIDDEN_US if short > 0 else price_us, FORBIDDEN_US)
    owed_us = blocks.price_us(slots, need_gb * GB)
    assert told_us == owed_us or (steps == VICTIMS and told_us > owed_us)
    assert blocks.line_of(0) == line
