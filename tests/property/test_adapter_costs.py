"""What must hold of the cost of adapters whatever they weigh and whoever has them: more that is held never costs more."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.model.adapter import AdapterSpec
from atoll.model.ids import AdapterId, SiteId
from atoll.model.modelspec import AdapterUse
from orchestrator.core import events
from orchestrator.core.placement.classes import class_of
from orchestrator.core.placement.registry import TERM_NAMES
from orchestrator.core.placement.rows import COLD, State
from tests.unit.fleet_of_machines import GB, Fleet, adapter, pool, site, spec

_ADAPT = TERM_NAMES.index("adapt")
_NAMES = tuple(f"s{number}" for number in range(1, 9))
_MB = GB // 1_000
_SIZES = st.lists(st.integers(1, 4_000), min_size=8, max_size=8).map(
    lambda sizes: tuple(replace(adapter(name, "m"), weights_bytes=size * _MB) for name, size in zip(_NAMES, sizes, strict=True))
)
_SOME = st.sets(st.sampled_from(_NAMES))
_QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
# Site b has the model twice, with these adapters each, these on its disk, and so many jobs at work.
Held = tuple[set[str], set[str], set[str], int]
_HELD = st.tuples(_SOME, _SOME, _SOME, st.integers(0, 3))


def _fleet(adapters: tuple[AdapterSpec, ...], held: Held) -> Fleet:
    fleet = Fleet(site("b", pool("p", gpus=2)), checked=False)
    fleet.ask(events.AdaptersAdded, actor="t", adapters=adapters)
    agent, (first, second, disk, busy) = fleet.agents[SiteId("b")], held
    for gpu in range(2):
        fleet.warm("b", "p-0", gpu, "m")
    fleet.report("b")
    for number in range(busy):
        fleet.submit(spec(prompt=str(number)))
    agent.loaded = {("p-0", 0): tuple(sorted(first)), ("p-0", 1): tuple(sorted(second))}
    agent.disk_adapters = set(disk)
    fleet.report("b")
    return fleet


def _costs(adapters: tuple[AdapterSpec, ...], held: Held, *names: str) -> tuple[int, int]:
    """(cost, its term for adapters) of the best resident replica for a job with these."""
    fleet = _fleet(adapters, held)
    ctx, job = fleet.machine.context, spec(prompt="asked", adapters=tuple(AdapterUse(adapter_id=AdapterId(name)) for name in names))
    key = class_of(job)
    board = ctx.scorer.score(key, ctx.estimator.of(key, ctx.state.models[job.model_id]), ctx.now_us)
    rows = [row for row in range(len(board.out)) if row // board.pools != COLD and board.out[row, 0] != State.IMPOSSIBLE]
    best = min(rows, key=board.total_us)
    (told,) = board.candidates([best])
    assert sum(told.terms_us) == told.total_us == board.total_us(best)
    assert bool(told.lacks) == (told.terms_us[_ADAPT] > 0)
    return told.total_us, told.terms_us[_ADAPT]


@_QUICK
@given(_SIZES, _HELD, st.sampled_from(_NAMES), st.sampled_from((0, 1, 2)))
def test_one_adapter_more_that_is_held_never_costs_more(adapters: tuple[AdapterSpec, ...], held: Held, name: str, where: int) -> None:
    more = tuple(have | {name} if index == where and isinstance(have, set) else have for index, have in enumerate(held))
    assert _costs(adapters, more, *_NAMES)[0] <= _costs(adapters, held, *_NAMES)[0]  # type: ignore[arg-type]  # of the same form


@_QUICK
@given(_SIZES, st.permutations(_NAMES), st.integers(0, 8), _SOME)
def test_holding_some_of_them_costs_between_none_and_all(
    adapters: tuple[AdapterSpec, ...], order: list[str], asked: int, disk: set[str]
) -> None:
    names = order[:asked]
    found = [_costs(adapters, (set(names[:count]), set(), disk, 0), *names)[1] for count in range(len(names) + 1)]
    assert found == sorted(found, reverse=True) and found[-1] == 0
    assert len(set(found)) == len(found), "each of them takes some time"


@_QUICK
@given(_SIZES, _HELD, st.sampled_from(_NAMES))
def test_one_adapter_more_that_is_asked_for_never_costs_less(adapters: tuple[AdapterSpec, ...], held: Held, name: str) -> None:
    fewer = tuple(one for one in _NAMES if one != name)
    assert _costs(adapters, held, *_NAMES)[0] >= _costs(adapters, held, *fewer)[0]
