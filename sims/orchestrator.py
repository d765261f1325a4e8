"""The simulated driver of the orchestrator's machine: single writer, sequencer, store, sessions, crashes and takeovers.

Decides nothing about jobs. Several incarnations may live at once; each believes that it leads until the store tells it otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId, SiteId
from atoll.model.report import SiteHello, SiteReport, Welcome
from orchestrator.core import invariants
from orchestrator.core.durable import Stored
from orchestrator.core.events import (
    AttemptsEnded,
    Event,
    RequestRef,
    ResyncRequested,
    SessionRef,
    SiteConnected,
    SiteDisconnected,
    SiteReported,
    TimerFired,
    TookOver,
)
from orchestrator.core.machine import Machine, new_machine, restore
from orchestrator.core.outputs import Answer, CloseSession, Command, PublishJob, Reply, SendAssignment
from orchestrator.core.placement.policy import Policy
from orchestrator.core.sequencer import Sequencer
from sims.checks import History
from sims.faults import Fault, Faults
from sims.links import Down, Events, Resync, Side, Stream, Up
from sims.store import CommitOutcome, SimStore
from sims.world import MILLISECOND_US, SECOND_US, Timer, World

_RESTART_US: Final = (200 * MILLISECOND_US, 5 * SECOND_US)
_RETRY_TAKEOVER_US: Final = 500 * MILLISECOND_US


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What every incarnation is started with. `resnapshot`: the machine is replaced by its restored snapshot after each event."""

    policy: Policy
    gpus: Mapping[GpuTypeId, GpuType]
    resnapshot: bool = False


class Incarnation:
    """One process of the orchestrator, from its takeover to its end."""

    def __init__(self, owner: Orchestrators, number: int, stored: Stored) -> None:
        self.name = f"orchestrator-{number}"
        self.term = stored.term
        self.alive = True
        self.machine: Machine = new_machine(stored, owner.rules.policy, owner.rules.gpus)
        self._owner = owner
        self._world = owner.world
        self._sequencer = Sequencer()
        self._sessions: dict[SessionRef, tuple[SiteId, Stream]] = {}
        self._session_of: dict[Stream, SessionRef] = {}
        self._waiting: dict[RequestRef, Callable[[Reply | None], None]] = {}
        self._numbers = 0
        self._timer: Timer | None = None
        # Fleet time goes on where the store's last writer left it; the time without any orchestrator does not count.
        self._fleet_from_us = stored.fleet_time_us + 1
        self._world_from_us = self._world.now_us
        self._fleet_id = stored.fleet_id
        self.feed(TookOver(fleet_id=stored.fleet_id, term=stored.term))

    @property
    def deposed(self) -> bool:
        """Whether another process has taken over, whatever this one believes."""
        return self.term != self._owner.store.term

    def now_us(self) -> int:
        """Fleet time by this process's clock."""
        return self._fleet_from_us + self._world.now_us - self._world_from_us

    def feed(self, event: Event) -> None:
        """One event: handle, check every promise, queue the step, see what may go on."""
        if not self.alive:
            return
        now_us = self.now_us()
        step = self.machine.handle(event, now_us)
        self._owner.history.event(self.name, event, step)
        invariants.check(self.machine)
        if self._owner.rules.resnapshot:
            self.machine = restore(self.machine.snapshot(), self._owner.rules.policy, self._owner.rules.gpus)
        self._sequencer.offer(step)
        self._pump()
        self._arm()

    def request(self, make: Callable[[RequestRef], Event], done: Callable[[Reply | None], None]) -> None:
        """A caller's request; `done` hears the answer, or None when this process ends first."""
        if not self.alive:
            done(None)
            return
        self._numbers += 1
        reference = RequestRef(self._numbers)
        self._waiting[reference] = done
        self.feed(make(reference))

    def _pump(self) -> None:
        while self.alive:
            batch = self._sequencer.next_batch()
            if batch is None:
                return
            if batch.records:
                self._owner.store.commit(self.term, self.now_us(), batch.records, self._outcome)
                return
            self._perform(self._sequencer.committed().commands)

    def _outcome(self, outcome: CommitOutcome) -> None:
        if not self.alive:
            return
        if outcome is not CommitOutcome.COMMITTED:
            self._world.note(self.name, f"commit {outcome}: the core is dropped")
            self._sequencer.abandon()
            self.crash()
            return
        if self._owner.faults.strikes(Fault.CRASH_AFTER_COMMIT):
            self.crash()
            return
        self._perform(self._sequencer.committed().commands)
        self._pump()

    def _perform(self, commands: tuple[Command, ...]) -> None:
        for command in commands:
            match command:
                case Answer():
                    done = self._waiting.pop(command.request, None)
                    if done is not None:
                        done(command.reply)
                case SendAssignment():
                    self._owner.history.assigned(self.name, self.now_us(), command)
                    held = self._sessions.get(command.session)
                    if held is not None and held[0] == command.site_id:
                        held[1].send(Side.DOWN, command.assignment)
                case CloseSession():
                    self._world.note(self.name, f"closes {command.site_id}: {command.refusal.message}")
                    self._drop_session(command.session)
                case PublishJob():
                    self._owner.history.published(self.name, self.term, command.job)
                case _:
                    pass  # readers of sites, models and audit lines are no part of this world

    def _drop_session(self, session: SessionRef) -> None:
        held = self._sessions.pop(session, None)
        if held is not None:
            del self._session_of[held[1]]
            held[1].close(Side.UP)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline_us = self.machine.next_deadline()
        if self.alive and deadline_us is not None:
            # A deadline in the past fires at the next microsecond, so that a machine that never lets go of one is seen as a live-lock.
            delay_us = max(deadline_us - self.now_us(), 1)
            self._timer = self._world.after(delay_us, partial(self.feed, TimerFired()))

    def receive(self, stream: Stream, message: Up | Down) -> None:
        """A message of an agent came up a stream."""
        if not self.alive:
            return
        session = self._session_of.get(stream)
        if session is None:
            if isinstance(message, SiteHello):
                self._welcome(stream, message)
            return
        site_id = self._sessions[session][0]
        match message:
            case SiteReport():
                self.feed(SiteReported(site_id=site_id, session=session, report=message))
            case Events():
                self.feed(AttemptsEnded(site_id=site_id, session=session, events=message.events))
            case Resync():
                self.feed(ResyncRequested(site_id=site_id, session=session))
            case _:
                pass  # a hello again

    def _welcome(self, stream: Stream, hello: SiteHello) -> None:
        self._numbers += 1
        session = SessionRef(self._numbers)
        self._sessions[session] = (hello.site_id, stream)
        self._session_of[stream] = session
        stream.send(
            Side.DOWN,
            Welcome(
                fleet_id=self._fleet_id,
                term=self.term,
                time_scale_milli=1_000,
                report_interval_ms=self._owner.rules.policy.report_interval_ms,
                origin_url="memory://origin",
                artifacts_url="memory://artifacts",
            ),
        )
        self.feed(SiteConnected(site_id=hello.site_id, session=session, hello=hello))

    def stream_closed(self, stream: Stream) -> None:
        """This process learned that a stream is gone."""
        session = self._session_of.pop(stream, None)
        if session is not None:
            site_id, _ = self._sessions.pop(session)
            self.feed(SiteDisconnected(site_id=site_id, session=session))

    def crash(self) -> None:
        """The process ends: streams are reset, callers hear nothing, what it knew is gone."""
        if not self.alive:
            return
        self.alive = False
        self._world.note(self.name, "ends")
        if self._timer is not None:
            self._timer.cancel()
        for _, stream in self._sessions.values():
            stream.close(Side.UP)
        self._sessions.clear()
        self._session_of.clear()
        waiting, self._waiting = self._waiting, {}
        for done in waiting.values():
            done(None)
        self._owner.ended(self)


class Orchestrators:
    """All incarnations, and the supervisor that starts the next one."""

    def __init__(self, world: World, faults: Faults, store: SimStore, history: History, rules: Rules) -> None:
        self.world = world
        self.faults = faults
        self.store = store
        self.history = history
        self.rules = rules
        self.incarnations: list[Incarnation] = []
        self._started = 0
        self._starting = False
        self._random = world.stream("orchestrators")

    @property
    def alive(self) -> list[Incarnation]:
        """Processes that run; the last one is the one that leads, the others believe it."""
        return [incarnation for incarnation in self.incarnations if incarnation.alive]

    def leader(self) -> Incarnation | None:
        """The newest process, if it runs."""
        alive = self.alive
        return alive[-1] if alive else None

    def any(self) -> Incarnation | None:
        """Some process that runs: what an address resolves to while two of them believe that they lead."""
        alive = self.alive
        return self._random.choice(alive) if alive else None

    def start(self) -> None:
        """Start a process: it takes over when the store lets it."""
        if self._starting:
            return
        self._starting = True
        self.store.take_over(self._taken)

    def _taken(self, stored: Stored | None) -> None:
        self._starting = False
        if stored is None:
            self.world.after(_RETRY_TAKEOVER_US, self.start)
            return
        self._started += 1
        self.incarnations = self.alive
        self.incarnations.append(Incarnation(self, self._started, stored))

    def ended(self, incarnation: Incarnation) -> None:
        """A process ended: its successor starts soon, unless one runs already."""
        del incarnation
        if not self.alive:
            self.world.after(self._random.randint(*_RESTART_US), lambda: None if self.alive else self.start())

    def depose_all_but_newest(self) -> None:
        """Part of healing: of several processes only the newest goes on."""
        for incarnation in self.alive[:-1]:
            incarnation.crash()
