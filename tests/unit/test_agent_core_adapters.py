"""The agent's core brings adapters to a replica before an attempt that uses them, and makes room for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.core.events import AdapterDeleted, AdapterFetchFailed, RecoveredSlot, ReplicaAdaptFailed, SlotLost, SlotReady
from agents.core.outputs import AdaptReplica, FetchAdapter, FetchWeights, LoadReplica, RunAttempt
from atoll.model import limits
from atoll.model.assignment import AdapterPeer, Peer
from atoll.model.attempt import AttemptState, Failure, FailureKind
from atoll.model.ids import AdapterId, ModelId, SiteId
from atoll.model.replica import ReplicaFact, ReplicaState
from atoll.model.report import SlotFacts
from tests.unit.agent_core_site import GB, POOL, SECOND, AgentSite, adapter, attempt, key, slot

NODE = POOL.node_id(0)
TROUBLE = Failure(kind=FailureKind.BAD_INPUT, message="it is of another base")


@pytest.fixture
def site() -> AgentSite:
    made = AgentSite()
    made.adapters = {name: adapter(name) for name in ("s1", "s2", "s3")}
    made.start().connect()
    made.assign(full=True)
    return made


def _slot_facts(site: AgentSite) -> SlotFacts:
    site.tick()
    report = site.report()
    assert report is not None
    return report.nodes[0].slots[0]


def _adapted_for(site: AgentSite, job: str, *names: str, held: tuple[str, ...]) -> list[AdaptReplica]:
    """Run a job with adapters to its end; how the replica was adapted for it. `held`: what it then holds."""
    site.assign(attempt(job, adapters=names))
    for name in [command.adapter.adapter_id for command in site.said(FetchAdapter)]:
        site.adapter_fetched(name)
    orders = site.said(AdaptReplica)
    if orders:
        site.adapted(*held)
    site.finishes(job)
    assert site.end_of(job).state is AttemptState.SUCCEEDED
    return orders


def test_a_cold_attempt_has_everything_fetched_at_once_and_is_adapted_after_the_load(site: AgentSite) -> None:
    site.assign(attempt("a", adapters=("s2", "s1")))
    assert len(site.said(FetchWeights)) == 1
    assert [command.adapter.adapter_id for command in site.said(FetchAdapter)] == ["s2", "s1"]
    site.adapter_fetched("s1", after_us=SECOND)
    site.fetched(after_us=SECOND)
    assert len(site.said(LoadReplica)) == 1
    site.loaded(after_us=SECOND)
    assert not site.said(AdaptReplica)  # s2 is still under way
    site.adapter_fetched("s2", after_us=SECOND)
    (order,) = site.said(AdaptReplica)
    assert ([one.adapter_id for one in order.adapters], order.unload) == (["s2", "s1"], ())
    site.adapted("s1", "s2", after_us=3 * SECOND)
    assert [command.key for command in site.said(RunAttempt)] == [key("a")]
    assert site.said(RunAttempt)[0].spec.adapters == site.listed[key("a")].spec.adapters
    site.finishes("a")
    times = site.end_of("a").times
    # Each moment once: two seconds for the weights, one to load, one until the last adapter has come, three to put both on.
    assert (times.fetch_us, times.load_us, times.adapt_us) == (2 * SECOND, SECOND, 4 * SECOND)


def test_an_adapter_that_is_near_at_a_peer_is_fetched_from_there(site: AgentSite) -> None:
    near = Peer(site_id=SiteId("near"), url="http://near.example")
    told = replace(attempt("a", adapters=("s2", "s1")), adapters_from=(AdapterPeer(adapter_id=AdapterId("s1"), peer=near),))
    site.assign(told)
    assert {one.adapter.adapter_id: one.fetch_from for one in site.said(FetchAdapter)} == {"s1": near, "s2": None}


def test_a_replica_that_holds_them_runs_at_once_and_tells_so(site: AgentSite) -> None:
    site.warm()
    _adapted_for(site, "first", "s1", held=("s1",))
    assert _slot_facts(site).replicas[0].adapters == ("s1",)
    site.assign(attempt("a", adapters=("s1",)))
    assert [command.key for command in site.said(RunAttempt)] == [key("a")]
    site.finishes("a")
    assert site.end_of("a").times.adapt_us == -1
    site.assign(attempt("plain"))
    assert [command.key for command in site.said(RunAttempt)] == [key("plain")]


def test_an_adapter_is_fetched_once_per_node_however_many_wait(site: AgentSite) -> None:
    site.assign(
        attempt("a", adapters=("s1",)), attempt("b", adapters=("s1",)), attempt("c", where=slot(0, 1), adapters=("s1", "s2")),
        attempt("d", where=slot(1, 0), adapters=("s1",)),
    )  # fmt: skip
    asked = sorted((command.node_id, command.adapter.adapter_id) for command in site.said(FetchAdapter))
    assert asked == [(POOL.node_id(0), "s1"), (POOL.node_id(0), "s2"), (POOL.node_id(1), "s1")]


def test_only_what_is_missing_is_loaded_and_the_least_recently_used_gives_way_beyond_the_bound(site: AgentSite) -> None:
    names = [f"n{index}" for index in range(limits.ADAPTERS_PER_REPLICA_MAX + 2)]
    site.adapters = {name: adapter(name, 1) for name in names}
    site.warm()
    for number, name in enumerate(names[:-2]):
        (order,) = _adapted_for(site, f"j{number}", name, held=tuple(names[: number + 1]))
        assert ([one.adapter_id for one in order.adapters], order.unload) == ([name], ())
    assert _adapted_for(site, "again", "n0", held=()) == []
    (order,) = _adapted_for(site, "more", "n0", names[-2], names[-1], held=("n0", *names[3:]))
    assert ([one.adapter_id for one in order.adapters], order.unload) == (names[-2:], ("n1", "n2"))
    assert len(_slot_facts(site).replicas[0].adapters) == limits.ADAPTERS_PER_REPLICA_MAX


def test_memory_bounds_them_too_and_one_that_never_fits_is_refused(site: AgentSite) -> None:
    site.adapters = {"big": adapter("big", 8_000), "other": adapter("other", 8_000), "huge": adapter("huge", 15_000)}
    site.warm()
    site.assign(attempt("a", adapters=("big",)))
    site.adapter_fetched("big")
    site.adapted("big", memory_bytes=18 * GB)
    site.finishes("a")
    site.assign(attempt("b", adapters=("other",)))
    site.adapter_fetched("other")
    assert [order.unload for order in site.said(AdaptReplica)] == [("big",)]
    site.adapted("other", memory_bytes=18 * GB)
    site.finishes("b")
    site.assign(attempt("c", adapters=("huge",)))
    assert site.end_of("c").state is AttemptState.REFUSED
    assert "with its adapters needs" in str(site.end_of("c").failure)


def test_another_version_of_an_adapter_takes_the_place_of_the_first(site: AgentSite) -> None:
    site.warm()
    _adapted_for(site, "a", "s1", held=("s1",))
    site.adapters["s1"] = adapter("s1", version="1")
    (order,) = _adapted_for(site, "b", "s1", held=("s1",))
    assert (order.adapters[0].weights_digest, order.unload) == ("sha256:" + "1" * 64, ("s1",))


def test_a_fetch_that_fails_ends_those_who_waited_for_it_and_nobody_else(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a", adapters=("s1",)), attempt("b", adapters=("s2",)), attempt("c"))
    site.happen(AdapterFetchFailed(node_id=NODE, adapter_id=AdapterId("s1"), failure=replace(TROUBLE, kind=FailureKind.FETCH_FAILED)))
    assert site.end_of("a").failure == replace(TROUBLE, kind=FailureKind.FETCH_FAILED)
    site.adapter_fetched("s2")
    site.adapted("s2")
    site.finishes("b")
    site.finishes("c")
    assert {site.end_of(job).state for job in "bc"} == {AttemptState.SUCCEEDED}


def test_a_replica_that_cannot_take_an_adapter_stays_usable(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a", adapters=("s1",)), attempt("b"))
    site.adapter_fetched("s1")
    site.happen(ReplicaAdaptFailed(slot=slot(), model_id=ModelId("m"), adapters=(), memory_bytes=10 * GB, failure=TROUBLE), after_us=SECOND)
    assert (site.end_of("a").failure, site.end_of("a").times.adapt_us) == (TROUBLE, SECOND)
    assert [command.key for command in site.said(RunAttempt)] == [key("b")]


def test_an_adapter_that_left_the_disk_is_fetched_again(site: AgentSite) -> None:
    site.assign(attempt("a", adapters=("s1",)))
    site.adapter_fetched("s1")
    site.fetched()
    site.happen(AdapterDeleted(node_id=NODE, adapter_id=AdapterId("s1")))
    assert [command.adapter.adapter_id for command in site.said(FetchAdapter)] == ["s1"]
    site.loaded()
    assert not site.said(AdaptReplica)
    site.adapter_fetched("s1")
    assert len(site.said(AdaptReplica)) == 1


def test_a_slot_that_dies_while_it_adapts_fails_the_attempt_and_begins_anew(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a", adapters=("s1",)), attempt("b", adapters=("s1",)))
    site.adapter_fetched("s1")
    site.happen(SlotLost(slot=slot(), message="killed"))
    assert site.end_of("a").failure == Failure(kind=FailureKind.RUNTIME_LOST, message="killed")
    site.adapted("s1")  # a late word of the dead process
    assert not site.said(RunAttempt)
    site.happen(SlotReady(slot=slot()))
    site.loaded()
    assert len(site.said(AdaptReplica)) == 1


def test_an_attempt_that_is_stopped_meanwhile_leaves_its_adapters_to_the_next(site: AgentSite) -> None:
    site.warm()
    site.assign(attempt("a", adapters=("s1",)), attempt("b", adapters=("s1",)))
    site.adapter_fetched("s1")
    site.assign(attempt("a", adapters=("s1",), stop=True))
    assert site.end_of("a").state is AttemptState.STOPPED
    assert not site.said(RunAttempt)  # the adaptation goes on
    site.adapted("s1")
    assert [command.key for command in site.said(RunAttempt)] == [key("b")]


def test_after_a_restart_what_replicas_hold_is_used(site: AgentSite) -> None:
    site.restart()
    fact = ReplicaFact(model_id=ModelId("m"), state=ReplicaState.WARM, memory_bytes=10 * GB, adapters=(AdapterId("s1"),))
    site.start(RecoveredSlot(slot=slot(), replicas=(fact,))).connect()
    site.assign(attempt("a", adapters=("s1",)), full=True)
    assert [command.key for command in site.said(RunAttempt)] == [key("a")]


def test_an_attempt_whose_adapter_was_not_described_or_has_no_weights_is_refused(site: AgentSite) -> None:
    site.adapters["figures"] = replace(adapter("figures"), weights_digest="")
    for job, name, words in (("a", "nope", "adapter nope was not described"), ("b", "figures", "has no weights")):
        site.assign(attempt(job, adapters=(name,)))
        assert words in str(site.end_of(job).failure)


def test_adapters_found_after_a_restart_give_way_though_nobody_knows_their_size(site: AgentSite) -> None:
    site.restart()
    site.adapters["big"] = adapter("big", 8_000)
    fact = ReplicaFact(model_id=ModelId("m"), state=ReplicaState.WARM, memory_bytes=18 * GB, adapters=(AdapterId("old"),))
    site.start(RecoveredSlot(slot=slot(), replicas=(fact,)), disk=("m",)).connect()
    site.assign(attempt("a", adapters=("big",)), full=True)
    site.adapter_fetched("big")
    assert [(order.adapters, order.unload) for order in site.said(AdaptReplica)] == [((), ("old",))]
    site.adapted(memory_bytes=10 * GB)
    assert [[one.adapter_id for one in order.adapters] for order in site.said(AdaptReplica)] == [["big"]]
    site.adapted("big", memory_bytes=18 * GB)
    assert [command.key for command in site.said(RunAttempt)] == [key("a")]
