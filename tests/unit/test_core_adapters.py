"""Adapters in the core: who may use which, what sites are told, what is believed of their reports, what a removal ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model import limits
from atoll.model.attempt import AttemptState, FailureKind
from atoll.model.errors import FieldError
from atoll.model.ids import AdapterId, ModelId, SiteId
from atoll.model.job import JobState
from atoll.model.modelspec import AdapterUse
from atoll.model.site import SiteRuntime
from orchestrator.core import events
from orchestrator.core.machine import restore
from orchestrator.core.outputs import Accepted, Done, Refusal, RefusalCode, SubmitReply
from tests.unit.fleet_of_machines import GPUS, Fleet, adapter, model, pool, site, spec


def _use(*names: str) -> tuple[AdapterUse, ...]:
    return tuple(AdapterUse(adapter_id=AdapterId(name)) for name in names)


def _fleet(*adapters: str, runtime: SiteRuntime = SiteRuntime.RAY) -> Fleet:
    fleet = Fleet(site("a", pool("big", gpus=1)), models=(model("m"), replace(model("other"), family="u")), runtime=runtime)
    fleet.ask(events.AdaptersAdded, actor="t", adapters=tuple(adapter(name, "m") for name in adapters))
    return fleet


def _outcome(fleet: Fleet, **fields: object) -> Accepted | Refusal:
    reply = fleet.submit(spec(**fields))  # type: ignore[arg-type]  # fields of JobSpec
    assert isinstance(reply, SubmitReply)
    return reply.outcomes[0]


def test_a_site_is_told_the_adapters_of_the_jobs_it_is_told() -> None:
    fleet = _fleet("s1", "s2", "s3")
    accepted = _outcome(fleet, adapters=_use("s3", "s1"))
    assert isinstance(accepted, Accepted)
    told = fleet.agents[SiteId("a")].told[-1]
    assert [one.adapter_id for one in told.adapters] == ["s3", "s1"]
    assert told.adapters[1] == adapter("s1", "m")
    fleet.happen(events.ResyncRequested(site_id=SiteId("a"), session=fleet.agents[SiteId("a")].session))
    assert fleet.agents[SiteId("a")].told[-1].adapters == told.adapters


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"adapters": _use("s1", "nope")}, "adapters[1].adapter_id", "no adapter 'nope'"),
        ({"adapters": _use("s1"), "model_id": ModelId("other")}, "adapters[0].adapter_id", "fits m, not model other of family u"),
        ({"adapters": _use("figures")}, "adapters[0].adapter_id", "only a rehearsal (--simulated) can use it"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_refused_by_name(fields: dict[str, object], field: str, words: str) -> None:
    fleet = _fleet("s1")
    figures = replace(adapter("figures", "m"), weights_digest="", origin_path="")
    fleet.ask(events.AdaptersAdded, actor="t", adapters=(figures,))
    refused = _outcome(fleet, **fields)
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.field) == (RefusalCode.INVALID, field)
    assert words in refused.message


def test_an_adapter_of_a_family_fits_every_model_of_it() -> None:
    fleet = _fleet()
    fleet.ask(events.AdaptersAdded, actor="t", adapters=(adapter("wide", family="u"),))
    assert isinstance(_outcome(fleet, model_id=ModelId("other"), adapters=_use("wide")), Accepted)
    assert isinstance(_outcome(fleet, adapters=_use("wide")), Refusal)


@pytest.mark.parametrize(
    ("adapters", "field"),
    [
        (_use(*(f"s{index}" for index in range(limits.ADAPTERS_MAX + 1))), "adapters"),
        (_use("s1", "s1"), "adapters"),
        ((AdapterUse(adapter_id=AdapterId("s1"), scale_milli=10_001),), "adapters[0].scale_milli"),
        ((AdapterUse(adapter_id=AdapterId("../s")),), "adapters[0].adapter_id"),
    ],
)
def test_uses_are_few_different_and_of_a_possible_scale(adapters: tuple[AdapterUse, ...], field: str) -> None:
    with pytest.raises(FieldError) as refused:
        spec(adapters=adapters).check()
    assert refused.value.field == field


def test_a_removed_adapter_fails_the_jobs_that_wait_for_it_and_no_other() -> None:
    fleet = _fleet("s1", "s2")
    running, waiting, other = (_outcome(fleet, adapters=_use(name), prompt=name + word) for name, word in
                               (("s1", "now"), ("s1", "later"), ("s2", "later")))  # fmt: skip
    third = _outcome(fleet, adapters=_use("s1"), prompt="behind")
    assert all(isinstance(one, Accepted) for one in (running, waiting, other, third))
    states = {job_id: job.state for job_id, job in fleet.jobs.items()}
    reply = fleet.ask(events.AdapterRemoved, actor="t", reason="withdrawn", adapter_id="s1")
    assert reply == Done(changed=("s1",))
    for job_id, before in states.items():
        job = fleet.job(job_id)
        if before is JobState.QUEUED and job.spec.adapters[0].adapter_id == "s1":
            assert job.state is JobState.FAILED and job.failure is not None
            assert "adapter s1 was removed: withdrawn" in job.failure.message
        else:
            assert job.state is before
    assert JobState.QUEUED in states.values()
    key = next(key for key, told in fleet.agents[SiteId("a")].attempts.items() if told.spec.adapters[0].adapter_id == "s1")
    fleet.end_attempt("a", key, AttemptState.FAILED, FailureKind.LOAD_FAILED)
    assert fleet.job(key.job_id).state is JobState.FAILED  # nothing to try again with
    gone = fleet.ask(events.AdapterRemoved, actor="t", reason="again", adapter_id="s1")
    assert isinstance(gone, Refusal) and gone.code is RefusalCode.NOT_FOUND


def test_what_replicas_and_disks_hold_is_believed_shown_and_kept_in_a_snapshot() -> None:
    fleet = _fleet("s1", "s2")
    agent = fleet.agents[SiteId("a")]
    fleet.warm("a", "big-0", 0, "m")
    agent.loaded[("big-0", 0)], agent.disk_adapters = ("s1", "s2"), {"s1"}
    fleet.report("a")
    usage = fleet.machine.adapter_usage()
    assert (usage[AdapterId("s1")].loaded_sites, usage[AdapterId("s1")].disk_sites) == (("a",), ("a",))
    assert (usage[AdapterId("s2")].loaded_replicas, usage[AdapterId("s2")].disk_sites) == (1, ())
    twin = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
    assert twin.adapter_usage() == usage
    agent.loaded[("big-0", 0)], agent.disk_adapters = ("s2",), set()
    fleet.report("a")
    assert list(fleet.machine.adapter_usage()) == ["s2"]


def test_adapters_are_replaced_audited_and_bounded() -> None:
    fleet = _fleet("s1")
    again = fleet.ask(events.AdaptersAdded, actor="t", adapters=(adapter("s1", "m"),))
    assert again == Done()
    newer = replace(adapter("s1", "m"), rank=64)
    assert fleet.ask(events.AdaptersAdded, actor="t", adapters=(newer,)) == Done(changed=("s1",))
    assert fleet.machine.context.state.adapters[AdapterId("s1")].rank == 64
    many = tuple(adapter(f"n{index}", "m") for index in range(limits.ADAPTERS_IN_FLEET_MAX))
    full = fleet.ask(events.AdaptersAdded, actor="t", adapters=many)
    assert isinstance(full, Refusal) and full.code is RefusalCode.QUOTA
    assert len(fleet.machine.context.state.adapters) == 1


def test_a_twin_takes_adapters_that_are_known_by_their_figures() -> None:
    fleet = _fleet(runtime=SiteRuntime.TWIN)
    figures = replace(adapter("figures", "m"), weights_digest="", origin_path="")
    fleet.ask(events.AdaptersAdded, actor="t", adapters=(figures,))
    accepted = _outcome(fleet, adapters=_use("figures"), simulated=True)
    assert isinstance(accepted, Accepted)
    assert fleet.job(accepted.job_id).state is JobState.PLACED
