"""The driver: single writer around the agent's core. Inbox -> handle -> keep records -> perform; one timer; nothing else writes.

Decides when events are handled and when effects are performed, never which. While records are being written, events go on being
handled and their steps join the next write. Must not know gRPC, nor what executes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol, assert_never

import structlog

from agents.clock import AgentClock
from agents.core.events import AgentEvent, AssignmentReceived, SessionClosed, SessionOpened, TimerFired
from agents.core.machine import AgentMachine
from agents.core.outputs import (
    AdaptReplica,
    AgentCommand,
    AgentRecord,
    AgentStep,
    DeleteWeights,
    EvictReplica,
    FetchAdapter,
    FetchWeights,
    LoadReplica,
    OutboxAppended,
    PinWeights,
    RefuseOrchestrator,
    RenewAttempts,
    RequestResync,
    RunAttempt,
    SendEvents,
    SendReport,
    StageWeights,
    StopAttempt,
    YieldFetch,
)
from agents.journal import Journal
from agents.runtime.base import Runtime
from agents.telemetry import Metrics
from atoll.model.assignment import Assignment
from atoll.model.attempt import AttemptState
from atoll.model.report import Welcome
from atoll.model.site import SiteRuntime

_log = structlog.get_logger(__name__)

# Events handled before the streams of the same loop get their turn.
_TURN_EVENTS: Final = 64
# A timer further away is armed again on the way there.
_LONGEST_SLEEP_S: Final = 3_600.0

Upward = SendReport | SendEvents | RequestResync


class Stream(Protocol):
    """The open stream to the orchestrator, as the driver sees it."""

    def send(self, message: Upward) -> None:
        """Queue a message; a stream that is stuck closes itself."""

    def refuse(self, message: str, *, final: bool) -> None:
        """Close: this orchestrator has nothing to say here."""


class AgentDriver:
    """Runs one core."""

    def __init__(self, *, machine: AgentMachine, journal: Journal, runtime: Runtime, clock: AgentClock, metrics: Metrics) -> None:
        self.machine = machine
        self._journal = journal
        self._runtime = runtime
        self._clock = clock
        self._metrics = metrics
        self._site = machine.state.site_id
        self._log = _log.bind(site=self._site)
        # A twin ends thousands of attempts a second: a line for each would be the work.
        self._chatty = runtime.kind is not SiteRuntime.TWIN
        self._stream: Stream | None = None
        self._inbox: deque[AgentEvent] = deque()
        self._steps: list[AgentStep] = []
        self._writing: asyncio.Future[None] | None = None
        self._turn: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_us: int | None = None
        self._closed = False
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # --- what others ask of it -----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bring up the runtime and let the core begin. Raises AtollError when the runtime cannot work."""
        self.feed(await self._runtime.start(self.feed))

    def feed(self, event: AgentEvent) -> None:
        """Hand in an event. Never handled inside the call: a runtime may call this while it performs a command."""
        self._inbox.append(event)
        if self._turn is None and not self._closed:
            self._turn = asyncio.get_running_loop().call_soon(self._take_turn)

    def opened(self, stream: Stream, welcome: Welcome) -> None:
        """The orchestrator answered on this stream. Raises AtollError when the runtime cannot work as it was told."""
        self._runtime.welcome(welcome)
        self._clock.set_scale(welcome.time_scale_milli)
        self._stream = stream
        self.feed(SessionOpened(welcome=welcome))

    def assigned(self, stream: Stream, assignment: Assignment) -> None:
        """An assignment came down a stream."""
        if stream is self._stream:
            self.feed(AssignmentReceived(assignment=assignment))

    def closed(self, stream: Stream) -> None:
        """A stream ended."""
        if stream is self._stream:
            self._stream = None
            self.feed(SessionClosed())

    async def close(self) -> None:
        """Handle nothing more; returns once what was handled is kept."""
        self._closed = True
        for handle in (self._turn, self._timer):
            if handle is not None:
                handle.cancel()
        if self._writing is not None:
            await asyncio.wait({self._writing})
        self._settle()
        if not self.failure.done():
            self.failure.cancel()

    # --- the loop ------------------------------------------------------------------------------------------------------------

    def _take_turn(self) -> None:
        self._turn = None
        try:
            for _ in range(_TURN_EVENTS):
                if not self._inbox:
                    break
                self._handle(self._inbox.popleft())
            self._settle()
            self._arm()
        except Exception as error:  # noqa: BLE001 - a core or a runtime that raises has a bug: end in a supervisor's view, not half a step on
            self._log.exception("agent_failed")
            self._closed = True
            if not self.failure.done():
                self.failure.set_exception(error)
            return
        if self._inbox and self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._take_turn)

    def _handle(self, event: AgentEvent) -> None:
        step = self.machine.handle(event, self._clock.now_us())
        self._metrics.handled(self._site, step)
        for notice in step.notices:
            self._log.warning("noticed", notice=notice, event_type=type(event).__name__)
        if step.records or step.commands:
            self._steps.append(step)

    def _settle(self) -> None:
        """Perform what may be performed, and begin to write what must be written first."""
        while self._steps and self._writing is None:
            steps, self._steps = self._steps, []
            records = tuple(record for step in steps for record in step.records)
            self._writing = self._journal.begin(records) if records else None
            if self._writing is not None:
                self._writing.add_done_callback(lambda _, steps=steps, records=records: self._written(steps, records))  # type: ignore[misc]
                return
            self._perform_all(steps, records)

    def _written(self, steps: list[AgentStep], records: tuple[AgentRecord, ...]) -> None:
        written, self._writing = self._writing, None
        if written is None or written.cancelled() or written.exception() is not None or self._closed:
            return
        self._perform_all(steps, records)
        self._settle()
        self._arm()

    def _perform_all(self, steps: list[AgentStep], records: tuple[AgentRecord, ...]) -> None:
        for record in records:
            if isinstance(record, OutboxAppended):
                self._tell_end(record)
        for step in steps:
            for command in step.commands:
                self._perform(command)

    def _perform(self, command: AgentCommand) -> None:
        match command:
            case SendReport() | SendEvents() | RequestResync():
                if self._stream is not None:
                    self._stream.send(command)
            case RefuseOrchestrator(message=message, final=final):
                if self._stream is not None:
                    self._stream.refuse(message, final=final)
            case RunAttempt():
                if self._chatty:
                    self._log.info("attempt_begins", attempt=str(command.key), request_id=command.request_id, model=command.model.model_id)
                self._runtime.perform(command)
            case FetchWeights() | YieldFetch() | PinWeights() | StageWeights() | DeleteWeights() | FetchAdapter():
                self._runtime.perform(command)
            case LoadReplica() | AdaptReplica() | EvictReplica() | StopAttempt() | RenewAttempts():
                self._runtime.perform(command)
            case _:
                assert_never(command)

    def _tell_end(self, record: OutboxAppended) -> None:
        event = record.event
        self._metrics.ended(self._site, event)
        if event.state is AttemptState.SUCCEEDED and not self._chatty:
            return
        failure = event.failure
        tell = self._log.info if failure is None else self._log.warning
        tell(
            "attempt_ended",
            attempt=str(event.key),
            state=event.state.value,
            kind=failure.kind.value if failure is not None else None,
            message=failure.message if failure is not None else None,
        )

    # --- the timer -----------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        deadline_us = self.machine.next_deadline()
        if deadline_us == self._timer_us and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_us = None, deadline_us
        if deadline_us is not None and not self._closed:
            delay_s = min(max(self._clock.real_s(deadline_us - self._clock.now_us()), 0.0), _LONGEST_SLEEP_S)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._ring)

    def _ring(self) -> None:
        self._timer, self._timer_us = None, None
        self.feed(TimerFired())
