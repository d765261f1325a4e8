"""Whatever is asked for, pushed, pinned and brought: nothing in demand loses its last warm copy to the loop; order decides nothing."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.model.ids import ModelId, SiteId
from atoll.model.replica import Tier
from orchestrator.core import events
from orchestrator.core.outputs import CopyWanted
from tests.unit.fleet_of_machines import SECOND, Fleet, model, pool, site, spec

_NAMES = "abcd"
_MODELS = ("m", "n", "o")
_ACTION = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(_MODELS), st.integers(1, 4)),
    st.tuples(st.just("end")),
    st.tuples(st.just("bring"), st.sampled_from(_NAMES)),
    st.tuples(st.just("wait"), st.sampled_from([5.0, 35.0, 120.0])),
    st.tuples(st.just("push"), st.sampled_from(_MODELS), st.integers(1, 4), st.integers(0, 2)),
    st.tuples(st.just("pin"), st.sampled_from(_MODELS), st.sampled_from(_NAMES), st.sampled_from([Tier.GPU, Tier.HOST, Tier.DISK])),
    st.tuples(st.just("unpin"), st.sampled_from(_MODELS), st.sampled_from(_NAMES)),
)


def _fleet(names: str) -> Fleet:
    # 60 GB each: one fits into a GPU, so that every copy is in another's way.
    return Fleet(*(site(name, pool(f"p{name}", gpus=1)) for name in names), models=tuple(model(name, 60) for name in _MODELS))


def _act(fleet: Fleet, action: tuple) -> None:  # type: ignore[type-arg]
    match action:
        case ("ask", model_id, count):
            fleet.submit(*(spec(model_id, prompt=str(number)) for number in range(count)))
        case ("end",):
            for name in _NAMES:
                agent = fleet.agents[SiteId(name)]
                for key in list(agent.attempts):
                    one = agent.attempts[key]
                    held = agent.warm.setdefault((one.slot.node_id, one.slot.index), {})
                    for victim in one.evict:
                        held.pop(victim, None)
                    held[one.spec.model_id] = 60 * 10**9
                    agent.disk.add(one.spec.model_id)
                    fleet.end_attempt(name, key)
                fleet.report(name)
        case ("bring", name):
            fleet.bring(name)
        case ("wait", seconds):
            fleet.wait(seconds, reporting=tuple(_NAMES))
        case ("push", model_id, sites, warm):
            fleet.ask(events.ModelPushed, actor="t", reason="", model_id=model_id, sites=sites, warm=warm)
        case ("pin", model_id, name, tier):
            fleet.ask(events.ModelPinned, actor="t", reason="", model_id=model_id, site_id=name, tier=tier)
        case ("unpin", model_id, name):
            fleet.ask(events.ModelUnpinned, actor="t", reason="", model_id=model_id, site_id=name)
        case _:
            raise AssertionError(action)


def _wishes(fleet: Fleet) -> list[tuple[object, ...]]:
    sites = fleet.machine.context.state.sites
    return sorted(
        (name, one.desired.model_id, one.desired.tier, one.desired.node_id, one.desired.index, one.cause)
        for name, found in sites.items()
        for one in found.wanted.values()
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_ACTION, max_size=25))
def test_no_model_in_demand_is_named_to_lose_its_last_warm_copy(actions: list[tuple]) -> None:  # type: ignore[type-arg]
    fleet = _fleet(_NAMES)
    ctx = fleet.machine.context
    named: Counter[ModelId] = Counter()
    pinned_ends: dict[str, int] = {}
    for action in actions:
        _act(fleet, action)
        for model_id in ctx.making_room:
            if ctx.making_room[model_id] > named[model_id]:
                wanted = ctx.demand.asked_for(model_id) and ctx.demand.rate_per_hour_milli(model_id) >= fleet.policy.protect_per_hour_milli
                left = ctx.columns.prices.copies(model_id) - ctx.making_room[model_id]
                assert left >= 1 or not wanted, (model_id, left)
        named = Counter(ctx.making_room)
    for number, step in enumerate(fleet.steps):
        for decision in step.decisions:
            if isinstance(decision, CopyWanted) and decision.fetch_bytes and decision.cause == "target":
                # Three tenths of 1 GB/s: 60 GB take 200 s of the share.
                at_us = fleet.recording[number][0]
                assert at_us - pinned_ends.get(decision.site_id, -(10**12)) >= 200 * SECOND
                pinned_ends[decision.site_id] = at_us


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_ACTION, max_size=15))
def test_the_order_in_which_sites_were_declared_decides_nothing(actions: list[tuple]) -> None:  # type: ignore[type-arg]
    one, other = _fleet(_NAMES), _fleet(_NAMES[::-1])
    for action in actions:
        _act(one, action)
        _act(other, action)
    assert _wishes(one) == _wishes(other)
