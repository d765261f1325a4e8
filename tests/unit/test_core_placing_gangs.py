"""Gangs in the core: an aligned block of one node's slots or nothing, resident replicas first."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.cli.reasons import meaning, remedy
from atoll.model.attempt import AttemptState, FailureKind
from atoll.model.ids import SiteId
from atoll.model.job import JobState
from atoll.model.limits import GANG_SIZES
from atoll.model.placement import Reason
from atoll.model.quote import Quote
from atoll.model.shape import Shape
from orchestrator.core.machine import restore
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.registry import TERM_NAMES
from tests.unit.fleet_of_machines import GPUS, Fleet, model, pool, site, spec


def _submit(fleet: Fleet, *, model_id: str = "m", gang_size: int = 1, steps: int = 20) -> str:
    """A job's id."""
    before = set(fleet.machine.context.state.jobs)
    fleet.submit(spec(model_id, gang_size=gang_size, shape=Shape(width=1024, height=1024, steps=steps)))
    (job_id,) = set(fleet.machine.context.state.jobs) - before
    return job_id


def _held(fleet: Fleet, name: str = "a", pool_id: str = "p", node: int = 0) -> list[int]:
    """How many attempts each slot of a node holds."""
    one = fleet.machine.context.state.sites[SiteId(name)].pools[pool_id]  # type: ignore[index]  # a pool's id is text
    return [len(slot.attempts) for slot in one.nodes[node].slots]


def _block(fleet: Fleet, job_id: str) -> tuple[str, int, int]:
    """(node, lead, size) of the last attempt of a job."""
    job = fleet.job(job_id)
    return job.attempts[-1].slot.node_id, job.attempts[-1].slot.index, job.spec.gang_size


def _end(fleet: Fleet, job_id: str, name: str = "a") -> None:
    fleet.end_attempt(name, fleet.job(job_id).attempts[-1].key)


def _warm_fleet(gpus: int) -> Fleet:
    """One node; each of its slots holds a model of its own, s0, s1, ..."""
    models = tuple(model(f"s{index}") for index in range(gpus))
    fleet = Fleet(site("a", pool("p", gpus=gpus)), models=(model("m"), *models))
    for index in range(gpus):
        fleet.warm("a", "p-0", index, f"s{index}")
    fleet.report("a")
    return fleet


def test_a_gang_takes_an_aligned_free_block_and_gives_all_of_it_back() -> None:
    fleet = Fleet(site("a", pool("p", gpus=8)))
    single = _submit(fleet)
    gang = _submit(fleet, gang_size=4)
    _, lead, _ = _block(fleet, gang)
    assert lead % 4 == 0
    assert _held(fleet)[lead : lead + 4] == [1, 1, 1, 1] and sum(_held(fleet)) == 5
    told = fleet.agents[SiteId("a")].attempts[fleet.job(gang).attempts[-1].key]
    assert (told.slot.index, told.spec.gang_size) == (lead, 4)
    _end(fleet, gang)
    assert sum(_held(fleet)) == 1 and fleet.job(gang).state is JobState.SUCCEEDED
    assert fleet.job(single).state is JobState.PLACED


def test_a_gang_waits_for_a_whole_block_and_holds_nothing_meanwhile() -> None:
    fleet = _warm_fleet(4)
    singles = [_submit(fleet, model_id=f"s{index}") for index in range(4)]
    assert _held(fleet) == [1, 1, 1, 1]
    gang = _submit(fleet, gang_size=2)
    assert fleet.job(gang).state is JobState.QUEUED
    _end(fleet, singles[1])
    _end(fleet, singles[2])
    # Two slots are free, of two blocks: a gang of two does not fit.
    fleet.wait(1)
    assert fleet.job(gang).state is JobState.QUEUED and _held(fleet) == [1, 0, 0, 1]
    _end(fleet, singles[3])
    fleet.wait(5, reporting=("a",))
    assert _block(fleet, gang) == ("p-0", 2, 2) and _held(fleet) == [1, 0, 1, 1], "slot 0 is at work still"


def test_a_single_that_is_over_before_the_gang_begins_is_not_held_up_by_it() -> None:
    fleet = _warm_fleet(2)
    busy = _submit(fleet, model_id="s0", steps=400)
    gang = _submit(fleet, gang_size=2)
    assert fleet.job(gang).state is JobState.QUEUED
    single = _submit(fleet, model_id="s1")
    assert fleet.job(single).state is JobState.PLACED and _held(fleet) == [1, 1]
    as_long = _submit(fleet, model_id="s1", steps=400)
    _end(fleet, single)
    assert fleet.job(as_long).state is JobState.QUEUED and _held(fleet) == [1, 0]
    _end(fleet, busy)
    assert fleet.job(gang).state is JobState.PLACED and _held(fleet) == [1, 1]
    _end(fleet, gang)
    assert fleet.job(as_long).state is JobState.PLACED


def test_a_resident_replica_of_gangs_is_preferred_and_one_of_singles_is_none() -> None:
    fleet = Fleet(site("a", pool("p", gpus=8)), site("b", pool("p", gpus=8)), models=(model("m", 40),))
    fleet.warm_gang("b", "p-0", 4, 4, "m", size_gb=40)
    fleet.warm("a", "p-0", 0, "m", size_gb=40)
    fleet.report("a")
    fleet.report("b")
    gang = _submit(fleet, gang_size=4)
    attempt = fleet.job(gang).attempts[-1]
    assert (attempt.site_id, attempt.slot.index, attempt.cold) == ("b", 4, False)
    of_two = fleet.job(_submit(fleet, gang_size=2)).attempts[-1]
    assert of_two.cold, "a replica of gangs of four serves no gang of two"
    single = fleet.job(_submit(fleet)).attempts[-1]
    assert (single.site_id, single.slot.index, single.cold) == ("a", 0, False), "nor a job of its own"


def test_a_gang_is_faster_and_costs_what_all_its_gpus_cost() -> None:
    fleet = Fleet(site("a", pool("p", gpus=8)))
    quotes = {size: fleet.machine.quote_job(spec(gang_size=size), fleet.now_us) for size in (1, 4)}
    figures = {}
    for size, quote in quotes.items():
        assert isinstance(quote, Quote) and quote.chosen is not None
        names = quote.term_names
        figures[size] = {term: quote.chosen.terms_us[names.index(term)] for term in ("execution", "money")}
    assert figures[4]["execution"] < figures[1]["execution"] < 4 * figures[4]["execution"]
    assert figures[4]["money"] > figures[1]["money"]


def test_what_no_node_can_hold_is_told_with_what_would_help() -> None:
    fleet = Fleet(site("a", pool("p", gpus=2)), site("b", pool("q", gpus=4)))
    gang = _submit(fleet, gang_size=8)
    deferral = fleet.job(gang).deferral
    assert deferral is not None and deferral.waits_for is None
    assert {(one.reason, one.pools) for one in deferral.rejections} == {(Reason.GANG_TOO_LARGE, 2)}
    smaller = fleet.job(_submit(fleet, gang_size=4)).attempts[-1]
    assert smaller.site_id == "b"


def test_a_gang_evicts_what_is_in_its_way_in_each_of_its_slots() -> None:
    fleet = Fleet(site("a", pool("p", gpus=2)), models=(model("m", 60), model("x", 50), model("y", 50)))
    fleet.warm("a", "p-0", 0, "x", size_gb=50)
    fleet.warm("a", "p-0", 1, "y", size_gb=50)
    fleet.report("a")
    gang = _submit(fleet, gang_size=2)
    told = fleet.agents[SiteId("a")].attempts[fleet.job(gang).attempts[-1].key]
    assert sorted(told.evict) == ["x", "y"]


def test_a_member_that_is_lost_frees_the_whole_block_and_the_job_goes_on_elsewhere() -> None:
    fleet = Fleet(site("a", pool("p", gpus=4)), site("b", pool("p", gpus=4)))
    gang = _submit(fleet, gang_size=4)
    first = fleet.job(gang).attempts[-1]
    fleet.end_attempt(first.site_id, first.key, AttemptState.FAILED, kind=FailureKind.RUNTIME_LOST)
    assert _held(fleet, first.site_id) == [0, 0, 0, 0]
    fleet.wait(30, reporting=("a", "b"))
    again = fleet.job(gang).attempts[-1]
    assert again.key.ordinal == 2 and again.site_id != first.site_id
    assert _held(fleet, again.site_id) == [1, 1, 1, 1]


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from(["m", "x"]), st.sampled_from(GANG_SIZES)),
        st.tuples(st.just("end"), st.sampled_from("ab"), st.integers(0, 7)),
        st.tuples(st.just("stopped"), st.sampled_from("ab"), st.booleans()),
        st.tuples(st.just("report"), st.sampled_from("ab"), st.booleans()),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 20.0]), st.booleans()),
        st.tuples(st.just("reconnect"), st.sampled_from("ab"), st.booleans()),
        st.tuples(st.just("warm"), st.sampled_from("ab"), st.sampled_from([2, 4])),
    ),
    min_size=1,
    max_size=40,
)


def _act(fleet: Fleet, action: tuple[str, object, object]) -> None:
    match action:
        case ("submit", str(model_id), int(gang_size)):
            fleet.submit(spec(model_id, gang_size=gang_size))
        case ("end", str(name), int(number)):
            keys = list(fleet.agents[SiteId(name)].attempts)
            if keys:
                fleet.end_attempt(name, keys[number % len(keys)])
        case ("stopped", str(name), _):
            for key, told in list(fleet.agents[SiteId(name)].attempts.items()):
                if told.stop:
                    fleet.end_attempt(name, key, AttemptState.STOPPED)
        case ("report", str(name), _):
            fleet.report(name)
        case ("wait", float(seconds), _):
            fleet.wait(seconds, reporting=("a",))
        case ("reconnect", str(name), _):
            fleet.connect(fleet.agents[SiteId(name)].site)
        case ("warm", str(name), int(gang_size)):
            fleet.warm_gang(name, fleet.agents[SiteId(name)].site.pools[0].node_id(0), 0, gang_size, "m")
            fleet.report(name)
        case _:
            raise AssertionError(action)


def _fleet() -> Fleet:
    return Fleet(
        site("a", pool("p", gpus=8)), site("b", pool("p", gpus=4, nodes=2), pool("q", "small", gpus=2)), models=(model("m"), model("x"))
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTIONS, st.integers(0, 40))
def test_singles_and_gangs_share_a_fleet_without_partial_holds_and_a_snapshot_goes_on_equally(
    actions: list[tuple[str, object, object]], cut: int
) -> None:
    """The fleet's invariants are checked after every event: a gang holds the aligned block that it leads, or nothing."""
    fleet = _fleet()
    twin, since = None, 0
    for number, action in enumerate(actions):
        if number == cut:
            twin = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
            since = len(fleet.recording)
        _act(fleet, action)
        for live in (live for one in fleet.machine.context.state.sites.values() for live in one.attempts.values()):
            assert live.attempt.slot.index % live.spec.gang_size == 0
    if twin is not None:
        for (at_us, event), step in zip(fleet.recording[since:], fleet.steps[since:], strict=True):
            assert twin.handle(event, at_us) == step
        assert twin.snapshot() == fleet.machine.snapshot()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTIONS)
def test_in_the_end_every_gang_that_fits_a_node_had_its_turn(actions: list[tuple[str, object, object]]) -> None:
    fleet = _fleet()
    for action in actions:
        _act(fleet, action)
    for _ in range(200):
        if not any(job.state is JobState.QUEUED for job in fleet.jobs.values()):
            break
        for name in ("a", "b"):
            for key in list(fleet.agents[SiteId(name)].attempts)[:1]:
                fleet.end_attempt(name, key)
        fleet.wait(15, reporting=("a", "b"))
    waiting = [job.spec.gang_size for job in fleet.jobs.values() if job.state is JobState.QUEUED]
    assert not waiting


def test_a_single_job_takes_the_slot_that_breaks_the_smallest_block_where_gangs_run() -> None:
    fleet = Fleet(site("a", pool("p", gpus=8)), models=(model("m"), model("x"), model("y")))
    fleet.warm_gang("a", "p-0", 4, 4, "m")
    fleet.warm("a", "p-0", 2, "x")
    fleet.report("a")
    _submit(fleet, model_id="x")
    assert _held(fleet) == [0, 0, 1, 0, 0, 0, 0, 0]
    _submit(fleet, model_id="y")
    held = _held(fleet)
    assert sum(held[:4]) == 2 and held[4:] == [0, 0, 0, 0], "the block of four stays whole"
    gang = _submit(fleet, gang_size=4)
    assert _block(fleet, gang) == ("p-0", 4, 4)


def test_the_last_whole_block_has_its_price_and_only_where_gangs_run() -> None:
    index = TERM_NAMES.index("fragmentation")

    def price_us(*, gangs: bool, gpus: int) -> int:
        fleet = Fleet(site("a", pool("p", gpus=gpus)), models=(model("m"), model("x")))
        if gangs:
            fleet.warm_gang("a", "p-0", 0, 2, "m")
            fleet.report("a")
        offered = fleet.machine.quote_job(spec("x"), fleet.now_us)
        assert isinstance(offered, Quote) and offered.chosen is not None
        assert sum(offered.chosen.terms_us) == offered.chosen.total_us
        return offered.chosen.terms_us[index]

    assert price_us(gangs=True, gpus=2) > 0
    assert price_us(gangs=False, gpus=2) == 0
    assert price_us(gangs=True, gpus=4) == 0, "another block is left"


def test_another_pool_that_is_as_good_is_taken_before_the_last_whole_block() -> None:
    for gang_site in ("a", "b"):
        fleet = Fleet(site("a", pool("p", gpus=2)), site("b", pool("p", gpus=2)), models=(model("m"), model("x")))
        fleet.warm_gang(gang_site, "p-0", 0, 2, "m")
        fleet.report(gang_site)
        single = fleet.job(_submit(fleet, model_id="x"))
        assert single.attempts[-1].site_id != gang_site


def test_a_gang_is_told_of_blocks_and_not_of_slots_that_are_free() -> None:
    fleet = Fleet(site("a", pool("p", gpus=2)), site("b", pool("p", gpus=1)), policy=Policy(silent_after_ms=10**9))
    fleet.submit(spec(prompt="one", constraints=replace(spec().constraints, sites=(SiteId("a"),))))
    quote = fleet.machine.quote_job(spec(gang_size=2), fleet.now_us)
    assert isinstance(quote, Quote)
    assert {one.reason: one.pools for one in quote.rejections} == {Reason.NO_BLOCK: 1, Reason.GANG_TOO_LARGE: 1}
    assert "block" in meaning("no_block") and remedy("no_block")
    single = fleet.machine.quote_job(spec(), fleet.now_us)
    assert isinstance(single, Quote) and not single.rejections
