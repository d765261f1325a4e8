"""A site in virtual time: the agent's driver around its machine and its plant, and its end of the stream to the orchestrator.

Decides when events are handled and when messages arrive: one way takes half a round trip, in order. A report may come later, or not at
all, and then nothing that was said after it comes before it. Must not know what is decided, nor what is measured of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from agents.core import invariants
from agents.core.events import AgentEvent, AssignmentReceived, SessionClosed, SessionOpened, TimerFired
from agents.core.machine import AgentMachine
from agents.core.outputs import AgentCommand, RefuseOrchestrator, RequestResync, SendEvents, SendReport
from agents.twin.plant import Plant
from atoll.model.assignment import Assignment
from atoll.model.ids import EventSeq, FleetId, Term
from atoll.model.report import PROTOCOL_VERSION, SiteHello, Welcome
from atoll.model.site import SiteRuntime, SiteSpec
from orchestrator.core.events import AttemptsEnded, ResyncRequested, SessionRef, SiteReported
from sims.play.brain import Brain
from sims.play.timeline import Timeline, Timer

Watch = Callable[[AgentEvent | AgentCommand], None]


def _at_once() -> int:
    return 0


class PlayedSite:
    """One site. `build` makes its plant, given its timers and who hears it; `watch` says who hears every event and command of its machine;
    `late_us` says of each report how much longer than the way it takes, None: it is lost."""

    def __init__(
        self,
        spec: SiteSpec,
        timeline: Timeline,
        brain: Brain,
        *,
        one_way_us: int,
        build: Callable[[PlayedSite], Plant],
        watch: Callable[[PlayedSite], Watch],
        late_us: Callable[[], int | None] = _at_once,
        checked: bool = False,
    ) -> None:
        self.spec = spec
        self.handled = 0
        self._timeline = timeline
        self._brain = brain
        self._one_way_us = one_way_us
        self._late_us = late_us
        self._heard_us = 0  # when the last message so far arrives
        self._checked = checked
        self._inbox: deque[AgentEvent] = deque()
        self._session: SessionRef | None = None
        self._streams = 0  # messages of an earlier stream do not arrive
        self._timer: Timer | None = None
        self._timer_us = 0
        self.plant = build(self)
        self._watch = watch(self)
        self.machine = AgentMachine(site_id=spec.site_id, pools=self.plant.pools)

    def start(self) -> None:
        """The agent's process begins, and dials."""
        self._inbox.append(self.plant.started())
        self.plant.tell_held()
        self._drain()
        self.dial()

    # --- timers of the plant ---------------------------------------------------------------------------------------------------

    def now_us(self) -> int:
        """What time it is."""
        return self._timeline.now

    def after(self, delay_us: int, act: Callable[[], None]) -> Timer:
        """A call of the plant, and then what the machine makes of what the plant told."""
        return self._timeline.after(delay_us, partial(self._acted, act))

    def _acted(self, act: Callable[[], None]) -> None:
        act()
        if self._inbox:
            self._drain()

    def tell(self, event: AgentEvent) -> None:
        """The plant says something. Never handled inside the call."""
        self._inbox.append(event)

    # --- the machine -----------------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        inbox, watch, now_us = self._inbox, self._watch, self._timeline.now
        while inbox:
            event = inbox.popleft()
            self.handled += 1
            watch(event)
            step = self.machine.handle(event, now_us)
            if self._checked:
                invariants.check(self.machine, now_us)
            for command in step.commands:
                self._perform(command)
        self._arm()

    def _perform(self, command: AgentCommand) -> None:
        match command:
            case SendReport() | SendEvents() | RequestResync():
                self._say(command)
            case RefuseOrchestrator():
                raise AssertionError(f"{self.spec.site_id} refuses its only orchestrator: {command.message}")
            case _:
                self._watch(command)
                self.plant.perform(command)

    def _say(self, command: SendReport | SendEvents | RequestResync) -> None:
        """Up the stream, if there is one."""
        late_us = self._late_us() if isinstance(command, SendReport) else 0
        if self._session is not None and late_us is not None:
            now_us = self._timeline.now
            self._heard_us = max(self._heard_us, now_us + self._one_way_us + late_us)
            self._timeline.after(self._heard_us - now_us, partial(self._arrived_up, self._session, command))

    def _arm(self) -> None:
        """As the orchestrator's."""
        deadline_us = self.machine.next_deadline()
        if deadline_us is None or (self._timer is not None and self._timer_us <= deadline_us):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_us = deadline_us
        self._timer = self._timeline.after(max(deadline_us - self._timeline.now, 1), self._ring)

    def _ring(self) -> None:
        self._timer = None
        deadline_us = self.machine.next_deadline()
        if deadline_us is not None and deadline_us <= self._timeline.now:
            self._inbox.append(TimerFired())
            self._drain()
        else:
            self._arm()

    # --- the stream ------------------------------------------------------------------------------------------------------------

    def dial(self) -> None:
        """Open a stream: the hello travels up, the welcome down."""
        self._streams += 1
        self._heard_us = 0
        state = self.machine.state
        hello = SiteHello(
            site_id=self.spec.site_id,
            fleet_id=state.fleet_id or FleetId(""),
            term=state.term or Term(0),
            protocol_version=PROTOCOL_VERSION,
            agent_version="simulated",
            boot_id="simulated",
            runtime=SiteRuntime.TWIN,
            pools=self.plant.pools,
            next_event_seq=EventSeq(state.next_event_seq),
        )
        self._timeline.after(self._one_way_us, partial(self._hello_arrived, self._streams, hello))

    @property
    def has_stream(self) -> bool:
        """Whether it speaks to the orchestrator."""
        return self._session is not None

    def befall(self, act: Callable[[], None]) -> None:
        """Something happens to the plant that nobody ordered."""
        self._acted(act)

    def hang_up(self) -> None:
        """The stream breaks: this end knows at once, the other one half a round trip later."""
        session, self._session = self._session, None
        self._streams += 1
        if session is not None:
            self._timeline.after(self._one_way_us, partial(self._brain.disconnected, session))
        self._inbox.append(SessionClosed())
        self._drain()

    def _hello_arrived(self, stream: int, hello: SiteHello) -> None:
        if stream == self._streams:
            self._session = self._brain.connected(self.spec.site_id, hello, self)

    def _arrived_up(self, session: SessionRef, command: SendReport | SendEvents | RequestResync) -> None:
        if session != self._session:
            return
        site_id = self.spec.site_id
        match command:
            case SendReport():
                self._brain.feed(SiteReported(site_id=site_id, session=session, report=command.report))
            case SendEvents():
                self._brain.feed(AttemptsEnded(site_id=site_id, session=session, events=command.events))
            case RequestResync():
                self._brain.feed(ResyncRequested(site_id=site_id, session=session))

    def welcomed(self, welcome: Welcome) -> None:
        """The orchestrator answered; the answer is on its way."""
        # As a twin's: a second of real time, however fast fleet time runs.
        self.plant.pace_us = welcome.time_scale_milli * 1_000
        self._timeline.after(self._one_way_us, partial(self._arrived_down, self._streams, SessionOpened(welcome=welcome)))

    def send(self, assignment: Assignment) -> None:
        """An assignment is on its way."""
        self._timeline.after(self._one_way_us, partial(self._arrived_down, self._streams, AssignmentReceived(assignment=assignment)))

    def refused(self) -> None:
        """Nobody else speaks as this site, and its fleet is the one it has always had."""
        raise AssertionError(f"the orchestrator closed the stream of {self.spec.site_id}")

    def _arrived_down(self, stream: int, event: AgentEvent) -> None:
        if stream == self._streams:
            self._inbox.append(event)
            self._drain()
