"""The checker of histories finds each kind of broken promise, and nothing in a history that is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from atoll.model.attempt import Artifact, Attempt, AttemptState, ResultManifest
from atoll.model.ids import AttemptKey, JobId, NodeId, Ordinal, PoolId, SiteId, SlotRef
from atoll.model.job import Job, JobState
from tests.chaos.history import Asked, History, seen_of, violations
from tests.unit.fleet_of_machines import spec


def _attempt(job_id: str, ordinal: int, state: AttemptState) -> Attempt:
    slot = SlotRef(pool_id=PoolId("p"), node_id=NodeId("p-0"), index=0)
    key = AttemptKey(JobId(job_id), Ordinal(ordinal))
    return Attempt(key=key, site_id=SiteId("a"), slot=slot, state=state, cold=False, leased_us=1, predicted_us=1)


def _done(job_id: str, key: str) -> Job:
    """A job whose second attempt won."""
    artifact = Artifact(name="0.png", media_type="image/png", bytes=1, digest=f"sha256:{job_id}")
    return Job(
        job_id=JobId(job_id),
        spec=spec(),
        state=JobState.SUCCEEDED,
        idempotency_key=key,
        payload_digest="d",
        request_id="r",
        accepted_us=1,
        attempts=(_attempt(job_id, 1, AttemptState.LOST), _attempt(job_id, 2, AttemptState.SUCCEEDED)),
        result=ResultManifest(key=AttemptKey(JobId(job_id), Ordinal(2)), artifacts=(artifact,), seed=0, simulated=True),
    )


def _right() -> History:
    """Two jobs, each asked for twice; of the second one answer was lost. The first was seen on its way."""
    jobs = [_done("j1", "k1"), _done("j2", "k2")]
    asked = [Asked(key=key, began_s=0, ended_s=1, job_id=job) for key, job in (("k1", "j1"), ("k1", "j1"), ("k2", "j2"), ("k2", ""))]
    queued = replace(jobs[0], state=JobState.QUEUED, attempts=(), result=None)
    return History(asked=asked, seen=[seen_of(queued), seen_of(jobs[0]), seen_of(jobs[0])], jobs=jobs)


def _answer_another(history: History) -> None:
    history.asked.append(replace(history.asked[0], job_id="j2"))


def _lose(history: History) -> None:
    history.jobs.pop()


def _never_end(history: History) -> None:
    history.jobs[1] = replace(history.jobs[1], state=JobState.QUEUED, attempts=(), result=None)


def _double(history: History) -> None:
    history.jobs.append(_done("j3", "k2"))


def _make_up(history: History) -> None:
    history.jobs.append(_done("j3", "k3"))


def _run_again(history: History) -> None:
    history.seen.append(replace(history.seen[-1], state=JobState.RUNNING, result=""))


def _change_result(history: History) -> None:
    history.seen[1] = replace(history.seen[1], result="j1/1 sha256:other")


def _win_twice(history: History) -> None:
    job = history.jobs[1]
    history.jobs[1] = replace(job, attempts=tuple(replace(attempt, state=AttemptState.SUCCEEDED) for attempt in job.attempts))


def _name_another_winner(history: History) -> None:
    job = history.jobs[1]
    assert job.result is not None
    history.jobs[1] = replace(job, result=replace(job.result, key=AttemptKey(JobId("j2"), Ordinal(1))))


def _skip_an_ordinal(history: History) -> None:
    history.jobs[1] = replace(history.jobs[1], attempts=history.jobs[1].attempts[1:])


def _leave_one_running(history: History) -> None:
    first, second = history.jobs[1].attempts
    history.jobs[1] = replace(history.jobs[1], attempts=(replace(first, state=AttemptState.RUNNING), second))


def test_a_history_that_is_right_breaks_no_rule() -> None:
    assert violations(_right()) == []


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_answer_another, "a key that was answered with two jobs: k1"),
        (_lose, "an accepted job that is not there: j2"),
        (_never_end, "an accepted job that has not ended: j2"),
        (_double, "two jobs of one key: t/k2"),
        (_make_up, "a job that nobody asked for: j3"),
        (_run_again, "an end that was taken back: j1"),
        (_change_result, "an end that was taken back: j1"),
        (_win_twice, "a result beside another: j2"),
        (_name_another_winner, "a result beside another: j2"),
        (_skip_an_ordinal, "attempts that are not numbered from 1, or still live at the end: j2"),
        (_leave_one_running, "attempts that are not numbered from 1, or still live at the end: j2"),
    ],
)
def test_each_broken_promise_is_found_and_named(spoil: Callable[[History], None], told: str) -> None:
    history = _right()
    spoil(history)
    assert violations(history) == [told]
