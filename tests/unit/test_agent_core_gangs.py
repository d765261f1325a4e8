"""The agent's core brings gangs to the slots of one node: all of them or none, in the order of arrival, each ended once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.core.events import RecoveredSlot, ReplicaEvicted, ReplicaLoaded, ReplicaLoadFailed, SlotLost, SlotReady
from agents.core.outputs import EvictReplica, FetchWeights, LoadReplica, RunAttempt, StopAttempt
from agents.core.state import ReplicaKey
from atoll.model.assignment import AssignedAttempt
from atoll.model.attempt import AttemptState, Failure, FailureKind
from atoll.model.ids import ModelId, SlotRef
from atoll.model.replica import ReplicaFact, ReplicaState
from tests.unit.agent_core_site import GB, POOL, SECOND, AgentSite, attempt, key, slot

WIDE = replace(POOL, nodes=1, gpus_per_node=8)


@pytest.fixture
def site() -> AgentSite:
    made = AgentSite(pools=(WIDE,)).start(disk=("m", "n", "o")).connect()
    made.assign(full=True)
    return made


def gang(job: str, size: int = 2, *, model_id: str = "m", where: int = 0, **changes: object) -> AssignedAttempt:
    one = attempt(job, model_id, where=slot(0, where), **changes)  # type: ignore[arg-type] # the caller names fields
    return replace(one, spec=replace(one.spec, gang_size=size))


def loaded(site: AgentSite, *indices: int, size: int = 2, name: str = "m", after_us: int = 0) -> None:
    for index in indices:
        event = ReplicaLoaded(slot=slot(0, index), model_id=ModelId(name), memory_bytes=10 * GB, elapsed_us=1, gang_size=size)
        site.happen(event, after_us=after_us)


def test_a_gang_loads_on_each_member_and_runs_when_the_last_is_ready(site: AgentSite) -> None:
    site.assign(gang("g", 4, where=4))
    assert [(command.slot.index, command.gang_size) for command in site.said(LoadReplica)] == [(4, 4), (5, 4), (6, 4), (7, 4)]
    loaded(site, 4, 6, 7, size=4, after_us=SECOND)
    assert not site.said(RunAttempt)
    loaded(site, 5, size=4, after_us=SECOND)
    assert [(command.slot, command.spec.gang_size) for command in site.said(RunAttempt)] == [(slot(0, 4), 4)]
    assert {ref.index for ref, found in site.machine.state.slots.items() if found.executing == key("g")} == {4, 5, 6, 7}
    site.tick()
    facts = site.report()
    assert facts is not None
    shares = [(told.index, fact.gang_size, fact.state, fact.memory_bytes) for told in facts.nodes[0].slots for fact in told.replicas]
    assert shares == [(index, 4, ReplicaState.BUSY, 10 * GB) for index in (4, 5, 6, 7)]
    site.finishes("g")
    event = site.end_of("g")
    assert event.state is AttemptState.SUCCEEDED
    assert (event.times.waiting_us, event.times.load_us) == (0, 4 * SECOND)
    site.assign(gang("again", 4, where=4))
    assert [command.key for command in site.said(RunAttempt)] == [key("again")]


def test_weights_for_a_gang_are_fetched_once_and_a_failed_fetch_ends_it_once() -> None:
    site = AgentSite(pools=(WIDE,)).start().connect()
    site.assign(gang("g", 8), full=True)
    assert [command.model.model_id for command in site.said(FetchWeights)] == ["m"]
    site.fetch_failed(FailureKind.DISK_FULL)
    assert site.end_of("g").state is AttemptState.FAILED
    assert not site.machine.state.works


def test_a_gang_waits_for_all_its_slots_and_who_comes_later_waits_behind_it(site: AgentSite) -> None:
    site.assign(attempt("before", where=slot(0, 1)))
    site.loaded(where=slot(0, 1))
    site.assign(gang("g"), attempt("after", where=slot(0, 0)), attempt("beside", where=slot(0, 2)))
    assert [command.slot.index for command in site.said(LoadReplica)] == [2], "no member is touched before the gang's turn"
    site.finishes("before", after_us=5 * SECOND)
    assert {(command.slot.index, command.gang_size) for command in site.said(LoadReplica)} == {(0, 2), (1, 2)}
    loaded(site, 0, 1)
    assert [command.key for command in site.said(RunAttempt)] == [key("g")]
    site.finishes("g")
    assert site.end_of("g").times.waiting_us == 5 * SECOND
    assert [(command.slot.index, command.gang_size) for command in site.said(LoadReplica)] == [(0, 1)], "a share does not run alone"


def test_gangs_that_share_members_take_turns_in_the_order_of_arrival(site: AgentSite) -> None:
    site.assign(gang("small", where=2), gang("large", 8), gang("late", where=6))
    loaded(site, 2, 3)
    assert [command.key for command in site.said(RunAttempt)] == [key("small")]
    assert site.machine.state.works[key("late")].turn_us == -1, "it would make the large one wait for ever"
    site.finishes("small")
    loaded(site, *range(8), size=8)
    assert [command.key for command in site.said(RunAttempt)] == [key("large")]
    site.finishes("large")
    loaded(site, 6, 7)
    assert [command.key for command in site.said(RunAttempt)] == [key("late")]


def test_what_is_named_leaves_every_member_before_any_runs(site: AgentSite) -> None:
    site.assign(attempt("n0", "n", where=slot(0, 0)), attempt("o1", "o", where=slot(0, 1)), attempt("n1", "n", where=slot(0, 1)))
    site.loaded("n", slot(0, 0))
    site.loaded("o", slot(0, 1))
    site.finishes("n0")
    site.finishes("o1")
    site.loaded("n", slot(0, 1))
    site.finishes("n1")
    site.assign(gang("g", evict=(ModelId("n"),)))
    assert [(command.slot.index, command.model_id) for command in site.said(EvictReplica)] == [(0, "n"), (1, "n")]
    site.evicted("n", slot(0, 0))
    assert [command.slot.index for command in site.said(LoadReplica)] == [0]
    site.evicted("n", slot(0, 1))
    loaded(site, 0, 1)
    assert [command.key for command in site.said(RunAttempt)] == [key("g")]
    assert ReplicaKey(model_id=ModelId("o")) in site.machine.state.slots[slot(0, 1)].replicas


def test_a_share_leaves_by_its_own_name(site: AgentSite) -> None:
    site.assign(gang("g"))
    loaded(site, 0, 1)
    site.finishes("g")
    site.assign(attempt("alone", "n", where=slot(0, 1), evict=(ModelId("m"),)))
    assert [(command.slot.index, command.gang_size) for command in site.said(EvictReplica)] == [(1, 2)]
    site.happen(ReplicaEvicted(slot=slot(0, 1), model_id=ModelId("m"), gang_size=2))
    site.loaded("n", slot(0, 1))
    site.finishes("alone")
    site.assign(gang("h"))
    assert [command.slot.index for command in site.said(LoadReplica)] == [1], "the other member still has its share"


def test_one_member_without_room_refuses_the_gang_and_keeps_nobody(site: AgentSite) -> None:
    for name in ("m", "n"):
        site.assign(attempt(f"{name}1", name, where=slot(0, 1)))
        site.loaded(name, slot(0, 1))
        site.finishes(f"{name}1")
    site.assign(gang("g", model_id="o"))
    event = site.end_of("g")
    assert event.state is AttemptState.REFUSED
    assert event.failure is not None and "o needs" in event.failure.message
    assert not any(found.queue or found.executing for found in site.machine.state.slots.values())


def test_a_failed_load_of_one_member_ends_the_gang(site: AgentSite) -> None:
    site.assign(gang("g"), attempt("next", where=slot(0, 0)))
    failure = Failure(kind=FailureKind.OUT_OF_MEMORY, message="told by the test")
    site.happen(ReplicaLoadFailed(slot=slot(0, 1), model_id=ModelId("m"), failure=failure, gang_size=2))
    assert site.end_of("g").failure == failure
    loaded(site, 0)
    assert [command.slot.index for command in site.said(LoadReplica)] == [0], "the slot goes on with the next in its queue"


@pytest.mark.parametrize("struck", [0, 1])
@pytest.mark.parametrize("executing", [False, True])
def test_a_lost_member_ends_the_gang_and_frees_the_others(site: AgentSite, struck: int, executing: bool) -> None:
    site.assign(gang("g"), attempt("next", "n", where=slot(0, 1 - struck)))
    loaded(site, 0, 1) if executing else loaded(site, struck)
    site.happen(SlotLost(slot=slot(0, struck), message="killed by signal 9"))
    assert site.end_of("g").failure == Failure(kind=FailureKind.RUNTIME_LOST, message="killed by signal 9")
    if not executing:
        loaded(site, 1 - struck)
    assert [(command.slot.index, command.model.model_id) for command in site.said(LoadReplica)] == [(1 - struck, "n")]
    site.finishes("g")
    site.happen(SlotReady(slot=slot(0, struck)))
    assert site.end_of("g").state is AttemptState.FAILED


def test_a_gang_that_waits_outlives_the_loss_of_a_member(site: AgentSite) -> None:
    site.assign(attempt("before", where=slot(0, 0)), gang("g"))
    site.loaded(where=slot(0, 0))
    site.happen(SlotLost(slot=slot(0, 1), message="killed by signal 9"))
    site.finishes("before")
    assert not site.said(LoadReplica)
    site.happen(SlotReady(slot=slot(0, 1)))
    assert {command.slot.index for command in site.said(LoadReplica)} == {0, 1}


def test_a_gang_is_stopped_as_one(site: AgentSite) -> None:
    site.assign(gang("g"), gang("waits"))
    loaded(site, 0, 1)
    site.assign(gang("waits", stop=True))
    assert site.end_of("waits").state is AttemptState.STOPPED
    site.assign(gang("g", stop=True))
    assert [(command.slot, command.key) for command in site.said(StopAttempt)] == [(slot(0, 0), key("g"))]
    site.halts("g")
    assert site.end_of("g").state is AttemptState.STOPPED
    assert not any(found.queue or found.executing for found in site.machine.state.slots.values())


@pytest.mark.parametrize(
    ("lead", "size", "told"),
    [
        (1, 2, "begins at a multiple of 2"),
        (4, 8, "begins at a multiple of 8"),
        (0, 3, "expected one of"),
        (8, 1, "no slot 8"),
    ],
)
def test_a_block_that_is_none_is_refused_with_the_reason(site: AgentSite, lead: int, size: int, told: str) -> None:
    site.assign(gang("g", size, where=lead))
    event = site.end_of("g")
    assert event.state is AttemptState.REFUSED
    assert event.failure is not None and told in event.failure.message


def test_a_gang_larger_than_its_node_is_refused() -> None:
    site = AgentSite(pools=(replace(POOL, gpus_per_node=6),)).start().connect()
    site.assign(gang("whole", 8), gang("end", 4, where=4), full=True)
    messages = {str(event.key.job_id): event.failure.message for event in site.history if event.failure is not None}
    assert "node p-0 of pool p has 6" in messages["whole"]
    assert "was to begin at slot 4" in messages["end"]


def found(index: int, job: str | None = "g", *, size: int = 2) -> RecoveredSlot:
    state = ReplicaState.BUSY if job is not None else ReplicaState.WARM
    fact = ReplicaFact(model_id=ModelId("m"), state=state, memory_bytes=10 * GB, gang_size=size)
    return RecoveredSlot(
        slot=SlotRef(pool_id=POOL.pool_id, node_id=POOL.node_id(0), index=index),
        replicas=(fact,),
        running=key(job) if job is not None else None,
        gang_size=size if job is not None else 1,
    )


def test_a_gang_found_after_a_restart_goes_on() -> None:
    site = AgentSite(pools=(WIDE,)).start(found(2), found(3), disk=("m",)).connect()
    site.assign(gang("g", where=2), attempt("next", where=slot(0, 3)), full=True)
    assert not site.history
    site.assign(gang("g", where=2, stop=True))
    assert [(command.slot.index, command.key) for command in site.said(StopAttempt)] == [(2, key("g"))]
    site.finishes("g")
    assert site.end_of("g").state is AttemptState.SUCCEEDED
    assert [(command.slot.index, command.gang_size) for command in site.said(LoadReplica)] == [(3, 1)]


def test_a_gang_found_in_parts_is_lost() -> None:
    site = AgentSite(pools=(WIDE,)).start(found(2, None), found(3), disk=("m",))
    assert [command.slot.index for command in site.said(StopAttempt)] == [3]
    site.connect()
    failure = site.end_of("g").failure
    assert failure is not None and failure.kind is FailureKind.RUNTIME_LOST
    site.assign(gang("g", where=2), gang("h", where=2), full=True)
    assert [command.key for command in site.said(RunAttempt)] == [key("h")]
