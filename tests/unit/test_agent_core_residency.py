"""Copies ahead of demand at an agent: brought with what is idle, yielding to attempts, and kept when they are pinned."""

from __future__ import annotations

from agents.core.events import FetchAdvanced, FetchYielded, HostMemoryChanged, NodeMeasured
from agents.core.outputs import DeleteWeights, EvictReplica, FetchWeights, LoadReplica, PinWeights, RunAttempt, StageWeights, YieldFetch
from agents.core.residency import FETCHES_AHEAD_MAX
from agents.core.state import ReplicaKey
from atoll.model.assignment import Assignment, DesiredReplica
from atoll.model.attempt import AttemptState, FailureKind
from atoll.model.ids import EventSeq, Generation, ModelId, NodeId
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import ReplicaState, Tier
from tests.unit.agent_core_site import FLEET, GB, POOL, SECOND, AgentSite, attempt, key, model, slot

NODE = POOL.node_id(0)


def wanted(
    name: str, tier: Tier = Tier.GPU, *, node: NodeId = NODE, index: int | None = None, pin: bool = False, evict: str = ""
) -> DesiredReplica:
    evicted = tuple(ModelId(one) for one in evict.split(",") if one)
    return DesiredReplica(model_id=ModelId(name), node_id=node, index=index, tier=tier, pin=pin, evict=evicted)


def wish(site: AgentSite, *copies: DesiredReplica, unwanted: tuple[DesiredReplica, ...] = ()) -> None:
    models: tuple[ModelSpec, ...] = tuple(site.models[name] for name in sorted({copy.model_id for copy in copies}))
    site.assign(replicas=copies, unwanted=unwanted, models=models)


def started(*, disk: tuple[str, ...] = ()) -> AgentSite:
    return AgentSite().start(disk=disk).connect()


def ahead(site: AgentSite) -> list[str]:
    return [command.model.model_id for command in site.said(FetchWeights) if command.ahead]


def test_a_wanted_copy_is_fetched_then_loaded_and_the_first_job_finds_it_warm() -> None:
    site = started()
    wish(site, wanted("m"))
    assert ahead(site) == ["m"]
    site.fetched("m")
    assert [load.model.model_id for load in site.said(LoadReplica)] == ["m"]
    site.loaded("m")
    site.assign(attempt("j"))
    assert [run.key for run in site.said(RunAttempt)] == [key("j")]
    site.finishes("j")
    times = site.end_of("j").times
    assert times.fetch_us == -1
    assert times.load_us == -1


def test_only_so_many_fetches_go_ahead_at_a_time_and_the_next_begins_when_one_ends() -> None:
    site = started()
    wish(site, *(wanted(name, Tier.DISK, node=POOL.node_id(node)) for name in ("m", "n") for node in (0, 1)))
    assert len(site.said(FetchWeights)) == FETCHES_AHEAD_MAX
    site.fetched("m")
    assert len(site.said(FetchWeights)) == 1


def test_a_fetch_ahead_yields_to_an_attempt_and_goes_on_after_it() -> None:
    site = started()
    wish(site, wanted("n", Tier.DISK))
    site.assign(attempt("j", "m"))
    assert [(one.node_id, one.model_id) for one in site.said(YieldFetch)] == [(NODE, "n")]
    site.happen(FetchYielded(node_id=NODE, model_id=ModelId("n")))
    assert ahead(site) == []
    site.fetched("m")
    assert ahead(site) == ["n"], "the attempt has its weights: the link is idle again"


def test_an_attempt_joins_a_fetch_ahead_of_its_own_model() -> None:
    site = started()
    wish(site, wanted("m", Tier.DISK))
    site.assign(attempt("j", "m"))
    assert site.said(YieldFetch) == []
    assert site.said(FetchWeights) == []
    site.fetched("m")
    assert site.said(LoadReplica)


def test_an_attempt_does_not_fail_with_the_fetch_that_it_joined() -> None:
    site = started()
    wish(site, wanted("m", Tier.DISK))
    site.assign(attempt("j", "m"))
    site.fetch_failed(FailureKind.DISK_FULL)
    assert [command.ahead for command in site.said(FetchWeights)] == [False], "in its own right: others may give way now"
    assert site.history == []


def test_an_attempt_that_comes_while_its_fetch_yields_has_it_begun_again() -> None:
    site = started()
    wish(site, wanted("m", Tier.DISK))
    site.assign(attempt("j", "n", where=slot(1)))
    assert site.said(YieldFetch)
    site.assign(attempt("k", "m"))
    site.happen(FetchYielded(node_id=NODE, model_id=ModelId("m")))
    assert [command.ahead for command in site.said(FetchWeights)] == [False]


def test_nothing_is_fetched_ahead_onto_a_full_disk_but_for_what_the_assignment_lets_go() -> None:
    site = started(disk=("n", "o"))
    site.happen(NodeMeasured(node_id=NODE, host_free_bytes=0, disk_free_bytes=5 * GB, gpu_free_bytes=()))
    wish(site, wanted("m", Tier.DISK))
    assert site.said(FetchWeights) == []
    assert site.said(DeleteWeights) == []
    wish(site, wanted("m", Tier.DISK, evict="n"))
    assert [command.model_id for command in site.said(DeleteWeights)] == ["n"]


def test_a_slot_with_work_loads_nothing_ahead_and_idle_replicas_stay_unless_named() -> None:
    site = started(disk=("m", "n", "o"))
    site.models["o"] = model("o", 20)
    site.assign(attempt("j", "m"))
    site.loaded("m")
    wish(site, wanted("o", index=0))
    assert site.said(LoadReplica) == []
    site.finishes("j")
    assert site.said(LoadReplica) == []
    assert site.said(EvictReplica) == []
    wish(site, wanted("o", index=0, evict="m"))
    assert [command.model_id for command in site.said(EvictReplica)] == ["m"]
    site.evicted("m")
    assert [load.model.model_id for load in site.said(LoadReplica)] == ["o"]


def test_a_copy_loaded_ahead_and_unused_gives_way_to_an_attempt() -> None:
    site = started(disk=("m", "o"))
    site.models["o"] = model("o", 20)
    wish(site, wanted("o", index=0))
    site.loaded("o")
    site.assign(attempt("j", "m"))
    assert [command.model_id for command in site.said(EvictReplica)] == ["o"]
    site.evicted("o")
    assert [load.model.model_id for load in site.said(LoadReplica)] == ["m"]


def test_a_pinned_replica_outlasts_the_eviction_of_an_attempt_and_leaves_when_the_model_must() -> None:
    site = started(disk=("m", "o"))
    site.models["o"] = model("o", 20)
    pin = wanted("o", index=0, pin=True)
    wish(site, pin)
    assert site.said(PinWeights)[0].disk == ((ModelId("o"), site.models["o"].weights_digest),)
    site.loaded("o")
    site.assign(attempt("j", "m", evict=(ModelId("o"),)))
    assert site.end_of("j").state is AttemptState.REFUSED
    failure = site.end_of("j").failure
    assert failure is not None
    assert "pinned" in failure.message
    site.assign(removed=(key("j"),), acked_event_seq=EventSeq(1), unwanted=(pin,), evict=(ModelId("o"),))
    assert [command.model_id for command in site.said(EvictReplica)] == ["o"]
    assert site.said(PinWeights)[0].disk == ()


def test_host_memory_is_filled_one_model_at_a_time_and_reported() -> None:
    site = AgentSite()
    site.start(disk=("m", "n")).connect()
    site.machine.state.host_tier = True
    wish(site, wanted("m", Tier.HOST), wanted("n", Tier.HOST))
    assert [command.model.model_id for command in site.said(StageWeights)] == ["m"]
    digest = site.models["m"].weights_digest
    site.happen(HostMemoryChanged(node_id=NODE, models=((ModelId("m"), digest),), ended=(ModelId("m"),)))
    assert [command.model.model_id for command in site.said(StageWeights)] == ["n"]
    site.tick()
    report = site.report()
    assert report is not None
    facts = {node.node_id: node for node in report.nodes}[NODE]
    assert facts.host_models == ("m",)
    assert facts.host_tier


def test_a_fetch_is_reported_with_the_bytes_that_have_come_and_what_is_pinned() -> None:
    site = started()
    wish(site, wanted("m", Tier.DISK, pin=True))
    site.happen(FetchAdvanced(node_id=NODE, model_id=ModelId("m"), bytes_done=3 * GB))
    site.tick()
    report = site.report()
    assert report is not None
    facts = {node.node_id: node for node in report.nodes}[NODE]
    assert [(one.model_id, one.bytes_done, one.bytes_total, one.ahead) for one in facts.fetching] == [("m", 3 * GB, 10 * GB, True)]
    assert facts.pinned == ("m",)


def test_what_failed_is_tried_again_after_a_while_by_a_timer() -> None:
    site = started()
    wish(site, wanted("m", Tier.DISK))
    site.fetch_failed(FailureKind.FETCH_FAILED)
    assert site.said(FetchWeights) == []
    for _ in range(130):
        site.tick(SECOND)
        if site.said(FetchWeights):
            break
    assert ahead(site) == ["m"]


def test_a_snapshot_replaces_what_was_wanted() -> None:
    site = started()
    site.machine.state.nodes[NODE].disk_free_bytes = 0
    wish(site, wanted("m", Tier.DISK))
    site.assign(full=True, replicas=(wanted("n", Tier.DISK),), models=(site.models["n"],))
    assert [copy.model_id for copy in site.machine.state.nodes[NODE].desired.values()] == ["n"]
    assert list(site.machine.state.specs) == ["n"]


def test_a_late_or_doubled_message_changes_nothing() -> None:
    site = started(disk=("m",))
    wish(site, wanted("m", index=0))
    site.loaded("m")
    held = dict(site.machine.state.nodes[NODE].desired)
    old = site.generation
    gone = wanted("m", index=0)
    site.generation = old - 1
    base = Assignment(fleet_id=FLEET, term=site.machine.state.term, generation=Generation(old), base_generation=Generation(old - 1))
    site.assign(unwanted=(gone,), generation=base.generation, base_generation=base.base_generation)
    assert site.machine.state.nodes[NODE].desired == held
    assert site.machine.state.slots[slot()].replicas[ReplicaKey(model_id=ModelId("m"))].state is ReplicaState.WARM
