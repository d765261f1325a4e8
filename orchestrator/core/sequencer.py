"""The order of effects: what is in flight to the store, and what may therefore be shown and performed.

Decides which Steps form the next commit and when their commands are free. One commit is in flight at a time; Steps that arrive
meanwhile join the next. A Step without records still waits for those before it, because it was decided on their account.
Must not know what a store, a network or a clock is: the live driver and the simulator call the same five methods.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from atoll.model.errors import StateError
from orchestrator.core.outputs import Command, Decision, Record, Step

# A commit carries at most this many records: SQLite writes 500 rows in 3 ms, and a batch ten times that would
# add more latency to the first Step than group commit saves the last. A single larger Step still goes whole.
BATCH_RECORDS_MAX: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Steps that become durable together. `records` in order; none: there is nothing to write, only an order to keep."""

    records: tuple[Record, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """What may now be performed, in order."""

    commands: tuple[Command, ...]
    decisions: tuple[Decision, ...]


class Sequencer:
    """Steps in, batches out, effects free after each commit."""

    __slots__ = ("_abandoned", "_in_flight", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[Step] = deque()
        self._in_flight: Batch | None = None
        self._abandoned = False

    @property
    def in_flight(self) -> bool:
        """Whether a batch waits for its outcome."""
        return self._in_flight is not None

    @property
    def waiting(self) -> int:
        """How many Steps wait for the commit in flight."""
        return len(self._waiting)

    def offer(self, step: Step) -> None:
        """Queue a Step. Raises StateError after `abandon`: the core that decided it is not to be believed any more."""
        if self._abandoned:
            raise StateError("a step was offered after a commit failed: the core must be loaded again first")
        if step.records or step.commands or step.decisions:
            self._waiting.append(step)

    def next_batch(self) -> Batch | None:
        """The next batch to make durable; None while one is in flight or nothing waits."""
        if self._in_flight is not None or not self._waiting or self._abandoned:
            return None
        steps = [self._waiting.popleft()]
        count = len(steps[0].records)
        while self._waiting and count + len(self._waiting[0].records) <= BATCH_RECORDS_MAX:
            step = self._waiting.popleft()
            steps.append(step)
            count += len(step.records)
        records = tuple(record for step in steps for record in step.records)
        self._in_flight = Batch(records=records, steps=tuple(steps))
        return self._in_flight

    def committed(self) -> Effects:
        """The batch in flight is durable: its effects, in order."""
        batch = self._in_flight
        if batch is None:
            raise StateError("no commit is in flight")
        self._in_flight = None
        commands = tuple(command for step in batch.steps for command in step.commands)
        decisions = tuple(decision for step in batch.steps for decision in step.decisions)
        return Effects(commands=commands, decisions=decisions)

    def abandon(self) -> None:
        """The commit in flight was refused, or nobody knows: perform nothing of it nor of what waits, ever."""
        self._in_flight = None
        self._waiting.clear()
        self._abandoned = True
