"""Lines: how long those who rest for busy places put off whoever comes after.

Decides who is in a line: all who rest for the slots that a row waits for, whatever their model. The work of those who rest for a replica
spreads evenly over the slots that have it, in all pools that serve them about as soon, and that of those who load over all slots; so to
each slot comes a share of the work of all whose models are there. Who loads waits for a slot that is empty: behind work of its own model a
slot takes more (`slot_depth`), so those who have theirs pass by, until ageing makes room. Who waits for weights on their way to another
node of the site will share the ways to its nodes with all who wait for that; while there are free slots for them, nothing else puts off.
Must not change the queue or the fleet.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from orchestrator.core.placement.busy import awaited_slot
from orchestrator.core.placement.choose import Board
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.column import Column
from orchestrator.core.placement.listing import Serving, alike
from orchestrator.core.placement.rows import COLD, UNREACHABLE, Dyn, Fix, Out, Source, State
from orchestrator.core.queue import JobClass, Queue
from orchestrator.core.standing import EVERYWHERE, Kind, Queued, Stand
from orchestrator.core.state import ReplicaKey

# Slots that are looked at one by one. Those of a larger pool are taken to be like them.
_SLOTS_MAX: Final = 8
# Pools in whose lines one class stands. Whom more of them serve has few jobs before him in each.
_LINES_MAX: Final = 4
# Places serve a class together if none takes longer than twice the best and this much, about an execution: so long do slots that are
# busy with the like differ.
_ABOUT_US: Final = 5_000_000
_WHOLE_MILLI: Final = 1_000
_DELAY, _STATE, _IMPOSSIBLE = int(Out.DELAY), int(Out.STATE), int(State.IMPOSSIBLE)
_SOURCE, _SITE_FETCHING, _COPY, _FETCH = int(Out.SOURCE), int(Source.SITE_FETCHING), int(Fix.COPY), int(Fix.FETCH)
_FREE = int(Dyn.FREE)


class Line(NamedTuple):
    """Who of other classes rests for the busy place of a row. Times are by how much they put off whoever comes after: several slots serve
    them."""

    jobs: int
    work_us: int  # all of them
    passing_us: int  # and others, who pass by


_NO_LINE: Final = Line(jobs=0, work_us=0, passing_us=0)


class Pace(NamedTuple):
    """By how much each job of a class that waits puts off the next: `free_us` those for whom slots are `free` when what they wait for has
    come, `each_us` the others."""

    each_us: int
    free: int = 0
    free_us: int = 0

    def after_us(self, jobs: int) -> int:
        """By how much so many put off whoever comes after."""
        return min(jobs, self.free) * self.free_us + max(jobs - self.free, 0) * self.each_us

    def jobs_within(self, left_us: int) -> int:
        """How many of them are put off by no more than this by those before them; the first of them by nobody."""
        all_free_us = self.free * self.free_us
        if left_us < all_free_us:
            return left_us // self.free_us + 1 if left_us >= 0 else 0
        return self.free + (left_us - all_free_us) // self.each_us + 1


def pace(board: Board, row: int, key: ClassKey, bound: int | None = None, before: int = 0) -> Pace:
    """How those of a class that wait for a row put each other off, each of whom finds loaded what the one before loads. `bound`: the row
    that can be had now; `before`: jobs of other classes that take free slots first."""
    serving = _serving(board, row, key, bound)
    slot_us = max(board.estimate.execution_us.item(row) * key.gang_size // serving.slots, 1)
    own_us = _landing_us(board, row, key)
    if not own_us:
        return Pace(slot_us)
    rows = [COLD * board.pools + pool for pool, _ in serving.pools]
    at_each_us = {board.column(other).site.site_id: us for other in reversed(rows) if (us := _landing_us(board, other, key))}
    # All sites take as many as they can in the time in which the slowest takes one.
    longest_us = max(at_each_us.values())
    landing_us = max(longest_us // sum([longest_us // us for us in at_each_us.values()]), 1)
    free = sum([board.dyn.item(other % board.pools, _FREE) for other in rows if _landing_us(board, other, key)])
    return Pace(max(slot_us, landing_us), max(free - before, 0), landing_us)


def _landing_us(board: Board, row: int, key: ClassKey) -> int:
    """For how long a job takes the ways to nodes when the flight of its site has landed: copies within the site and fetches from outside go
    on beside each other, and what comes to a node is for all of its slots. 0: the row waits for no flight."""
    if board.out.item(row, _SOURCE) != _SITE_FETCHING:
        return 0
    copy_us, fetch_us = board.estimate.fix.item(row, _COPY), board.estimate.fix.item(row, _FETCH)
    return max(copy_us * fetch_us // max(copy_us + fetch_us, 1) * key.gang_size // board.column(row).pool.spec.gpus_per_node, 1)


def line_at(queue: Queue, board: Board, patient: int, key: ClassKey) -> Line:
    """The line of other classes at the busy place of a row, which its own work makes up: twenty films before a picture are twenty
    films."""
    pool, column, known = patient % board.pools, board.column(patient), queue.classes.get(key)
    loading = queue.resting.before(pool, key, known, cold=True)
    ready = queue.resting.before(pool, key, known, cold=False)
    if not loading and not ready:
        return _NO_LINE
    jobs = sum([line.jobs for line in loading])
    work_us = sum([line.slot_us() for line in loading])
    if board.is_cold(patient):
        others = _Brought(ready)
        slots = [others.to(column, where) for where in _some_of(column)] if ready else [0]
        left = slots.count(0)
        # Those whose model is nowhere wait for the slots for which nobody rests whose model is there; where there are none, until all of
        # these are through, or a slot is due to them.
        passing_us = 0 if left else min(*slots, _due_us(queue, pool, known))
        work_us = work_us * len(slots) // (left or len(slots))
        if board.out.item(patient, _SOURCE) == _SITE_FETCHING:
            landing_us, free = sum([crowd.copy_us for line in loading for crowd in line.crowds.values()]), board.dyn.item(pool, _FREE)
            work_us = landing_us + max(work_us - landing_us, 0) * max(jobs - free, 0) // max(jobs, 1)
        return Line(jobs=jobs, work_us=work_us, passing_us=passing_us)
    if ready:
        others = _Brought(ready, besides=ReplicaKey(key.model_id, key.gang_size))
        own_jobs, own_us = others.own
        work_us += _filled([others.to(column, where) for where in _those_with(board, patient, key)], own_us)
        jobs += own_jobs + others.jobs
    return Line(jobs=jobs, work_us=work_us, passing_us=0)


def _due_us(queue: Queue, pool: int, known: JobClass | None) -> int:
    """How long until ageing gives a class a slot of a pool, if nobody who rests there is older: those would have it before."""
    elder = queue.resting.elder(pool)
    if known is None or (elder is not None and elder.age_key() < known.age_key()):
        return UNREACHABLE
    return max(queue.ageing_us - (queue.shares.now_us - known.oldest[1]), 0)


class _Brought:
    """What those who rest for their models bring to single slots. `jobs`: of all crowds that bring anything to those that were asked for;
    `own`: jobs of the kind `besides`, which is left out, and what they bring to each slot."""

    __slots__ = ("_besides", "_known", "_lines", "jobs")

    def __init__(self, lines: list[Queued], besides: ReplicaKey | None = None) -> None:
        self._lines = lines
        self._besides = besides
        self._known: dict[Kind, int] = {}
        self.jobs = 0

    @property
    def own(self) -> tuple[int, int]:
        return self._of(self._besides) if self._besides is not None else (0, 0)

    def to(self, column: Column, where: tuple[int, int]) -> int:
        """What comes to a slot, by all whose models are there."""
        brought_us, known = 0, self._known
        for kind in column.resident.get(where, ()):
            if kind == self._besides:
                continue
            kind_us = known.get(kind)
            if kind_us is None:
                jobs, kind_us = self._of(kind)
                known[kind] = kind_us
                self.jobs += jobs
            brought_us += kind_us
        return brought_us

    def _of(self, kind: Kind) -> tuple[int, int]:
        jobs = brought_us = 0
        for line in self._lines:
            crowd = line.crowds.get(kind)
            if crowd is not None:
                jobs, brought_us = jobs + crowd.jobs, brought_us + crowd.slot_us()
        return jobs, brought_us


def _filled(others: list[int], own_us: int) -> int:
    """When a class's own kind is through, `own_us` for each slot, that takes first the slots to which others bring least."""
    left_us, level_us = own_us * len(others), 0
    ordered = sorted(others)
    for count, other_us in enumerate(ordered, 1):
        left_us += other_us
        level_us = left_us // count
        if count < len(ordered) and level_us <= ordered[count]:
            break
    return level_us


def _some_of(column: Column) -> tuple[tuple[int, int], ...]:
    """Slots of a pool, evenly spread over it."""
    return _spread(column.pool.spec.gpus_per_node, column.pool.spec.slots)


@lru_cache(maxsize=4_096)  # by the shape of a pool, asked for at each decision
def _spread(per_node: int, slots: int) -> tuple[tuple[int, int], ...]:
    count = min(slots, _SLOTS_MAX)
    return tuple(divmod(number * slots // count, per_node) for number in range(count))


def _those_with(board: Board, row: int, key: ClassKey) -> list[tuple[int, int]]:
    """The slots that have a class's model, or where there are many the one that it waits for."""
    there = _slots_with(board.column(row), key)
    awaited = awaited_slot(board, row) if len(there) > _SLOTS_MAX else None
    return sorted(there)[:_SLOTS_MAX] if awaited is None else [(awaited.node_index, awaited.index)]


def stand_of(board: Board, row: int, key: ClassKey, bound: int | None = None) -> Stand:
    """What a job of a class that rests for a row adds to lines: it holds its slots while it executes and, where it is cold, loads. `bound`:
    the row that can be had now."""
    cold = board.is_cold(row)
    exec_us = board.estimate.execution_us.item(row)
    held_us = board.delay_us(row) - board.wait_us(row) if cold and board.out.item(row, _STATE) != _IMPOSSIBLE else exec_us
    there = _serving(board, row, key, bound)
    if len(there.pools) > _LINES_MAX:
        lines: tuple[tuple[int, int, int], ...] = ((EVERYWHERE, _WHOLE_MILLI, there.slots),)
    else:
        slots = max(sum([served for _, served in there.pools]), 1)
        lines = tuple([(pool, served * _WHOLE_MILLI // slots, served) for pool, served in there.pools])
    return Stand(
        lines=lines,
        cold=cold,
        each_us=exec_us * key.gang_size,
        load_us=max(held_us - exec_us, 0) * key.gang_size,
        copies_max=max(sum([served for _, served in there.pools]) // key.gang_size, 1),
        copy_us=_landing_us(board, row, key) // (len(there.pools) if len(there.pools) > _LINES_MAX else 1),
    )


def _serving(board: Board, row: int, key: ClassKey, bound: int | None) -> Serving:
    """Where else the class would be served about as soon as by a row, among what is better than the one that can be had now."""
    if board.serving is not None and board.serving[0] == row:
        return board.serving[1]
    pools, cold = board.pools, board.is_cold(row)
    own = _slots_at(board.column(row), key, cold=cold)
    rows = np.empty(_LINES_MAX, dtype=np.int64)
    limit_us = board.total_us(bound) if bound is not None else UNREACHABLE
    count = alike(board.out, row, pools, limit_us, 2 * board.out.item(row, _DELAY) + _ABOUT_US, rows)
    found = [(row % pools, own)]
    if count:
        found += [(other % pools, _slots_at(board.column(other), key, cold=cold)) for other in rows[:count].tolist()]
    known = sum([slots for _, slots in found])
    serving = Serving(found, known + known * (count + 1 - len(found)) // len(found))
    board.serving = row, serving
    return serving


def _slots_at(column: Column, key: ClassKey, *, cold: bool) -> int:
    """Slots of a pool that serve a class; of gangs, those of whole blocks."""
    spec, size = column.pool.spec, key.gang_size
    return max(spec.nodes * (spec.gpus_per_node // size) * size if cold else len(_slots_with(column, key)), 1)


def _slots_with(column: Column, key: ClassKey) -> set[tuple[int, int]]:
    warm = column.warm.get(ReplicaKey(key.model_id, key.gang_size))
    return warm.slots if warm is not None else set()
