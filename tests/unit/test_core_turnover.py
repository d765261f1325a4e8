"""How long replicas stay, and how many of them are busy: prices of evictions follow what is measured, and a restored core agrees."""

from __future__ import annotations

from dataclasses import replace

from atoll.model.ids import ModelId, SiteId
from atoll.model.job import Constraints
from orchestrator.core import turnover
from orchestrator.core.machine import restore
from orchestrator.core.placement.columns import Columns
from orchestrator.core.placement.policy import Policy
from orchestrator.core.state import Replica, ReplicaKey
from tests.unit.fleet_of_machines import GPUS, SECOND, Fleet, model, pool, site, spec

# Of 80 GB: two of these do not fit beside each other.
_LARGE = 50


def _price_us(columns: Columns, site_id: str, model_id: str) -> int:
    column = next(column for column in columns.columns if column.site.site_id == site_id)
    held = [one for node in column.pool.nodes for slot in node.slots for one in slot.replicas.values() if one.model_id == model_id]
    return columns.prices.price_us(held[0], column.pool)


def _replica(columns: Columns, model_id: str) -> Replica:
    return next(
        one
        for column in columns.columns
        for node in column.pool.nodes
        for slot in node.slots
        for one in slot.replicas.values()
        if one.model_id == model_id
    )


def _fleet(gpus: int = 1) -> Fleet:
    """Two sites; an agent has each model on its disk, and loads what it is told to."""
    models = tuple(model(name, _LARGE) for name in ("m", "n", "o"))
    fleet = Fleet(*(site(name, pool("p", gpus=gpus)) for name in "ab"), models=models, policy=Policy(silent_after_ms=10**9, moves_max=0))
    for name in "ab":
        fleet.agents[SiteId(name)].disk = {"m", "n", "o"}
        fleet.report(name)
    return fleet


def _run(fleet: Fleet, name: str, model_id: str, stays_s: float) -> None:
    """A job of the model at a site, to its end; the model then stays for so long."""
    agent = fleet.agents[SiteId(name)]
    fleet.submit(spec(model_id, prompt=str(fleet.now_us), constraints=Constraints(sites=(SiteId(name),))))
    (key,) = agent.attempts
    agent.warm[("p-0", 0)] = {}
    fleet.warm(name, "p-0", 0, model_id, _LARGE)
    fleet.running(name, key)
    fleet.end_attempt(name, key)
    fleet.now_us += int(stays_s * SECOND)
    fleet.report(name)


def test_where_replicas_are_soon_turned_out_they_are_cheaper_to_turn_out_and_a_restored_core_agrees() -> None:
    fleet = _fleet()
    for _ in range(10):
        for model_id in ("m", "n"):
            _run(fleet, "a", model_id, 70)
    _run(fleet, "b", "n", 0)
    columns = fleet.machine.context.columns
    measured_ms = {column.site.site_id: column.pool.residence_ms for column in columns.columns}
    assert 60_000 <= measured_ms[SiteId("a")] < 200_000 and measured_ms[SiteId("b")] == 0, "nothing was turned out at b"
    assert _price_us(columns, "a", "n") * 2 < _price_us(columns, "b", "n")
    again = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
    assert again.snapshot() == fleet.machine.snapshot()
    for name in "ab":
        assert _price_us(again.context.columns, name, "n") == _price_us(columns, name, "n")
    decision = fleet.machine.quote_job(spec("o"), fleet.now_us)
    assert decision == again.quote_job(spec("o"), fleet.now_us), "slots are sorted by the prices as they are"


def test_where_they_stay_for_days_they_cost_more_and_one_short_stay_is_no_turnover() -> None:
    fleet = _fleet()
    _run(fleet, "b", "n", 0)
    before_us = _price_us(fleet.machine.context.columns, "b", "n")
    _run(fleet, "a", "m", 10)
    _run(fleet, "a", "n", 0)
    residence_ms = [column.pool.residence_ms for column in fleet.machine.context.columns.columns]
    assert residence_ms == [0, 0]
    fleet.now_us += 4 * 3_600 * SECOND
    _run(fleet, "a", "o", 0)
    columns = fleet.machine.context.columns
    assert columns.columns[0].pool.residence_ms > fleet.policy.residence_ms * 2
    assert before_us > 0 and columns.prices.price_us(_replica(columns, "o"), columns.columns[0].pool) > columns.prices.price_us(
        _replica(columns, "o"), columns.columns[1].pool
    )


def test_no_stay_is_shorter_than_a_minute() -> None:
    fleet = _fleet()
    for _ in range(40):
        for model_id in ("m", "n"):
            _run(fleet, "a", model_id, 1)
    assert fleet.machine.context.columns.columns[0].pool.residence_ms == 60_000


def test_a_copy_whose_sisters_are_at_work_is_missed_more_than_one_with_idle_ones() -> None:
    fleets = {}
    for busy in (0, 3):
        fleet = fleets[busy] = _fleet(gpus=4)
        for gpu in range(4):
            fleet.warm("a", "p-0", gpu, "m", _LARGE)
        fleet.report("a")
        fleet.submit(*(spec("m", prompt=str(number), shape=replace(spec().shape, steps=1_000)) for number in range(3)))
        keys = list(fleet.agents[SiteId("a")].attempts)
        assert len(keys) == 3
        for key in keys:
            if busy:
                fleet.running("a", key)
            else:
                fleet.end_attempt("a", key)
        fleet.wait(40, reporting=("a",))
    told = {busy: fleet.machine.context.residency.busy_eighths.get(ModelId("m"), 0) for busy, fleet in fleets.items()}
    assert told == {0: 0, 3: 8}
    prices = {busy: _price_us(fleet.machine.context.columns, "a", "m") for busy, fleet in fleets.items()}
    assert prices[3] > 3 * prices[0] > 0
    work = fleets[3]
    again = restore(work.machine.snapshot(), work.policy, GPUS)
    assert again.snapshot() == work.machine.snapshot() and _price_us(again.context.columns, "a", "m") == prices[3]


def test_a_gang_that_makes_room_is_one_stay_however_many_slots_it_held() -> None:
    """Its shares left four slots at one moment: smoothed, that is as much news as one replica that left one slot."""
    stays_us = {}
    for size in (1, 4):
        fleet = _fleet(gpus=4)
        if size == 1:
            fleet.warm("a", "p-0", 0, "m", _LARGE)
        else:
            fleet.warm_gang("a", "p-0", 0, size, "m", _LARGE)
        fleet.report("a")
        fleet.now_us += 100 * SECOND
        column = fleet.machine.context.columns.columns[0]
        gone = [
            one
            for node in column.pool.nodes
            for slot in node.slots
            for one in turnover.take_out(slot, [ModelId("m")], ReplicaKey(ModelId("other")))
        ]
        turnover.left(fleet.machine.context, column, gone)
        stays_us[size] = column.pool.stay_us
    assert stays_us[4] == stays_us[1] > 0


def test_a_gang_at_work_is_one_busy_copy_of_two() -> None:
    fleet = _fleet(gpus=4)
    for first in (0, 2):
        fleet.warm_gang("a", "p-0", first, 2, "m", _LARGE)
    fleet.report("a")
    fleet.submit(spec("m", gang_size=2, shape=replace(spec().shape, steps=1_000)))
    (key,) = fleet.agents[SiteId("a")].attempts
    fleet.running("a", key)
    fleet.wait(40, reporting=("a",))
    busy = fleet.machine.context.residency.busy_eighths
    assert busy.get(ModelId("m")) == 8, "one of two is at work, so the other is as good as the last"


def test_stays_of_no_time_at_all_never_make_it_forget_that_any_were_measured() -> None:
    fleet = _fleet()
    fleet.warm("a", "p-0", 0, "m", _LARGE)
    fleet.report("a")
    column = fleet.machine.context.columns.columns[0]
    replica = _replica(fleet.machine.context.columns, "m")
    replica.warm_us = fleet.machine.context.now_us
    for _ in range(400):
        turnover.left(fleet.machine.context, column, [replica])
    assert column.pool.residence_ms == 60_000 and 0 < column.pool.stay_us < SECOND
