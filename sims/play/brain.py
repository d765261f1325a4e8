"""The orchestrator's driver in virtual time: its machine, the order of effects, a store that takes a while, and the streams of sites.

Decides when events are handled and when effects are performed, as the live driver does: while one commit is in flight, events go on being
handled and their steps join the next one. Handling takes no time. Must not know what is decided.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from atoll.model.assignment import Assignment
from atoll.model.ids import ChangeSeq, FleetId, SiteId, Term
from atoll.model.job import Job
from atoll.model.report import SiteHello, Welcome
from orchestrator.core import invariants
from orchestrator.core.durable import Stored
from orchestrator.core.events import Event, RequestRef, SessionRef, SiteConnected, SiteDisconnected, TimerFired, TookOver
from orchestrator.core.machine import new_machine
from orchestrator.core.outputs import Answer, CloseSession, Decision, PublishJob, Reply, SendAssignment
from orchestrator.core.sequencer import Effects, Sequencer
from sims.play.scenario import Scenario
from sims.play.timeline import Timeline, Timer

FLEET_ID: Final = FleetId("fleet-simulated")
_TERM: Final = Term(1)


class Downward(Protocol):
    """A site's end of its stream."""

    def welcomed(self, welcome: Welcome) -> None:
        """The orchestrator answered the hello; it will come to the site when it has travelled."""

    def send(self, assignment: Assignment) -> None:
        """As above, an assignment."""

    def refused(self) -> None:
        """The orchestrator ended the stream."""


class Brain:
    """One orchestrator that never fails. `published` hears of every job as readers see it, `observe` of every decision."""

    def __init__(
        self,
        scenario: Scenario,
        timeline: Timeline,
        *,
        published: Callable[[Job], None],
        observe: Callable[[Decision], None] | None = None,
        checked: bool = False,
    ) -> None:
        stored = Stored(fleet_id=FLEET_ID, term=_TERM, fleet_time_us=0, last_audit_seq=ChangeSeq(0))
        self.machine = new_machine(stored, scenario.policy, scenario.gpus)
        self._timeline = timeline
        self._commit_us = scenario.commit_us
        self._time_scale_milli = scenario.time_scale_milli
        self._report_interval_ms = scenario.policy.report_interval_ms
        self._published = published
        self._observe = observe
        self._checked = checked
        self._sequencer = Sequencer()
        self._numbers = 0
        self._waiting: dict[RequestRef, Callable[[Reply], None]] = {}
        self._sessions: dict[SessionRef, tuple[SiteId, Downward]] = {}
        self._timer: Timer | None = None
        self._timer_us = 0
        self.handled = 0
        self.feed(TookOver(fleet_id=FLEET_ID, term=_TERM))

    # --- what comes in ---------------------------------------------------------------------------------------------------------

    def ask(self, make: Callable[[RequestRef], Event], answered: Callable[[Reply], None]) -> None:
        """A request; the answer comes once all that it promises is durable."""
        self._numbers += 1
        reference = RequestRef(self._numbers)
        self._waiting[reference] = answered
        self.feed(make(reference))

    def connected(self, site_id: SiteId, hello: SiteHello, stream: Downward) -> SessionRef:
        """A site's hello arrived on a new stream."""
        self._numbers += 1
        session = SessionRef(self._numbers)
        self._sessions[session] = (site_id, stream)
        stream.welcomed(
            Welcome(
                fleet_id=FLEET_ID,
                term=_TERM,
                time_scale_milli=self._time_scale_milli,
                report_interval_ms=self._report_interval_ms,
                origin_url="",
                artifacts_url="",
            )
        )
        self.feed(SiteConnected(site_id=site_id, session=session, hello=hello))
        return session

    @property
    def commits(self) -> bool:
        """Whether steps wait to be durable."""
        return self._sequencer.in_flight or bool(self._sequencer.waiting)

    def disconnected(self, session: SessionRef) -> None:
        """A stream broke, and this end has noticed."""
        held = self._sessions.pop(session, None)
        if held is not None:
            self.feed(SiteDisconnected(site_id=held[0], session=session))

    def feed(self, event: Event) -> None:
        """One event: handle it, queue its step, see what may go on."""
        self.handled += 1
        step = self.machine.handle(event, self._timeline.now)
        if self._checked:
            invariants.check(self.machine)
        self._sequencer.offer(step)
        self._pump()
        self._arm()

    # --- commit and perform ----------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        while (batch := self._sequencer.next_batch()) is not None:
            if batch.records and self._commit_us:
                self._timeline.after(self._commit_us, self._committed)
                return
            self._perform(self._sequencer.committed())

    def _committed(self) -> None:
        self._perform(self._sequencer.committed())
        self._pump()

    def _perform(self, effects: Effects) -> None:
        for command in effects.commands:
            match command:
                case PublishJob():
                    self._published(command.job)
                case SendAssignment():
                    held = self._sessions.get(command.session)
                    if held is not None:
                        held[1].send(command.assignment)
                case Answer():
                    self._waiting.pop(command.request)(command.reply)
                case CloseSession():
                    held = self._sessions.pop(command.session, None)
                    if held is not None:
                        held[1].refused()
                case _:
                    pass  # readers of sites, models and audit lines are no part of a run
        if self._observe is not None:
            for decision in effects.decisions:
                self._observe(decision)

    # --- the timer -------------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """A timer not later than the next deadline. One that comes too early looks again: cheaper than to cancel at each event."""
        deadline_us = self.machine.next_deadline()
        if deadline_us is None or (self._timer is not None and self._timer_us <= deadline_us):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_us = deadline_us
        # A deadline in the past is met a microsecond from now: a machine that never lets go of one must not hold time still.
        self._timer = self._timeline.after(max(deadline_us - self._timeline.now, 1), self._ring)

    def _ring(self) -> None:
        self._timer = None
        deadline_us = self.machine.next_deadline()
        if deadline_us is not None and deadline_us <= self._timeline.now:
            self.feed(TimerFired())
        else:
            self._arm()
