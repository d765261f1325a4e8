"""The driver: single writer around the core. Inbox -> handle -> store.commit -> perform; one timer; nothing else writes.

Decides when events are handled and when effects are performed, never which. While one commit is in flight, events go on being
handled and their Steps join the next one (group commit). A commit that was refused ends the process: another one leads. One of
unknown outcome drops the core, fails every caller and loads again from the store. Must not know gRPC or what a store is made of.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from atoll.model.ids import Term
from orchestrator.clock import FleetClock
from orchestrator.core.durable import Stored
from orchestrator.core.events import Event, RequestRef, Stopping, TimerFired, TookOver
from orchestrator.core.machine import Machine
from orchestrator.core.outputs import Answer, Command, Decision, Refusal, Reply
from orchestrator.core.sequencer import Batch, Effects, Sequencer
from orchestrator.inbox import Inbox, Lane
from orchestrator.leadership import DeposedError, regain
from orchestrator.recorder import Recorder
from orchestrator.refusals import COMMIT_LOST, OVERLOADED, RELOADING, SHUTTING_DOWN, CoreFailedError, RefusedError
from orchestrator.store.base import CommitOutcome, Store
from orchestrator.suspicion import Suspicion
from orchestrator.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

# Handling goes on for this long before the streams of the same loop get their turn: a fifth of what a caller would notice.
TURN_S: Final = 0.004
# Jobs handed in and not yet answered. At 10,000 durable submits a second, the last of them waits two seconds.
PENDING_JOBS_MAX: Final = 20_000
# A core that fails this often in this time fails for a reason that loading again does not cure.
_FAILURES_MAX: Final = 5
_FAILURES_WITHIN_S: Final = 60.0
# The first reload is at once, as far as a caller can tell; later ones leave the store time to recover.
_FIRST_PAUSE_S: Final = 0.01
_LONGEST_PAUSE_S: Final = 5.0


class CoreBrokenError(Exception):
    """The core failed again and again: the process gives up, what was accepted is in the store."""


class Surroundings(Protocol):
    """What commands and decisions reach outside the core."""

    def load(self, stored: Stored) -> None:
        """A new core begins from this; whatever was shown and every open stream is of the one before."""

    def perform(self, command: Command) -> None:
        """Carry out one command whose records are durable. Never raises, never waits."""

    def observe(self, decision: Decision) -> None:
        """Take note of one decision."""


class Driver:
    """Runs one core. `build` makes it from what the store holds."""

    def __init__(
        self,
        *,
        store: Store,
        clock: FleetClock,
        build: Callable[[Stored], Machine],
        surroundings: Surroundings,
        metrics: Metrics,
        recorder: Recorder | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._build = build
        self._surroundings = surroundings
        self._metrics = metrics
        self._recorder = recorder
        self._inbox = Inbox()
        self._sequencer = Sequencer()
        self._machine: Machine | None = None
        self._stored: Stored | None = None
        self._commit: asyncio.Task[None] | None = None
        self._outcome: CommitOutcome | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_us: int | None = None
        self._requests = itertools.count(1)
        self._waiting: dict[RequestRef, tuple[asyncio.Future[Reply], int]] = {}
        self._pending_jobs = 0
        self._failures: list[float] = []
        self._suspicion = Suspicion()
        self._stopping = asyncio.Event()
        self._told_stopping = False

    # --- what others ask of it -----------------------------------------------------------------------------------------------

    @property
    def machine(self) -> Machine:
        """The core, for its queries. Raises RefusedError while there is none."""
        if self._machine is None:
            raise RefusedError(RELOADING)
        return self._machine

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self._machine is not None and not self._stopping.is_set()

    @property
    def term(self) -> Term:
        """Under which it began last; 0: it has not yet."""
        return self._stored.term if self._stored is not None else Term(0)

    @property
    def clock(self) -> FleetClock:
        """The fleet's time."""
        return self._clock

    async def ask(self, lane: Lane, make: Callable[[RequestRef], Event], *, jobs: int = 0) -> Reply:
        """The core's answer to an event, once all that it promises is durable; a Refusal at once when there is no room.

        Raises CoreFailedError when this event made the core fail. A caller that goes away takes nothing back.
        """
        if self._stopping.is_set():
            return SHUTTING_DOWN
        if self._machine is None:
            return RELOADING
        if jobs and self._pending_jobs + jobs > PENDING_JOBS_MAX:
            self._metrics.shed(lane)
            return OVERLOADED
        request = RequestRef(next(self._requests))
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        if not self._inbox.offer(lane, make(request)):
            self._metrics.shed(lane)
            return OVERLOADED
        self._waiting[request] = (answer, jobs)
        self._pending_jobs += jobs
        return await answer

    async def tell(self, event: Event) -> None:
        """Hand in what an agent's stream brought, waiting while its lane is full: the stream's own flow control does the rest."""
        await self._inbox.put(Lane.SITES, event)

    def stop(self) -> None:
        """Admit nothing more; `run` returns once what was admitted is durable and performed."""
        self._stopping.set()
        self._inbox.arrived.set()

    # --- the loop ------------------------------------------------------------------------------------------------------------

    def begin(self, stored: Stored) -> None:
        """Build the core from what the store holds. Once, before `run`."""
        if self._stored is None:
            # One that stood by for a day must not make the fleet a day older.
            self._clock.begin_at(stored.fleet_time_us)
        self._clock.not_before(stored.fleet_time_us)
        self._stored = stored
        self._surroundings.load(stored)
        self._suspicion.forget_ended(job.job_id for job in stored.jobs)
        while not self._begun(stored):
            _log.warning("jobs_set_aside", jobs=len(self._suspicion.aside), reference=self._suspicion.reference)

    def _begun(self, stored: Stored) -> bool:
        """Whether a core has begun; if not, jobs over which it failed are set aside by the next. Raises CoreFailedError if none can be."""
        self._sequencer = Sequencer()
        self._machine = self._build(stored)
        if self._recorder is not None:
            self._recorder.began(self._machine.snapshot())
        aside = tuple(self._suspicion.aside)
        try:
            self._handle(
                TookOver(fleet_id=stored.fleet_id, term=stored.term, set_aside=aside, reference=self._suspicion.reference if aside else "")
            )
        except CoreFailedError:
            if len(self._suspicion.aside) == len(aside):
                raise
            return False
        return True

    async def run(self) -> None:
        """Handle, commit and perform until stopped. Raises DeposedError when another process leads, CoreBrokenError when it is hopeless."""
        try:
            while not self._finished():
                self._inbox.arrived.clear()
                try:
                    await self._settle_commit()
                    more = self._turn()
                except CoreFailedError as failure:
                    await self._reload(failure)
                    continue
                self._begin_commit()
                self._arm()
                if more or self._outcome is not None:
                    await asyncio.sleep(0)
                elif not self._finished():
                    await self._inbox.arrived.wait()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._commit is not None:
                await asyncio.wait({self._commit})
            self._fail_waiting(SHUTTING_DOWN)

    def _finished(self) -> bool:
        idle = not self._inbox and not self._sequencer.in_flight and not self._sequencer.waiting
        return self._stopping.is_set() and idle and (self._told_stopping or self._machine is None)

    def _turn(self) -> bool:
        """Handle what waits, for a while; whether more is left."""
        if self._machine is None:
            return False
        until = time.monotonic() + TURN_S
        deadline_us = self.machine.next_deadline()
        if deadline_us is not None and deadline_us <= self._clock.now_us():
            self._handle(TimerFired())
        while time.monotonic() < until:
            event = self._inbox.take()
            if event is None:
                self._tell_stopping()
                return False
            self._handle(event)
        return len(self._inbox) > 0

    def _tell_stopping(self) -> None:
        """Once what was admitted is handled, the core hears that it is the last."""
        if self._stopping.is_set() and not self._told_stopping:
            self._told_stopping = True
            self._handle(Stopping())

    def _handle(self, event: Event) -> None:
        now_us = self._clock.now_us()
        try:
            step = self.machine.handle(event, now_us)
        except Exception as error:
            reference = uuid.uuid4().hex
            # The event's type only: its content is the caller's.
            _log.exception("core_failed", reference=reference, event_type=type(event).__name__)
            failure = CoreFailedError(reference)
            self._suspicion.failed(self.machine.suspects(), reference, starting=isinstance(event, TookOver))
            self._fail_request(event, failure)
            raise failure from error
        if self._recorder is not None:
            self._recorder.record(now_us, event, step)
        self._sequencer.offer(step)

    # --- commit and perform --------------------------------------------------------------------------------------------------

    def _begin_commit(self) -> None:
        """Start the next commit; a batch without records only keeps the order and is performed at once."""
        while (batch := self._sequencer.next_batch()) is not None:
            if batch.records:
                self._commit = asyncio.create_task(self._write(batch))
                return
            self._perform(self._sequencer.committed())

    async def _write(self, batch: Batch) -> None:
        assert self._stored is not None
        began = time.monotonic()
        outcome = CommitOutcome.UNKNOWN
        try:
            outcome = await self._store.commit(self._stored.term, self._clock.now_us(), batch.records)
        except Exception:  # noqa: BLE001 - a store fails in its own ways; each means that the outcome is unknown
            _log.exception("commit_failed", records=len(batch.records))
        self._metrics.committed(outcome, time.monotonic() - began, len(batch.records))
        self._outcome = outcome
        self._inbox.arrived.set()

    async def _settle_commit(self) -> None:
        if self._outcome is None:
            return
        outcome, self._outcome, self._commit = self._outcome, None, None
        match outcome:
            case CommitOutcome.COMMITTED:
                self._perform(self._sequencer.committed())
            case CommitOutcome.REFUSED:
                self._sequencer.abandon()
                self._machine = None
                raise DeposedError("the store refused the write: another orchestrator took over")
            case CommitOutcome.UNKNOWN:
                await self._reload(None)

    def _perform(self, effects: Effects) -> None:
        for command in effects.commands:
            if isinstance(command, Answer):
                self._answer(command.request, command.reply)
            else:
                self._surroundings.perform(command)
        for decision in effects.decisions:
            self._surroundings.observe(decision)
        self._metrics.depths({lane: self._inbox.depth(lane) for lane in Lane}, self._pending_jobs)

    async def _reload(self, failure: CoreFailedError | None) -> None:
        """Drop the core and begin again from the store: what it holds is what was promised."""
        _log.error("core_dropped", reference=failure.reference if failure else "", waiting=len(self._waiting))
        self._sequencer.abandon()
        self._machine = None
        if self._commit is not None:
            await asyncio.wait({self._commit})
            self._commit, self._outcome = None, None
        self._inbox.clear()
        self._fail_waiting(COMMIT_LOST)
        await self._pause(failure)
        stored = await regain(self._store, self._stopping)
        self._inbox.clear()
        if stored is None:
            self._sequencer = Sequencer()
            return
        self.begin(stored)
        _log.warning("core_loaded", term=stored.term, jobs=len(stored.jobs))

    async def _pause(self, failure: CoreFailedError | None) -> None:
        """Longer after each failure of the last minute: a full disk stays full, and a core that always fails ends the process."""
        now = time.monotonic()
        self._failures = [at for at in self._failures if now - at < _FAILURES_WITHIN_S] + [now]
        if failure is not None and len(self._failures) > _FAILURES_MAX:
            raise CoreBrokenError(f"the core was dropped {len(self._failures)} times within {_FAILURES_WITHIN_S:.0f} s")
        pause_s = min(_FIRST_PAUSE_S * 2 ** (len(self._failures) - 1), _LONGEST_PAUSE_S)
        try:
            async with asyncio.timeout(pause_s):
                await self._stopping.wait()
        except TimeoutError:
            return

    # --- callers and timer ---------------------------------------------------------------------------------------------------

    def _answer(self, request: RequestRef, reply: Reply) -> None:
        answer, jobs = self._waiting.pop(request, (None, 0))
        self._pending_jobs -= jobs
        if answer is not None and not answer.done():
            answer.set_result(reply)

    def _fail_waiting(self, refusal: Refusal) -> None:
        for request in list(self._waiting):
            self._answer(request, refusal)

    def _fail_request(self, event: Event, failure: CoreFailedError) -> None:
        request = getattr(event, "request", None)
        if request in self._waiting:
            answer, jobs = self._waiting.pop(request)
            self._pending_jobs -= jobs
            if not answer.done():
                answer.set_exception(failure)

    def _arm(self) -> None:
        """One timer, at the core's next deadline."""
        deadline_us = self._machine.next_deadline() if self._machine is not None else None
        if deadline_us == self._timer_us:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_us = None, deadline_us
        if deadline_us is not None:
            self._timer = asyncio.get_running_loop().call_later(self._clock.sleep_s(deadline_us), self._ring)

    def _ring(self) -> None:
        self._timer, self._timer_us = None, None
        self._inbox.arrived.set()
