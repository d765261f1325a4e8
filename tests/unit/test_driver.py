"""The driver around the real core and the real embedded store, with a store that misbehaves on demand."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from atoll.model.ids import JobId, Term
from orchestrator import driver as drivers
from orchestrator.clock import FleetClock
from orchestrator.core.durable import Stored
from orchestrator.core.events import Event, JobsSubmitted, ModelsAdded, RequestRef, SitesApplied, Submission
from orchestrator.core.machine import Machine, new_machine
from orchestrator.core.outputs import Accepted, Done, Record, Refusal, RefusalCode, Reply, Step, SubmitReply
from orchestrator.core.placement.policy import Policy
from orchestrator.driver import CoreBrokenError, Driver
from orchestrator.effects import Surrounding
from orchestrator.inbox import Lane
from orchestrator.leadership import DeposedError
from orchestrator.readers import ReadModel
from orchestrator.refusals import CoreFailedError
from orchestrator.sessions import SessionTable
from orchestrator.store.base import CommitOutcome
from orchestrator.store.sqlite import SqliteStore
from orchestrator.telemetry.metrics import Metrics
from orchestrator.watchers import AuditWatchers, JobWatchers
from tests.unit.fleet_of_machines import GPUS, model, site, spec


class MoodyStore(SqliteStore):
    """The embedded store; `moods` say what the next commits do, `gate` holds them up."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.moods: list[str] = []
        self.commits: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def commit(self, term: Term, now_us: int, records: Sequence[Record]) -> CommitOutcome:
        await self.gate.wait()
        self.commits.append(len(records))
        mood = self.moods.pop(0) if self.moods else ""
        if mood == "lost before":
            return CommitOutcome.UNKNOWN
        if mood == "raises":
            raise OSError("the disk is gone")
        outcome = await super().commit(term, now_us, records)
        return CommitOutcome.UNKNOWN if mood == "lost after" else outcome


class Touchy(Machine):
    """The real core, which trips over jobs of one name."""

    def handle(self, event: Event, now_us: int) -> Step:
        if isinstance(event, JobsSubmitted) and any(one.job_id == "j-poison" for one in event.submissions):
            raise ZeroDivisionError("planted")
        return super().handle(event, now_us)


class Bench:
    """One driver with everything around it."""

    def __init__(self, path: Path, build: Callable[[Stored], Machine] | None = None, clock: FleetClock | None = None) -> None:
        self.store = MoodyStore(path / "store.sqlite")
        self.readers = ReadModel()
        self.watchers = JobWatchers()
        self.terms: list[Term] = []
        metrics = Metrics()
        self.surrounding = Surrounding(
            readers=self.readers, watchers=self.watchers, audit=AuditWatchers(), sessions=SessionTable(), metrics=metrics
        )

        def made(stored: Stored) -> Machine:
            self.terms.append(stored.term)
            return build(stored) if build else new_machine(stored, Policy(), GPUS)

        self.driver = Driver(store=self.store, clock=clock or FleetClock(), build=made, surroundings=self.surrounding, metrics=metrics)

    async def submit(self, *job_ids: str, key: str = "") -> Reply:
        """Hand in jobs."""
        submissions = tuple(
            Submission(job_id=JobId(one), spec=spec(), idempotency_key=key or f"k-{one}", payload_digest="", request_id="")
            for one in job_ids
        )

        def submitted(request: RequestRef) -> JobsSubmitted:
            return JobsSubmitted(request=request, submissions=submissions)

        return await self.driver.ask(Lane.SUBMITS, submitted, jobs=len(job_ids))

    async def applied(self) -> Reply:
        """An operator's request."""
        return await self.driver.ask(
            Lane.OPERATORS,
            lambda ref: SitesApplied(request=ref, actor="t", reason="", sites=(site("a"),), links=()),
        )


@asynccontextmanager
async def bench(path: Path, build: Callable[[Stored], Machine] | None = None, *, ends: bool = True) -> AsyncIterator[Bench]:
    """A driver that runs, with model `m`; unless it `ends` otherwise, it must end well."""
    one = Bench(path, build)
    one.driver.begin(await one.store.take_over())
    running = asyncio.create_task(one.driver.run())
    try:
        await one.driver.ask(Lane.OPERATORS, lambda ref: ModelsAdded(request=ref, actor="t", models=(model("m"),)))
        yield one
    finally:
        one.store.gate.set()
        one.driver.stop()
        done = await asyncio.gather(running, return_exceptions=not ends)
        await one.store.close()
    assert ends or isinstance(done[0], Exception)


async def test_many_requests_share_few_commits_and_each_gets_its_own_answer(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        before = len(b.store.commits)
        replies = await asyncio.gather(*(b.submit(f"j-{index}") for index in range(500)))
        accepted = [reply.outcomes[0] for reply in replies if isinstance(reply, SubmitReply)]
        assert accepted == [Accepted(job_id=JobId(f"j-{index}")) for index in range(500)]
        assert len(b.store.commits) - before < 100
        assert b.readers.live_count() == 500


async def test_nothing_is_shown_before_it_is_durable(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.store.gate.clear()
        asked = asyncio.create_task(b.submit("j-1"))
        watcher = b.watchers.open(None, frozenset())
        for _ in range(50):
            await asyncio.sleep(0)
        assert not asked.done()
        assert b.readers.job(JobId("j-1")) is None
        assert await watcher.next(0.01) is None
        b.store.gate.set()
        assert isinstance(await asked, SubmitReply)
        assert b.readers.job(JobId("j-1")) is not None
        assert await watcher.next(1) is not None
        b.watchers.close(watcher, None, frozenset())


@pytest.mark.parametrize("mood", ["lost before", "lost after", "raises"])
async def test_a_commit_that_nobody_confirms_fails_its_callers_and_the_store_says_what_is_true(tmp_path: Path, mood: str) -> None:
    async with bench(tmp_path) as b:
        assert isinstance(await b.submit("j-0"), SubmitReply)
        b.store.moods = [mood]
        reply = await b.submit("j-1", key="one")
        assert isinstance(reply, Refusal)
        assert reply.code is RefusalCode.UNAVAILABLE
        assert reply.retry_after_ms > 0
        # Asked again with the same key, as the refusal says.
        while isinstance(reply, Refusal):
            await asyncio.sleep(0.01)
            reply = await b.submit("j-2", key="one")
        assert isinstance(reply, SubmitReply)
        existed = mood == "lost after"
        assert reply.outcomes == (Accepted(job_id=JobId("j-1" if existed else "j-2"), existing=existed),)
        assert b.terms == [1, 2]
        assert b.readers.job(JobId("j-0")) is not None
        assert b.readers.live_count() == 2


async def test_a_deposed_driver_performs_nothing_and_ends(tmp_path: Path) -> None:
    async with bench(tmp_path, ends=False) as b:
        with sqlite3.connect(tmp_path / "store.sqlite") as other:
            other.execute("UPDATE fleet SET term = term + 1")
        other.close()
        reply = await b.submit("j-1")
        assert isinstance(reply, Refusal)
        assert reply.code is RefusalCode.UNAVAILABLE
        assert b.readers.job(JobId("j-1")) is None


async def test_deposed_is_said_by_its_own_error(tmp_path: Path) -> None:
    b = Bench(tmp_path)
    b.driver.begin(await b.store.take_over())
    with sqlite3.connect(tmp_path / "store.sqlite") as other:
        other.execute("UPDATE fleet SET term = term + 1")
    other.close()
    asked = asyncio.create_task(b.applied())
    with pytest.raises(DeposedError):
        await b.driver.run()
    assert isinstance(await asked, Refusal)
    await b.store.close()


async def test_submits_are_shed_while_operators_and_sites_are_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "PENDING_JOBS_MAX", 10)
    async with bench(tmp_path) as b:
        b.store.gate.clear()
        waiting = [asyncio.create_task(b.submit(f"j-{index}")) for index in range(10)]
        await asyncio.sleep(0)
        shed = await b.submit("j-10")
        assert isinstance(shed, Refusal)
        assert (shed.code, shed.retry_after_ms > 0) == (RefusalCode.UNAVAILABLE, True)
        operator = asyncio.create_task(b.applied())
        await asyncio.sleep(0.01)
        b.store.gate.set()
        assert isinstance(await operator, Done)
        assert all(isinstance(reply, SubmitReply) for reply in await asyncio.gather(*waiting))
        assert isinstance(await b.submit("j-11"), SubmitReply)


async def test_a_core_that_fails_costs_the_one_request_and_says_a_reference_only(tmp_path: Path) -> None:
    def touchy(stored: Stored) -> Machine:
        return Touchy(new_machine(stored, Policy(), GPUS).context)

    async with bench(tmp_path, touchy) as b:
        assert isinstance(await b.submit("j-1"), SubmitReply)
        with pytest.raises(CoreFailedError) as failed:
            await b.submit("j-poison")
        assert "planted" not in str(failed.value)
        reply = await b.submit("j-2")
        while isinstance(reply, Refusal):
            await asyncio.sleep(0.01)
            reply = await b.submit("j-2")
        assert b.readers.live_count() == 2


async def test_a_core_that_fails_again_and_again_ends_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "_LONGEST_PAUSE_S", 0.01)

    def touchy(stored: Stored) -> Machine:
        return Touchy(new_machine(stored, Policy(), GPUS).context)

    b = Bench(tmp_path, touchy)
    b.driver.begin(await b.store.take_over())
    running = asyncio.create_task(b.driver.run())
    while not running.done():
        try:
            await asyncio.wait_for(b.submit("j-poison"), 0.05)
        except (CoreFailedError, TimeoutError):
            await asyncio.sleep(0)
    with pytest.raises(CoreBrokenError):
        await running
    await b.store.close()


async def test_stopping_makes_what_was_admitted_durable_and_admits_nothing_more(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        b.store.gate.clear()
        waiting = [asyncio.create_task(b.submit(f"j-{index}")) for index in range(20)]
        await asyncio.sleep(0)
        b.driver.stop()
        refused = await b.submit("j-late")
        assert isinstance(refused, Refusal)
        assert "shutting down" in refused.message
        b.store.gate.set()
        assert all(isinstance(reply, SubmitReply) for reply in await asyncio.gather(*waiting))
    again = SqliteStore(tmp_path / "store.sqlite")
    stored = await again.take_over()
    assert len(stored.jobs) == 20
    await again.close()


async def test_timers_fire_without_any_other_event(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        submission = Submission(job_id=JobId("j-1"), spec=spec(deadline_ms=50), idempotency_key="k", payload_digest="", request_id="")
        await b.driver.ask(Lane.SUBMITS, lambda ref: JobsSubmitted(request=ref, submissions=(submission,)), jobs=1)
        watcher = b.watchers.open(None, frozenset())
        change = await watcher.next(10)
        assert change is not None
        assert change[1].state == "expired"
        b.watchers.close(watcher, None, frozenset())


def test_fleet_time_goes_on_where_it_was_and_never_back() -> None:
    ticks = iter([0, 1_000_000, 3_000_000, 2_000_000, 5_000_000])
    clock = FleetClock(start_us=500, time_scale_milli=2_000, monotonic_ns=lambda: next(ticks))
    assert clock.now_us() == 500 + 2_000
    assert clock.now_us() == 500 + 6_000
    assert clock.now_us() == 500 + 6_000
    clock.not_before(100_000)
    assert clock.real_s(2_000_000) == 1.0


def test_fleet_time_is_moved_forward_by_what_the_store_has_seen() -> None:
    clock = FleetClock(monotonic_ns=lambda: 0)
    clock.not_before(42_000_000)
    assert clock.now_us() == 42_000_000
    clock.not_before(1)
    assert clock.now_us() == 42_000_000
    assert clock.sleep_s(43_000_000) == 1.0


async def test_the_fleet_is_no_older_for_whoever_stood_by_for_a_day(tmp_path: Path) -> None:
    now_ns = 0
    clock = FleetClock(monotonic_ns=lambda: now_ns)
    one = Bench(tmp_path, clock=clock)
    now_ns = 86_400 * 10**9
    assert clock.now_us() == 86_400 * 10**6
    stored = await one.store.take_over()
    one.driver.begin(stored)
    assert clock.now_us() == stored.fleet_time_us == 0
    # A core that is loaded again goes on by the same clock.
    now_ns += 5 * 10**9
    one.driver.begin(stored)
    assert clock.now_us() == 5 * 10**6
    await one.store.close()
