"""The simulated driver of an agent's machine: its durable outbox, its stream, its process that crashes and starts again.

Decides nothing about work. The runtime outlives the agent; the host's disk outlives both, unless it is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, assert_never

from agents.core import invariants
from agents.core.events import (
    AgentEvent,
    AssignmentReceived,
    SessionClosed,
    SessionOpened,
    TimerFired,
)
from agents.core.machine import AgentMachine
from agents.core.outputs import (
    AgentCommand,
    AgentRecord,
    IdentityChanged,
    OutboxAppended,
    OutboxTrimmed,
    RefuseOrchestrator,
    RequestResync,
    SendEvents,
    SendReport,
)
from atoll.model.assignment import Assignment
from atoll.model.attempt import AttemptState
from atoll.model.ids import EventSeq, FleetId, Term
from atoll.model.report import PROTOCOL_VERSION, AttemptEvent, SiteHello, Welcome
from atoll.model.site import PoolSpec, SiteRuntime, SiteSpec
from sims.checks import History
from sims.faults import Fault, Faults
from sims.links import Down, Events, Link, Resync, Side, Stream, Up
from sims.orchestrator import Orchestrators
from sims.runtime import SimRuntime
from sims.texts import brief_agent_event
from sims.world import MILLISECOND_US, SECOND_US, Timer, World

_BOOT_US: Final = (300 * MILLISECOND_US, 4 * SECOND_US)
_REBOOT_US: Final = (5 * SECOND_US, 30 * SECOND_US)
_DIAL_US: Final = (100 * MILLISECOND_US, 2 * SECOND_US)
_WELCOME_TIMEOUT_US: Final = 5 * SECOND_US
_PROBE_US: Final = 5 * SECOND_US
# A poor quartz loses less than 100 parts in a million; this is far beyond.
_DRIFT_MILLI: Final = (970, 1_030)
_LIE_FACTOR: Final = 2


@dataclass(slots=True, kw_only=True)
class Disk:
    """What an agent keeps across restarts."""

    fleet_id: FleetId = FleetId("")
    term: Term = Term(0)
    outbox: dict[EventSeq, AttemptEvent] = field(default_factory=dict)
    next_seq: EventSeq = EventSeq(1)


class SimSite:
    """One site: an agent that may be down, a runtime, a disk and a link."""

    def __init__(
        self,
        world: World,
        faults: Faults,
        history: History,
        orchestrators: Orchestrators,
        spec: SiteSpec,
        runtime: SimRuntime,
        link: Link,
    ) -> None:
        self.spec = spec
        self.runtime = runtime
        self.link = link
        self.disk = Disk()
        self.machine: AgentMachine | None = None
        self.gone = False
        self._world = world
        self._faults = faults
        self._history = history
        self._orchestrators = orchestrators
        self._random = world.stream(f"agent/{spec.site_id}")
        self._boots = 0
        self._streams = 0
        self._stream: Stream | None = None
        self._welcomed = False
        self._timer: Timer | None = None
        self._clock_from_us = 0
        self._clock_milli = 1_000
        self._pools = self._claimed_pools()
        if faults.on(Fault.CLOCK_DRIFT) and (Fault.CLOCK_DRIFT not in faults.fired or self._random.random() < 0.7):
            self._clock_milli = self._random.randint(*_DRIFT_MILLI)
            faults.strike(Fault.CLOCK_DRIFT, f"{spec.site_id} {self._clock_milli}")

    def _claimed_pools(self) -> tuple[PoolSpec, ...]:
        if not self._faults.on(Fault.LIE) or (Fault.LIE in self._faults.fired and self._random.random() < 0.7):
            return self.spec.pools
        self._faults.strike(Fault.LIE, self.spec.site_id)
        self._history.liars.add(self.spec.site_id)
        return tuple(replace(pool, gpu_memory_bytes=pool.gpu_memory_bytes * _LIE_FACTOR) for pool in self.spec.pools)

    def own_up(self) -> None:
        """From now on it claims what there is: a place that fails all who come for ever is not one where work can end."""
        if self._pools != self.spec.pools:
            self._pools = self.spec.pools
            self.crash()

    # --- the process -----------------------------------------------------------------------------------------------------------

    def boot(self, *, delay_us: int | None = None) -> None:
        """Start the agent's process after a while."""
        if self.gone:
            return
        self._boots += 1
        boot = self._boots
        self._world.after(self._random.randint(*_BOOT_US) if delay_us is None else delay_us, lambda: self._start(boot))

    def _start(self, boot: int) -> None:
        if boot != self._boots or self.machine is not None:
            return
        if not self.runtime.settled:
            self._world.after(200 * MILLISECOND_US, lambda: self._start(boot))
            return
        self._world.note(self.spec.site_id, f"boots: {boot}")
        self._clock_from_us = self._world.now_us - self._random.randint(0, 1_000 * SECOND_US)
        self.machine = AgentMachine(
            site_id=self.spec.site_id,
            pools=self._pools,
            fleet_id=self.disk.fleet_id,
            term=self.disk.term,
            outbox=tuple(self.disk.outbox.values()),
            next_event_seq=self.disk.next_seq,
        )
        self.runtime.sink = lambda event: self._hear(boot, event)
        self.feed(self.runtime.started())
        self._probe(boot)
        self._dial(boot)

    def _hear(self, boot: int, event: AgentEvent) -> None:
        """An event reaches the machine a moment later, never inside the command that caused it."""
        self._world.after(0, lambda: self.feed(event) if boot == self._boots else None)

    def _probe(self, boot: int) -> None:
        if boot != self._boots or self.machine is None:
            return
        for measured in self.runtime.measured():
            self.feed(measured)
        self._world.after(_PROBE_US, partial(self._probe, boot))

    def crash(self, *, delay_us: int | None = None) -> None:
        """The agent's process is killed and starts again; what executes goes on."""
        if self.machine is None:
            return
        self._die(silently=False)
        self.boot(delay_us=delay_us)

    def power_loss(self, *, disk_lost: bool, for_good: bool = False) -> None:
        """The host goes down and comes up again, with or without what was on its disk; or it does not come up."""
        if self.machine is not None:
            self._die(silently=True)
        self.runtime.power_lost(disk_lost=disk_lost)
        if disk_lost:
            self.disk = Disk()
        self._boots += 1  # whatever was about to start does not
        self.gone = self.gone or for_good
        self.boot(delay_us=self._random.randint(*_REBOOT_US))

    def _die(self, *, silently: bool) -> None:
        self._world.note(self.spec.site_id, "the agent ends")
        self.machine = None
        self.runtime.agent_died()
        if self._timer is not None:
            self._timer.cancel()
        if self._stream is not None:
            self._stream.close(Side.DOWN, silently=silently)
            self._stream = None
        self._welcomed = False

    # --- the machine -----------------------------------------------------------------------------------------------------------

    def _now_us(self) -> int:
        return (self._world.now_us - self._clock_from_us) * self._clock_milli // 1_000

    def feed(self, event: AgentEvent) -> None:
        """One event: handle, check, write, act."""
        if self.machine is None:
            return
        now_us = self._now_us()
        step = self.machine.handle(event, now_us)
        self._history.agent_step(self.spec.site_id, brief_agent_event(event), step)
        invariants.check(self.machine, now_us)
        for record in step.records:
            self._write(record)
        if step.records and self._faults.strikes(Fault.CRASH_AFTER_RECORD):
            self.crash()
            return
        for command in step.commands:
            self._perform(command)
        self._arm()

    def _write(self, record: AgentRecord) -> None:
        match record:
            case OutboxAppended():
                self.disk.outbox[record.event.seq] = record.event
                self.disk.next_seq = EventSeq(record.event.seq + 1)
                self._history.ended_at_site(record.event.key)
                if record.event.state is AttemptState.SUCCEEDED:
                    self.runtime.kept(record.event.key)
            case OutboxTrimmed():
                for seq in [seq for seq in self.disk.outbox if seq <= record.acked_event_seq]:
                    self._history.forgotten(self.spec.site_id, self.disk.outbox.pop(seq))
            case IdentityChanged():
                if record.term < self.disk.term:
                    self._history.fail(f"{self.spec.site_id} obeys term {record.term} after term {self.disk.term}")
                self.disk.fleet_id = record.fleet_id
                self.disk.term = record.term
            case _:
                assert_never(record)

    def _perform(self, command: AgentCommand) -> None:
        match command:
            case SendReport():
                self._send(command.report)
            case SendEvents():
                self._send(Events(events=command.events))
            case RequestResync():
                self._send(Resync(generation=command.generation))
            case RefuseOrchestrator():
                if command.final:
                    self._history.fail(f"{self.spec.site_id} leaves its own fleet for good: {command.message}")
                self._hang_up()
            case _:
                self.runtime.perform(command)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline_us = None if self.machine is None else self.machine.next_deadline()
        if deadline_us is not None:
            # Rounded up: a timer never fires before its deadline by the agent's own clock.
            delay_us = max((deadline_us - self._now_us()) * 1_000 // self._clock_milli + 1, 1)
            self._timer = self._world.after(delay_us, partial(self.feed, TimerFired()))

    # --- the stream ------------------------------------------------------------------------------------------------------------

    def _dial(self, boot: int) -> None:
        if boot != self._boots or self.machine is None or self._stream is not None:
            return
        incarnation = self._orchestrators.any()
        if incarnation is None or self.link.cut:
            self._world.after(self._random.randint(*_DIAL_US), partial(self._dial, boot))
            return
        self._streams += 1
        stream = self._stream = self.link.open(self._streams, self, incarnation)
        self._world.after(_WELCOME_TIMEOUT_US, lambda: self._give_up(stream))
        stream.send(
            Side.UP,
            SiteHello(
                site_id=self.spec.site_id,
                fleet_id=self.disk.fleet_id,
                term=self.disk.term,
                protocol_version=PROTOCOL_VERSION,
                agent_version="simulated",
                boot_id=f"boot-{boot}",
                runtime=SiteRuntime.TWIN,
                pools=self._pools,
                next_event_seq=self.disk.next_seq,
            ),
        )

    def _give_up(self, stream: Stream) -> None:
        if self._stream is stream and not self._welcomed:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._stream is not None:
            self._stream.close(Side.DOWN)
            self._gone()

    def _gone(self) -> None:
        self._stream = None
        welcomed, self._welcomed = self._welcomed, False
        if welcomed:
            self._hear(self._boots, SessionClosed())
        self._world.after(self._random.randint(*_DIAL_US), partial(self._dial, self._boots))

    def _send(self, message: Up) -> None:
        if self._stream is not None and self._welcomed:
            self._stream.send(Side.UP, message)

    def receive(self, stream: Stream, message: Up | Down) -> None:
        """A message came down a stream."""
        if self._stream is not stream or self.machine is None:
            return
        if isinstance(message, Welcome) and not self._welcomed:
            self._welcomed = True
            self.feed(SessionOpened(welcome=message))
        elif isinstance(message, Assignment) and self._welcomed:
            self.feed(AssignmentReceived(assignment=message))

    def stream_closed(self, stream: Stream) -> None:
        """This end learned that a stream is gone."""
        if self._stream is stream:
            self._gone()
