"""Watchers and the read model: numbering, resuming, cutting off the slow, and what readers may see."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.ids import ChangeSeq, FleetId, JobId, TenantId, Term
from atoll.model.job import Job, JobState
from orchestrator import readers as read_models
from orchestrator.core.durable import Stored
from orchestrator.readers import ReadModel
from orchestrator.refusals import RELOADING, RefusedError
from orchestrator.watchers import RING_MAX, JobWatchers
from tests.unit.fleet_of_machines import spec

EVERYTHING: frozenset[JobId] = frozenset()


def a_job(name: str, accepted_us: int = 1, state: JobState = JobState.QUEUED, tenant: str = "t") -> Job:
    """A job without attempts."""
    return Job(
        job_id=JobId(name), spec=spec(tenant=TenantId(tenant)), state=state, idempotency_key="k", payload_digest="",
        request_id="", accepted_us=accepted_us,
    )  # fmt: skip


async def test_a_watcher_hears_what_concerns_it_in_order_and_nothing_else() -> None:
    watchers = JobWatchers()
    watchers.restart(Term(1), RELOADING)
    one = watchers.open(None, frozenset({JobId("a")}))
    tenant = watchers.open(TenantId("u"), EVERYTHING)
    all_of_it = watchers.open(None, EVERYTHING)
    for job in (a_job("a"), a_job("b", tenant="u"), a_job("a", state=JobState.CANCELLED)):
        watchers.publish(job)
    heard = {
        name: [change[1].job_id for change in [await watcher.next(1) for _ in range(count)] if change]
        for name, watcher, count in (("one", one, 2), ("tenant", tenant, 1), ("all", all_of_it, 3))
    }
    assert heard == {"one": ["a", "a"], "tenant": ["b"], "all": ["a", "b", "a"]}
    assert await one.next(0.001) is None
    assert await tenant.next(0.001) is None


async def test_a_slow_watcher_is_cut_off_and_told_to_resume_while_others_go_on() -> None:
    watchers = JobWatchers()
    slow = watchers.open(None, EVERYTHING)
    quick = watchers.open(None, EVERYTHING)
    for index in range(10_000):
        watchers.publish(a_job(f"j{index}"))
        assert await quick.next(1) is not None
    with pytest.raises(RefusedError, match="resume"):
        await slow.next(1)


def test_a_replay_gives_what_was_missed_or_says_that_it_cannot() -> None:
    watchers = JobWatchers()
    watchers.restart(Term(3), RELOADING)
    start = watchers.seq
    for index in range(5):
        watchers.publish(a_job(f"j{index}", tenant="tu"[index % 2]))
    assert [job.job_id for _, job in watchers.replay(start, lambda _: True) or ()] == ["j0", "j1", "j2", "j3", "j4"]
    missed = watchers.replay(ChangeSeq(start + 2), lambda job: job.spec.tenant == "t")
    assert missed is not None
    assert [(seq - start, job.job_id) for seq, job in missed] == [(3, "j2"), (5, "j4")]
    assert watchers.replay(watchers.seq, lambda _: True) == []
    # Of a term before, and never given out.
    assert watchers.replay(ChangeSeq(start - 1), lambda _: True) is None
    assert watchers.replay(ChangeSeq(watchers.seq + 1), lambda _: True) is None
    for index in range(RING_MAX):
        watchers.publish(a_job(f"k{index}"))
    assert watchers.replay(start, lambda _: True) is None
    assert len(watchers.replay(ChangeSeq(start + 5), lambda _: True) or ()) == RING_MAX


def test_numbers_grow_over_terms_whatever_happened_in_between() -> None:
    watchers = JobWatchers()
    watchers.restart(Term(1), RELOADING)
    for index in range(1_000):
        watchers.publish(a_job(f"j{index}"))
    last = watchers.seq
    later = JobWatchers()
    later.restart(Term(2), RELOADING)
    assert later.seq > last


def _loaded(*jobs: Job) -> ReadModel:
    readers = ReadModel()
    readers.load(Stored(fleet_id=FleetId("f"), term=Term(1), fleet_time_us=0, last_audit_seq=ChangeSeq(0), jobs=jobs, ended_count=2))
    return readers


def test_live_jobs_are_listed_newest_first_whatever_the_order_they_came_in() -> None:
    readers = _loaded(a_job("b", 20), a_job("a", 10))
    readers.put_job(a_job("d", 40))
    readers.put_job(a_job("c", 30, tenant="u"))
    readers.put_job(a_job("d", 40, JobState.PLACED))
    assert [job.job_id for job in readers.live(None)] == ["d", "c", "b", "a"]
    assert [job.job_id for job in readers.live(None, (30, JobId("c")))] == ["b", "a"]
    assert [job.job_id for job in readers.live(TenantId("u"))] == ["c"]


def test_an_ended_job_leaves_the_live_ones_and_terminal_is_final() -> None:
    readers = _loaded(a_job("a"))
    done = replace(a_job("a"), state=JobState.SUCCEEDED, ended_us=9)
    readers.put_job(done)
    readers.put_job(a_job("a", state=JobState.RUNNING))
    assert readers.job(JobId("a")) == done
    assert not list(readers.live(None))
    assert (readers.live_count(), readers.ended_count) == (0, 3)


def test_ended_jobs_are_bounded_and_order_is_kept_through_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_models, "RECENT_MAX", 10)
    readers = _loaded()
    for index in range(5_000):
        readers.put_job(a_job(f"j{index:05}", index))
    for index in range(0, 5_000, 2):
        readers.put_job(a_job(f"j{index:05}", index, JobState.CANCELLED))
    assert len(list(readers.recent(None))) == 10
    assert readers.job(JobId("j00000")) is None
    assert [job.job_id for job in readers.live(None)] == [f"j{index:05}" for index in range(4_999, 0, -2)]
    assert sum(readers.counts.values()) == 2_500
