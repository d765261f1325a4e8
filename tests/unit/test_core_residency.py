"""The slow loop, pins and pushes: what is wanted where, what never makes room, and what is remembered of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from atoll.model.ids import ModelId, SiteId
from atoll.model.replica import ReplicaState, Tier
from atoll.model.residency import Cause, Movement, PushPlan
from atoll.model.site import NodeSpec, SiteSpec
from orchestrator.core import events
from orchestrator.core.durable import Stored
from orchestrator.core.machine import new_machine, restore
from orchestrator.core.outputs import CopyWanted, DeletePin, DeletePush, Done, PutPin, PutPush, Refusal, RefusalCode
from orchestrator.core.placement.policy import Policy
from orchestrator.core.state import ReplicaKey
from tests.unit.fleet_of_machines import GB, GPUS, SECOND, Fleet, model, pool, site, spec

M = ModelId("m")
HOUR_S = 3_600
# A model that takes 60 GB: one fits into a GPU of 80.
LARGE = 60


def sites(count: int) -> tuple[SiteSpec, ...]:
    return tuple(site(name, pool(f"p{name}")) for name in "abcdefgh"[:count])


def fleet(count: int = 4, **changes: object) -> Fleet:
    return Fleet(*sites(count), models=(model("m"), model("n"), model("big", LARGE), model("huge", 500)), **changes)  # type: ignore[arg-type]


def ask(found: Fleet, model_id: str, per_minute: int, minutes: int) -> None:
    """Jobs at a steady rate; sites report, and attempts end at once."""
    for _ in range(per_minute * minutes):
        found.submit(spec(model_id))
        for name in found.agents:
            for key in list(found.agents[name].attempts):
                slot = found.agents[name].attempts[key].slot
                found.warm(name, slot.node_id, slot.index, model_id)
                found.agents[name].disk.add(model_id)
                found.end_attempt(name, key)
        found.wait(60 / per_minute, reporting=tuple(found.agents))


def wanted(found: Fleet, tier: Tier | None = None) -> list[tuple[str, str]]:
    """(site, model) of every wish."""
    return [
        (name, one.model_id) for name, agent in sorted(found.agents.items()) for one in agent.wanted.values() if tier in (None, one.tier)
    ]


# --- pushes -------------------------------------------------------------------------------------------------------------------


def test_a_push_brings_weights_to_sites_and_warms_some_of_them() -> None:
    found = fleet()
    plan = found.machine.plan_push(M, 4, 2, found.now_us)
    assert isinstance(plan, PushPlan)
    assert [step.warm for step in plan.steps] == [True, True, False, False]
    assert all(step.bytes == 10 * GB and step.fetch_us == 10 * SECOND for step in plan.steps)
    assert found.ask(events.ModelPushed, actor="t", reason="launch", model_id="m", sites=4, warm=2) == Done(
        changed=tuple(step.site_id for step in plan.steps)
    )
    assert len(wanted(found, Tier.GPU)) == 2
    assert len(wanted(found, Tier.DISK)) == 2
    assert {name for name, _ in wanted(found)} == {"a", "b", "c", "d"}
    assert [record for step in found.steps for record in step.records if isinstance(record, PutPush)]


def test_the_first_job_of_a_pushed_model_is_warm() -> None:
    found = fleet()
    found.ask(events.ModelPushed, actor="t", reason="", model_id="m", sites=4, warm=2)
    for name in "abcd":
        found.bring(name)
    found.submit(spec("m"))
    (job,) = [job for job in found.jobs.values() if job.attempts]
    assert not job.attempts[0].cold


def test_regions_take_turns_before_any_gets_a_second_copy() -> None:
    near = [replace(site(name, pool(f"p{name}"), origin_gbs=5), region="near") for name in "abc"]
    found = Fleet(*near, site("z", pool("pz")), models=(model("m"),))
    plan = found.machine.plan_push(M, 2, 0, found.now_us)
    assert isinstance(plan, PushPlan)
    assert {step.region for step in plan.steps} == {"near", "region-z"}


@pytest.mark.parametrize(
    ("model_id", "count", "warm", "field", "told"),
    [
        ("m", 5, 0, "sites", "expected at most 4, since 4 sites can hold m"),
        ("huge", 1, 0, "sites", "sites is 1: no site can hold huge (4: the GPU is too small for the model at this shape)"),
        ("m", 0, 0, "sites", "expected a whole number from 1 to 256"),
        ("m", 2, 3, "warm", "expected 0 to 2"),
        ("none", 1, 0, "model_id", "no model 'none'"),
    ],
)
def test_a_push_that_cannot_be_says_how_many_can(model_id: str, count: int, warm: int, field: str, told: str) -> None:
    found = fleet()
    reply = found.ask(events.ModelPushed, actor="t", reason="", model_id=model_id, sites=count, warm=warm)
    assert isinstance(reply, Refusal)
    assert reply.field == field
    assert told in reply.message
    assert not wanted(found)


def test_a_push_is_over_after_a_day_and_survives_a_restart_until_then() -> None:
    found = fleet(policy=Policy(push_hold_ms=600_000))
    found.ask(events.ModelPushed, actor="t", reason="", model_id="m", sites=2, warm=1)
    push = found.machine.context.state.pushes[M]
    state = found.machine.context.state
    stored = Stored(
        fleet_id=state.fleet_id, term=state.term, fleet_time_us=found.now_us, last_audit_seq=state.audit_seq,
        models=tuple(state.models.values()), sites=tuple(one.record for one in state.sites.values()), pushes=(push,),
    )  # fmt: skip
    again = new_machine(stored, found.policy, GPUS)
    assert again.context.state.pushes == {M: push}
    assert again.next_deadline() is not None
    found.wait(700, reporting=tuple("abcd"))
    assert not found.machine.context.state.pushes
    assert not wanted(found)
    assert [record for step in found.steps for record in step.records if isinstance(record, DeletePush)]


# --- pins ---------------------------------------------------------------------------------------------------------------------


def pin(found: Fleet, model_id: str, name: str, tier: Tier = Tier.GPU) -> object:
    return found.ask(events.ModelPinned, actor="t", reason="r", model_id=model_id, site_id=name, tier=tier)


def test_a_pin_is_wanted_for_good_and_protects_until_it_is_taken_back() -> None:
    found = fleet()
    assert pin(found, "m", "b") == Done(changed=("b",))
    ctx = found.machine.context
    assert ctx.residency.pinned(ctx, M, SiteId("b"))
    assert ctx.residency.protected(ctx, M, SiteId("b"))
    assert not ctx.residency.protected(ctx, M, SiteId("a"))
    found.bring("b")
    found.wait(HOUR_S, reporting=tuple("abcd"))
    (one,) = found.agents[SiteId("b")].wanted.values()
    assert one.pin
    assert pin(found, "m", "b") == Done(), "it is so already"
    assert found.ask(events.ModelUnpinned, actor="t", reason="", model_id="m", site_id="b") == Done(changed=("b",))
    assert not wanted(found)
    assert not ctx.residency.pinned(ctx, M, SiteId("b"))
    kinds = [type(record) for step in found.steps for record in step.records if isinstance(record, PutPin | DeletePin)]
    assert kinds == [PutPin, DeletePin]


def test_a_pin_lets_idle_replicas_give_way_but_no_pinned_one() -> None:
    found = Fleet(site("a", pool("pa", gpus=1)), models=(model("big", LARGE), model("m", LARGE), model("n", LARGE)))
    found.warm("a", "pa-0", 0, "big", LARGE)
    found.report("a")
    assert isinstance(pin(found, "m", "a"), Done)
    (one,) = found.agents[SiteId("a")].wanted.values()
    assert one.evict == ("big",)
    found.bring("a")
    found.wait(60, reporting=("a",))
    (one,) = found.agents[SiteId("a")].wanted.values()
    assert one.evict == (), "nothing more gives way once it is there"
    refused = pin(found, "n", "a")
    assert isinstance(refused, Refusal)
    assert refused.code is RefusalCode.WRONG_STATE
    assert "no room" in refused.message


@pytest.mark.parametrize(
    ("model_id", "name", "code", "told"),
    [
        ("none", "a", RefusalCode.NOT_FOUND, "no model"),
        ("m", "nowhere", RefusalCode.NOT_FOUND, "no site"),
        ("huge", "a", RefusalCode.WRONG_STATE, "the GPU is too small for the model"),
    ],
)
def test_a_pin_that_cannot_be_is_refused_with_the_reason(model_id: str, name: str, code: RefusalCode, told: str) -> None:
    reply = pin(fleet(), model_id, name)
    assert isinstance(reply, Refusal)
    assert reply.code is code
    assert told in reply.message


def test_unpinning_what_is_not_pinned_is_refused() -> None:
    reply = fleet().ask(events.ModelUnpinned, actor="t", reason="", model_id="m", site_id="a")
    assert isinstance(reply, Refusal)
    assert "not pinned" in reply.message


def test_pins_and_pushes_go_with_their_model_and_their_site() -> None:
    found = fleet()
    pin(found, "m", "a")
    pin(found, "n", "a", Tier.DISK)
    found.ask(events.ModelPushed, actor="t", reason="", model_id="m", sites=3, warm=0)
    found.ask(events.ModelRemoved, actor="t", reason="r", model_id="m")
    assert set(found.machine.context.state.pins) == {("n", "a")}
    assert not found.machine.context.state.pushes
    found.ask(events.SiteRemoveRequested, actor="t", reason="r", site_id="a", force=True)
    assert not found.machine.context.state.pins


def test_what_is_wanted_is_told_again_after_a_reconnect() -> None:
    found = fleet()
    pin(found, "m", "b", Tier.DISK)
    found.connect(found.agents[SiteId("b")].site)
    assert wanted(found) == [("b", "m")]


# --- the loop -----------------------------------------------------------------------------------------------------------------


def test_a_model_in_demand_gets_as_many_copies_as_it_is_worth_and_no_more() -> None:
    found = fleet()
    ask(found, "m", per_minute=30, minutes=3)
    loop = found.machine.context.residency
    assert loop.target(M) >= 2
    assert loop.targets[M].sites_min == 2
    for _ in range(6):
        for name in found.agents:
            found.bring(name)
        found.wait(30, reporting=tuple(found.agents))
    ctx = found.machine.context
    copies = ctx.columns.prices.copies(M)
    assert copies >= 2
    held = {column.site.site_id for column in ctx.columns.columns if M in column.replicas}
    assert len(held) >= 2, "the most wanted are on two sites"
    before = (loop.target(M), copies)
    assert not wanted(found, Tier.GPU)
    assert before[1] <= max(loop.target(M), before[0]) + 2


def test_nothing_is_wanted_of_models_that_nobody_asks_for() -> None:
    found = fleet()
    ask(found, "m", per_minute=6, minutes=3)
    assert {model_id for _, model_id in wanted(found)} <= {"m"}
    assert found.machine.context.residency.target(ModelId("n")) == 0


def test_constant_demand_does_not_flap() -> None:
    found = fleet(2)
    ask(found, "m", per_minute=12, minutes=8)
    seen = []
    for _ in range(10):
        ask(found, "m", per_minute=12, minutes=1)
        seen.append(found.machine.context.residency.targets[M].gpu)
    changes = sum(1 for one, other in pairwise(seen) if one != other)
    assert changes <= 1, seen


def test_fetches_ahead_of_demand_keep_to_their_share_of_each_link() -> None:
    names = [f"m{number}" for number in range(8)]
    models = tuple(model(name) for name in names)
    found = Fleet(*sites(2), models=models, policy=Policy(prefetch_link_milli=100, spread_per_hour_milli=1_000))
    for _ in range(3):
        for name in names:
            ask(found, name, per_minute=6, minutes=1)
    begun: dict[str, list[int]] = {}
    for number, step in enumerate(found.steps):
        for decision in step.decisions:
            if isinstance(decision, CopyWanted) and decision.fetch_bytes:
                begun.setdefault(decision.site_id, []).append(found.recording[number][0])
    assert set(begun) == {"a", "b"} and all(len(instants) >= 3 for instants in begun.values()), begun
    gaps_us = [later - earlier for instants in begun.values() for earlier, later in pairwise(instants)]
    # A tenth of 1 GB/s: 10 GB each 100 s, and the next one with the loop's next round.
    assert min(gaps_us) >= 100 * SECOND
    assert min(gaps_us) <= 130 * SECOND


def test_a_flow_ahead_of_demand_is_seen_by_placing_and_ends_with_its_fetch() -> None:
    found = fleet(1)
    found.ask(events.ModelPushed, actor="t", reason="", model_id="m", sites=1, warm=0)
    assert found.machine.context.state.sites[SiteId("a")].fetches == 1
    found.bring("a")
    assert found.machine.context.state.sites[SiteId("a")].fetches == 0


def test_a_flow_that_the_site_does_not_see_is_no_flow() -> None:
    found = fleet(1)
    found.ask(events.ModelPushed, actor="t", reason="", model_id="m", sites=1, warm=0)
    found.report("a")
    assert found.machine.context.state.sites[SiteId("a")].fetches == 0, "it knows all that it should, and fetches nothing"


def test_the_last_warm_copy_of_a_model_in_demand_is_protected_and_never_makes_room() -> None:
    found = Fleet(site("a", pool("pa", gpus=1)), models=(model("m", LARGE), model("n", LARGE)))
    found.warm("a", "pa-0", 0, "m", LARGE)
    found.report("a")
    ctx = found.machine.context
    assert not ctx.residency.protected(ctx, M, SiteId("a")), "nobody asks for it"
    found.submit(spec("m"))
    (key,) = found.agents[SiteId("a")].attempts
    found.end_attempt("a", key)
    assert ctx.residency.protected(ctx, M, SiteId("a"))
    refused = found.ask(events.ModelPushed, actor="t", reason="", model_id="n", sites=1, warm=1)
    assert isinstance(refused, Refusal)
    assert refused.field == "warm"


def test_of_two_warm_copies_in_demand_only_one_makes_room() -> None:
    found = Fleet(*(site(name, pool(f"p{name}", gpus=1)) for name in "ab"), models=(model("m", LARGE), model("n", LARGE)))
    found.submit(spec("m"))
    for name in "ab":
        found.warm(name, f"p{name}-0", 0, "m", LARGE)
        for key in list(found.agents[SiteId(name)].attempts):
            found.end_attempt(name, key)
        found.report(name)
    refused = found.ask(events.ModelPushed, actor="t", reason="", model_id="n", sites=2, warm=2)
    assert isinstance(refused, Refusal)
    assert "expected at most 1, since 1 site can load n into an idle GPU now" in refused.message
    assert isinstance(found.ask(events.ModelPushed, actor="t", reason="", model_id="n", sites=2, warm=1), Done)
    again = pin(found, "n", "b" if ("a", "n") in wanted(found, Tier.GPU) else "a")
    assert isinstance(again, Refusal), "the other copy of m is the last, as soon as the first may go"


# --- what is remembered -------------------------------------------------------------------------------------------------------


def test_where_tells_copies_targets_and_why_they_came_and_left() -> None:
    found = Fleet(site("a", pool("pa", gpus=1)), models=(model("m", LARGE), model("n", LARGE)))
    found.submit(spec("m"))
    (key,) = found.agents[SiteId("a")].attempts
    found.end_attempt("a", key)
    found.warm("a", "pa-0", 0, "m", LARGE)
    found.agents[SiteId("a")].disk.add("m")
    found.report("a")
    found.wait(5, reporting=("a",))
    places = found.machine.model_places(M, found.now_us, events=True)
    tiers = {(copy.tier, copy.copies, copy.busy) for copy in places.copies}
    assert tiers == {(Tier.GPU, 1, 0), (Tier.DISK, 1, 0)}
    assert places.target.average_per_hour_milli[0] > 1_000
    came = [(event.tier, event.movement, event.cause, event.job_id) for event in places.events]
    assert (Tier.GPU, Movement.CAME, Cause.JOB, key.job_id) in came
    assert next(copy for copy in places.copies if copy.tier is Tier.GPU).age_us >= 5 * SECOND
    found.submit(spec("n"))
    (other,) = found.agents[SiteId("a")].attempts
    left = found.machine.model_places(M, found.now_us, events=True).events[-1]
    assert (left.movement, left.cause, left.job_id) == (Movement.LEFT, Cause.JOB, other.job_id)
    assert left.price_us > 0
    assert found.machine.model_places(M, found.now_us, events=False).events == ()


def test_a_fetch_ahead_shows_its_bytes_and_its_cause() -> None:
    found = fleet(1)
    found.ask(events.ModelPushed, actor="t", reason="", model_id="m", sites=1, warm=0)
    (copy,) = found.machine.model_places(M, found.now_us, events=False).copies
    assert (copy.tier, copy.copies, copy.wanted, copy.bytes_left) == (Tier.DISK, 0, Cause.PUSH, 10 * GB)


def test_a_replica_that_is_loading_is_not_there_yet() -> None:
    found = fleet(1)
    (name,) = found.agents
    found.agents[name].disk.add("m")
    found.report(name)
    found.ask(events.ModelPushed, actor="t", reason="", model_id="m", sites=1, warm=1)
    (held,) = found.machine.context.state.sites[name].pools.values()
    slot = held.nodes[0].slots[0]
    for state, copies in ((ReplicaState.LOADING, 0), (ReplicaState.WARM, 1)):
        found.warm(name, slot.ref.node_id, slot.index, "m")
        found.report(name)
        slot.replicas[ReplicaKey(M)].state = state
        (gpu,) = [copy for copy in found.machine.model_places(M, found.now_us, events=False).copies if copy.tier is Tier.GPU]
        assert (gpu.copies, gpu.wanted) == (copies, Cause.PUSH), state


def test_a_snapshot_amid_a_round_goes_on_equally() -> None:
    found = fleet()
    ask(found, "m", per_minute=12, minutes=2)
    pin(found, "n", "c")
    found.ask(events.ModelPushed, actor="t", reason="", model_id="big", sites=2, warm=1)
    snapshot = found.machine.snapshot()
    twin = restore(snapshot, found.policy, GPUS)
    assert twin.snapshot() == snapshot
    begun, taken = len(found.recording), len(found.steps)
    ask(found, "m", per_minute=12, minutes=2)
    for name in found.agents:
        found.bring(name)
    found.wait(120, reporting=tuple(found.agents))
    for (now_us, event), step in zip(found.recording[begun:], found.steps[taken:], strict=True):
        assert twin.handle(event, now_us) == step
    assert twin.snapshot() == found.machine.snapshot()


def test_a_disk_that_is_full_lets_the_least_wanted_go_for_an_operator() -> None:
    small = replace(pool("pa"), node=NodeSpec(host_memory_bytes=64 * GB, disk_cache_bytes=100 * GB, disk_bytes_per_s=GB))
    found = Fleet(site("a", small), models=(model("m"), model("n"), model("o")))
    found.agents[SiteId("a")].disk |= {"n", "o"}
    found.agents[SiteId("a")].disk_free_gb = 5
    found.report("a")
    found.ask(events.ModelPushed, actor="t", reason="", model_id="m", sites=1, warm=0)
    (one,) = found.agents[SiteId("a")].wanted.values()
    assert one.evict == ("n",)
