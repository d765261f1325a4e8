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
    SessionClosed,
    SessionOpened,
    SlotReady,
    TimerFired,
)
from agents.core.machine import AgentMachine, restore
from agents.core.outputs import (
    AgentCommand,
    EvictReplica,
    FetchWeights,
    LoadReplica,
    OutboxAppended,
    OutboxTrimmed,
    SendEvents,
)
from atoll.model.assignment import AssignedAttempt, Assignment, CopyKey, DesiredReplica
from atoll.model.attempt import AttemptState
from atoll.model.ids import AttemptKey, EventSeq, FleetId, Generation, ModelId, SiteId, Term
from atoll.model.replica import Tier
from atoll.model.report import AttemptEvent, Welcome
from atoll.model.site import PoolSpec, SiteRuntime
from tests.property.agent_reality import ADAPTERS, MODELS, Reality
from tests.unit.agent_core_site import FLEET, POOL, SECOND, attempt, key


class Play:
    """An orchestrator that loses and doubles messages, a reality, and an agent that is killed now and then."""

    def __init__(self, pool: PoolSpec = POOL, gang_sizes: tuple[int, ...] = (1,)) -> None:
        self.pool = pool
        self.gang_sizes = gang_sizes
        self.reality = Reality(pool)
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
            site_id=SiteId("s"), pools=(self.pool,), runtime=SiteRuntime.RAY, fleet_id=self.identity[0], term=self.identity[1],
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
            case EvictReplica(slot=where, model_id=name, gang_size=1):
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
        gang_size = self.gang_sizes[number % len(self.gang_sizes)]
        # All slots but the last: one that only copies ahead of demand come to.
        leads = [ref for ref in self.reality.slots if ref.index % gang_size == 0 and (gang_size > 1 or ref != self.reality.slots[-1])]
        where = leads[(number + self.jobs) % len(leads)]
        names = list(MODELS)
        name = names[number // 3 % 3]
        others = tuple(ModelId(other) for other in names if other != name) if evict else ()
        uses = ((), ("s1",), ("s2", "s1"), ("s3",))[number // 2 % 4]
        one = attempt(f"j{self.jobs}", name, where=where, evict=others, adapters=uses)
        one = replace(one, spec=replace(one.spec, gang_size=gang_size))
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
        node = self.pool.node_id(number % self.pool.nodes)
        index = number // 3 % self.pool.gpus_per_node if tier is Tier.GPU and number % 4 else None
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
            adapters=tuple(ADAPTERS.values()),
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
    _keeps_every_promise(Play(), script)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 31), st.integers(0, 11)), max_size=120))
def test_gangs_and_singles_share_a_node_and_each_ends_exactly_once(script: list[tuple[int, int]]) -> None:
    _keeps_every_promise(Play(replace(POOL, nodes=1, gpus_per_node=4), (1, 2, 4, 1)), script)


def _keeps_every_promise(play: Play, script: list[tuple[int, int]]) -> None:
    for action, number in script:
        play.act(action, number)
    play.heal()
    assert all(len(ends) == 1 for ends in play.ends.values()), {str(name): ends for name, ends in play.ends.items() if len(ends) > 1}
    assigned = {key(f"j{number}") for number in range(1, play.jobs + 1)}
    assert play.settled == assigned
    assert not play.machine.state.ended
    assert not play.machine.state.ahead
