"""Poison: a job that kills the process of its slot at two sites, alone each time, is tried no more; the unlucky ones go on."""

from __future__ import annotations

from atoll.model.attempt import AttemptState, Failure, FailureKind
from atoll.model.audit import Severity
from atoll.model.ids import AttemptKey, EventSeq, SiteId
from atoll.model.job import Constraints, JobState
from atoll.model.report import AttemptEvent
from orchestrator.core import events
from orchestrator.core.outputs import AppendAudit
from tests.unit.fleet_of_machines import Fleet, model, pool, site, spec

KILLED = FailureKind.RUNTIME_LOST


def _fleet(*names: str) -> Fleet:
    fleet = Fleet(*(site(name, pool("p", gpus=2)) for name in names), models=(model("m"),))
    for name in names:
        fleet.agents[SiteId(name)].disk.add("m")
        for gpu in range(2):
            fleet.warm(name, "p-0", gpu, "m")
        fleet.report(name)
    return fleet


def _placed(fleet: Fleet, prompt: str) -> tuple[SiteId, AttemptKey]:
    """Where the job's live attempt is, once its back-off is over."""
    job = next(one for one in fleet.jobs.values() if one.spec.prompt == prompt)
    for _ in range(20):
        if job.state is JobState.PLACED:
            break
        fleet.wait(1, reporting=tuple(str(name) for name in fleet.agents))
        job = fleet.jobs[job.job_id]
    assert job.state is JobState.PLACED
    return job.attempts[-1].site_id, job.attempts[-1].key


def _poisoned(fleet: Fleet) -> list[tuple[str, Severity]]:
    told = [record.event for step in fleet.steps for record in step.records if isinstance(record, AppendAudit)]
    return [(one.subject, one.severity) for one in told if one.verb == "job_poisoned"]


def _die(fleet: Fleet, name: SiteId, *keys: AttemptKey) -> None:
    """The site's agent tells in one message that the processes of all of these died."""
    agent, died = fleet.agents[name], []
    for key in keys:
        agent.event_seq += 1
        failure = Failure(kind=KILLED, message="the node went down")
        died.append(AttemptEvent(seq=EventSeq(agent.event_seq), key=key, state=AttemptState.FAILED, failure=failure))
    fleet.happen(events.AttemptsEnded(site_id=name, session=agent.session, events=tuple(died)))


def test_a_job_that_kills_its_process_at_two_sites_is_tried_no_more_and_says_so() -> None:
    fleet = _fleet("a", "b", "c")
    fleet.submit(spec(prompt="kills"))
    where = []
    for _ in range(2):
        name, key = _placed(fleet, "kills")
        where.append(name)
        fleet.end_attempt(name, key, AttemptState.FAILED, KILLED)
    (job,) = fleet.jobs.values()
    assert job.state is JobState.FAILED and len(job.attempts) == 2
    assert job.failure is not None and job.failure.kind is KILLED
    assert job.failure.message.startswith(f"poison: the process that worked for it died at {where[0]} and {where[1]}")
    assert _poisoned(fleet) == [(f"job/{job.job_id}", Severity.WARNING)]


def test_who_dies_with_others_is_unlucky_and_tried_again() -> None:
    fleet = _fleet("a", "b", "c")
    fleet.submit(spec(prompt="kills"))
    for number in range(2):
        name, key = _placed(fleet, "kills")
        fleet.submit(spec(prompt=f"beside {number}", constraints=Constraints(sites=(name,))))
        _, other = _placed(fleet, f"beside {number}")
        _die(fleet, name, key, other)
    _placed(fleet, "kills")
    assert not _poisoned(fleet)


def test_two_deaths_at_one_site_may_be_a_broken_node_of_it() -> None:
    fleet = _fleet("a")
    fleet.submit(spec(prompt="kills"))
    for _ in range(3):
        name, key = _placed(fleet, "kills")
        fleet.end_attempt(name, key, AttemptState.FAILED, KILLED)
    _placed(fleet, "kills")
    assert not _poisoned(fleet)


def test_other_failures_at_two_sites_are_no_deaths() -> None:
    fleet = _fleet("a", "b", "c")
    fleet.submit(spec(prompt="fails"))
    for kind in (FailureKind.EXECUTION_FAILED, KILLED):
        name, key = _placed(fleet, "fails")
        fleet.end_attempt(name, key, AttemptState.FAILED, kind)
    _placed(fleet, "fails")
    assert not _poisoned(fleet)
