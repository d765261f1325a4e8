"""Whatever is assigned, lost, doubled, failed or restarted: the agent's core keeps its promises, and every attempt ends exactly once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from agents.core import invariants
from agents.core.events import (
    AgentEvent,
    AssignmentReceived,
    AttemptAdvanced,
    AttemptErrored,
    AttemptFinished,
    AttemptHalted,
    FetchFailed,
    FetchYielded,
    HostMemoryChanged,
    RecoveredSlot,
    ReplicaEvicted,
    ReplicaLoaded,
    ReplicaLoadFailed,
    RuntimeStarted,
    SessionClosed,
    SessionOpened,
    SlotLost,
    SlotReady,
    TimerFired,
    WeightsDeleted,
    WeightsFetched,
)
from agents.core.machine import AgentMachine, restore
from agents.core.outputs import (
    AgentCommand,
    DeleteWeights,
    EvictReplica,
    FetchWeights,
    LoadReplica,
    OutboxAppended,
    OutboxTrimmed,
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
from atoll.model.assignment import AssignedAttempt, Assignment, CopyKey, DesiredReplica
from atoll.model.attempt import AttemptState, Failure, FailureKind, PhaseTimes, ResultManifest
from atoll.model.ids import AttemptKey, EventSeq, FleetId, Generation, ModelId, SiteId, SlotRef, Term
from atoll.model.replica import ReplicaFact, ReplicaState, Tier
from atoll.model.report import AttemptEvent, Welcome
from atoll.model.site import SiteRuntime
from tests.unit.agent_core_site import FLEET, GB, POOL, SECOND, attempt, key, manifest, model, slot

# Attempts come to the first three.
SLOTS = [slot(0, 0), slot(0, 1), slot(1, 0), slot(1, 1)]
MODELS = {name: model(name, gigabytes) for name, gigabytes in (("m", 10), ("n", 12), ("o", 20))}
FAILED = Failure(kind=FailureKind.INTERNAL, message="told by the test")


Pending = LoadReplica | EvictReplica | FetchWeights | YieldFetch | StageWeights | DeleteWeights


class Reality:
    """The slots, disks and executions that outlive the agent; it fails the test when told what cannot be done."""

    def __init__(self) -> None:
        self.replicas: dict[SlotRef, dict[ModelId, int]] = {ref: {} for ref in SLOTS}
        self.running: dict[SlotRef, RunAttempt] = {}
        self.alive = dict.fromkeys(SLOTS, True)
        self.pending: list[Pending] = []
        self.kept: dict[str, frozenset[ModelId]] = {}
        self.host: dict[str, dict[ModelId, str]] = {POOL.node_id(0): {}, POOL.node_id(1): {}}
        self.disk: dict[str, set[ModelId]] = {POOL.node_id(0): set(), POOL.node_id(1): set()}
        self.runs: list[AttemptKey] = []
        self.stopping: set[AttemptKey] = set()
        self.finished: dict[AttemptKey, ResultManifest] = {}

    def perform(self, command: AgentCommand) -> None:
        match command:
            case FetchWeights():
                under_way = [p for p in self.pending if isinstance(p, FetchWeights) and p.node_id == command.node_id]
                assert command.model not in [p.model for p in under_way], "one fetch per node and model"
                self.pending.append(command)
            case LoadReplica(slot=where):
                if self.alive[where]:
                    assert where not in self.running
                    assert not [p for p in self.pending if isinstance(p, LoadReplica) and p.slot == where]
                    held = self.host[where.node_id]
                    assert command.model.model_id in self.disk[where.node_id] or command.model.model_id in held
                    assert sum(self.replicas[where].values()) + command.model.resident_bytes <= 24 * GB
                    self.pending.append(command)
            case EvictReplica(slot=where):
                assert where not in self.running
                self.pending.append(command)
            case DeleteWeights():
                self.pending.append(command)
            case RunAttempt(slot=where):
                if self.alive[where]:
                    assert where not in self.running, "one attempt executes at a time"
                    assert command.model.model_id in self.replicas[where]
                    assert command.key not in self.runs, "no attempt executes twice here"
                    self.runs.append(command.key)
                    self.running[where] = command
            case StopAttempt():
                self.stopping.add(command.key)
            case YieldFetch() | StageWeights():
                self.pending.append(command)
            case PinWeights():
                self.kept[command.node_id] = frozenset(command.host)
            case RenewAttempts() | SendReport() | SendEvents() | RequestResync() | RefuseOrchestrator():
                pass

    def started(self) -> RuntimeStarted:
        """What a new agent finds. Fetches, loads and evictions under way ended with the old one."""
        for command in self.pending:
            if isinstance(command, EvictReplica):
                self.replicas[command.slot].pop(command.model_id, None)
        self.pending = []
        self.host = {node: {} for node in self.host}
        self.kept = {}
        self.alive = dict.fromkeys(SLOTS, True)
        slots = []
        for ref in SLOTS:
            run = self.running.get(ref)
            facts = tuple(
                ReplicaFact(
                    model_id=name,
                    state=ReplicaState.BUSY if run is not None and run.model.model_id == name else ReplicaState.WARM,
                    memory_bytes=size,
                )
                for name, size in self.replicas[ref].items()
            )
            slots.append(RecoveredSlot(slot=ref, replicas=facts, running=run.key if run is not None else None))
        disk = tuple((node, name, MODELS[name].weights_digest) for node, names in self.disk.items() for name in sorted(names))
        finished = tuple(self.finished.values())
        return RuntimeStarted(slots=tuple(slots), disk_models=disk, finished=finished, host_tier=True)  # type: ignore[arg-type]

    def settle(self, number: int, well: bool) -> AgentEvent | None:
        """One of the commands under way ends."""
        if not self.pending:
            return None
        command = self.pending.pop(number % len(self.pending))
        match command:
            case FetchWeights(node_id=node, model=found) if well:
                self.disk[node].add(found.model_id)
                return WeightsFetched(
                    node_id=node, model_id=found.model_id, weights_digest=found.weights_digest, bytes=found.weights_bytes, elapsed_us=1
                )
            case FetchWeights():
                return FetchFailed(node_id=command.node_id, model_id=command.model.model_id, failure=FAILED)
            case LoadReplica(slot=where, model=found) if well:
                self.replicas[where][found.model_id] = found.resident_bytes
                return ReplicaLoaded(slot=where, model_id=found.model_id, memory_bytes=found.resident_bytes, elapsed_us=1)
            case LoadReplica():
                return ReplicaLoadFailed(slot=command.slot, model_id=command.model.model_id, failure=FAILED)
            case EvictReplica(slot=where):
                self.replicas[where].pop(command.model_id, None)
                return ReplicaEvicted(slot=where, model_id=command.model_id)
            case DeleteWeights(node_id=node):
                self.disk[node].discard(command.model_id)
                return WeightsDeleted(node_id=node, model_id=command.model_id)
            case YieldFetch(node_id=node, model_id=name):
                fetches = [p for p in self.pending if isinstance(p, FetchWeights) and (p.node_id, p.model.model_id) == (node, name)]
                if not fetches:
                    return None
                self.pending.remove(fetches[0])
                return FetchYielded(node_id=node, model_id=name)
            case StageWeights(node_id=node, model=found):
                kept = self.kept.get(node, frozenset()) - {found.model_id}
                if well and found.model_id in self.disk[node] and not kept & self.host[node].keys():
                    self.host[node] = {found.model_id: found.weights_digest}  # room for one
                return HostMemoryChanged(node_id=node, models=tuple(self.host[node].items()), ended=(found.model_id,))

    def end_run(self, number: int, well: bool) -> AgentEvent | None:
        """One of the executions ends."""
        if not self.running:
            return None
        where = list(self.running)[number % len(self.running)]
        run = self.running.pop(where)
        if run.key in self.stopping and number % 2:
            return AttemptHalted(key=run.key)
        if well:
            self.finished[run.key] = manifest(run.key)
            return AttemptFinished(key=run.key, manifest=manifest(run.key), times=PhaseTimes(run_us=1))
        return AttemptErrored(key=run.key, failure=FAILED, times=PhaseTimes())

    def lose(self, number: int) -> AgentEvent:
        """The process of a slot dies."""
        where = SLOTS[number % len(SLOTS)]
        self.alive[where] = False
        self.replicas[where] = {}
        self.running.pop(where, None)
        self.pending = [p for p in self.pending if not isinstance(p, LoadReplica | EvictReplica) or p.slot != where]
        return SlotLost(slot=where, message="died")


class Play:
    """An orchestrator that loses and doubles messages, a reality, and an agent that is killed now and then."""

    def __init__(self) -> None:
        self.reality = Reality()
        self.outbox: dict[EventSeq, AttemptEvent] = {}
        self.next_seq = EventSeq(1)
        self.identity: tuple[FleetId, Term] = (FleetId(""), Term(0))
        self.ends: dict[AttemptKey, list[AttemptEvent]] = {}
        self.live: dict[AttemptKey, AssignedAttempt] = {}
        self.settled: set[AttemptKey] = set()
        self.generation, self.held = 0, 0
        self.changed: set[AttemptKey] = set()
        self.removed: set[AttemptKey] = set()
        self.acked = EventSeq(0)
        self.old: list[Assignment] = []
        self.desired: dict[CopyKey, DesiredReplica] = {}
        self.wished: set[CopyKey] = set()
        self.unwanted: dict[CopyKey, DesiredReplica] = {}
        self.jobs = 0
        self.now_us = 0
        self.connected = False
        self.boot()

    def boot(self) -> None:
        self.machine = AgentMachine(
            site_id=SiteId("s"), pools=(POOL,), runtime=SiteRuntime.RAY, fleet_id=self.identity[0], term=self.identity[1],
            outbox=tuple(self.outbox.values()), next_event_seq=self.next_seq,
        )  # fmt: skip
        self.connected = False
        self.feed(self.reality.started())

    def feed(self, event: AgentEvent | None) -> None:
        if event is None:
            return
        step = self.machine.handle(event, self.now_us)
        invariants.check(self.machine, self.now_us)
        assert restore(self.machine.snapshot()).snapshot() == self.machine.snapshot()
        for record in step.records:
            if isinstance(record, OutboxAppended):
                self.outbox[record.event.seq] = record.event
                self.next_seq = EventSeq(record.event.seq + 1)
                self.ends.setdefault(record.event.key, []).append(record.event)
                self.reality.finished.pop(record.event.key, None)
            elif isinstance(record, OutboxTrimmed):
                self.outbox = {seq: found for seq, found in self.outbox.items() if seq > record.acked_event_seq}
            else:
                self.identity = (record.fleet_id, record.term)
        for command in step.commands:
            self.check_attempts_first(command)
            self.reality.perform(command)
            if isinstance(command, SendEvents):
                self.hear(command.events)

    def check_attempts_first(self, command: AgentCommand) -> None:
        """Nothing is begun for a copy that nobody waits for while attempts need the same; pins hold."""
        state = self.machine.state
        match command:
            case FetchWeights(ahead=True):
                waited = [p for p in self.reality.pending if isinstance(p, FetchWeights) and not p.ahead]
                assert not waited, f"{command.model.model_id} is fetched ahead while attempts wait for {waited}"
            case LoadReplica(slot=where):
                queue = state.slots[where].queue
                wanted = {work.model.model_id for work in map(state.works.__getitem__, queue) if work.model is not None}
                assert not queue or command.model.model_id in wanted, "an idle slot loads ahead; one that is waited for does not"
            case EvictReplica(slot=where, model_id=name):
                pins = [one for one in state.nodes[where.node_id].desired.values() if one.pin and one.tier is Tier.GPU]
                assert not [one for one in pins if one.model_id == name and one.index in (None, where.index)], f"{name} is pinned"
            case _:
                pass

    # --- the orchestrator ---------------------------------------------------------------------------------------------------------

    def hear(self, events: tuple[AttemptEvent, ...]) -> None:
        for event in events:
            if event.seq > self.acked:
                self.acked = event.seq
                if self.live.pop(event.key, None) is not None:
                    self.removed.add(event.key)
                    self.settled.add(event.key)

    def submit(self, number: int, evict: bool) -> None:
        self.jobs += 1
        where = SLOTS[number % 3]
        names = list(MODELS)
        name = names[number // 3 % 3]
        others = tuple(ModelId(other) for other in names if other != name) if evict else ()
        one = attempt(f"j{self.jobs}", name, where=where, evict=others)
        self.live[one.key] = one
        self.changed.add(one.key)

    def cancel(self, number: int) -> None:
        if self.live:
            chosen = list(self.live)[number % len(self.live)]
            self.live[chosen] = replace(self.live[chosen], stop=True)
            self.changed.add(chosen)

    def wish(self, number: int, tier: Tier, pin: bool) -> None:
        names = list(MODELS)
        name = names[number % 3]
        node = POOL.node_id(number % 2)
        index = number // 3 % 2 if tier is Tier.GPU and number % 4 else None
        others = tuple(ModelId(other) for other in names if other != name) if number % 3 else ()
        one = DesiredReplica(model_id=ModelId(name), node_id=node, index=index, tier=tier, pin=pin, evict=others)
        self.desired[one.key] = one
        self.wished.add(one.key)
        self.unwanted.pop(one.key, None)

    def wish_no_more(self, number: int) -> None:
        if self.desired:
            key = list(self.desired)[number % len(self.desired)]
            self.unwanted[key] = self.desired.pop(key)
            self.wished.discard(key)

    def send(self, *, full: bool, lost: bool) -> None:
        base, self.generation = self.generation, self.generation + 1
        chosen = self.live if full else {name: self.live[name] for name in sorted(self.changed) if name in self.live}
        message = Assignment(
            fleet_id=FLEET, term=Term(1), generation=Generation(self.generation), base_generation=Generation(0 if full else base),
            attempts=tuple(chosen.values()), removed=() if full else tuple(sorted(self.removed)), models=tuple(MODELS.values()),
            acked_event_seq=self.acked, confirm_shrink=full,
            replicas=tuple(one for key, one in self.desired.items() if full or key in self.wished),
            unwanted=() if full else tuple(self.unwanted.values()),
        )  # fmt: skip
        self.changed, self.removed = set(), set()
        self.wished, self.unwanted = set(), {}
        self.old.append(message)
        if not lost and self.connected:
            self.feed(AssignmentReceived(assignment=message))

    def connect(self) -> None:
        if not self.connected:
            self.connected, self.acked = True, EventSeq(0)
            welcome = Welcome(
                fleet_id=FLEET, term=Term(1), time_scale_milli=1_000, report_interval_ms=1_000, origin_url="", artifacts_url=""
            )
            self.feed(SessionOpened(welcome=welcome))
            self.send(full=True, lost=False)

    def disconnect(self) -> None:
        if self.connected:
            self.connected = False
            self.feed(SessionClosed())

    # --- all of it ------------------------------------------------------------------------------------------------------------------

    def act(self, action: int, number: int) -> None:
        self.now_us += 100_000
        acts: list[Callable[[], None]] = [
            lambda: self.submit(number, evict=number % 4 > 0),
            lambda: self.cancel(number),
            lambda: self.send(full=False, lost=False),
            lambda: self.send(full=False, lost=True),
            lambda: self.send(full=True, lost=number % 3 == 0),
            lambda: self.feed(AssignmentReceived(assignment=self.old[number % len(self.old)]) if self.old and self.connected else None),
            lambda: self.feed(self.reality.settle(number, well=True)),
            lambda: self.feed(self.reality.settle(number, well=False)),
            lambda: self.feed(self.reality.end_run(number, well=True)),
            lambda: self.feed(self.reality.end_run(number, well=False)),
            lambda: self.feed(self.reality.lose(number)),
            self.revive,
            self.connect,
            self.disconnect,
            self.boot,
            lambda: self.tick(number),
            self.advance,
            lambda: self.wish(number, Tier.GPU, pin=number % 5 == 0),
            lambda: self.wish(number, Tier.HOST, pin=number % 5 == 0),
            lambda: self.wish(number, Tier.DISK, pin=number % 5 == 0),
            lambda: self.wish_no_more(number),
        ]
        # What keeps work flowing happens more often than what breaks it, or nothing would ever get as far as executing.
        flow = [acts[0], acts[2], acts[6], acts[6], acts[12]]
        chosen = [*acts, *flow, *flow, acts[8]]
        chosen[action % len(chosen)]()

    def revive(self) -> None:
        for where, alive in list(self.reality.alive.items()):
            if not alive:
                self.reality.alive[where] = True
                self.feed(SlotReady(slot=where))

    def tick(self, number: int) -> None:
        self.now_us += number * SECOND // 4
        self.feed(TimerFired())

    def advance(self) -> None:
        for run in list(self.reality.running.values()):
            self.feed(AttemptAdvanced(key=run.key, state=AttemptState.RUNNING, steps_done=3))

    def heal(self) -> None:
        """No more faults: everything that is under way comes to its end."""
        self.connect()
        for _ in range(200):
            self.revive()
            self.send(full=True, lost=False)
            while (event := self.reality.settle(0, well=True)) is not None:
                self.feed(event)
            while (event := self.reality.end_run(0, well=True)) is not None:
                self.feed(event)
            self.now_us += 4 * SECOND
            self.feed(TimerFired())
            if not self.live and not self.outbox and not self.machine.state.works:
                return
        raise AssertionError(f"still live: {self.live}, in the outbox: {self.outbox}, under way: {self.machine.state.works}")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 31), st.integers(0, 11)), max_size=120))
def test_every_attempt_ends_exactly_once_whatever_happens(script: list[tuple[int, int]]) -> None:
    play = Play()
    for action, number in script:
        play.act(action, number)
    play.heal()
    assert all(len(ends) == 1 for ends in play.ends.values()), {str(name): ends for name, ends in play.ends.items() if len(ends) > 1}
    assigned = {key(f"j{number}") for number in range(1, play.jobs + 1)}
    assert play.settled == assigned
    assert not play.machine.state.ended
    assert not play.machine.state.ahead
