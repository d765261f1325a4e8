"""From one class of jobs and the fleet as it is now to candidates: the best place that can be bound, and the best worth waiting for.

Decides cost, feasibility now, and ties. Must not change any state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atoll.model import limits
from atoll.model.ids import ModelId
from atoll.model.placement import Candidate, Rejection
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.columns import REASONS, Column, Columns, WarmIndex
from orchestrator.core.placement.estimate import Estimate
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.registry import STAGE, terms_of, totals
from orchestrator.core.placement.rows import Bools, Ints
from orchestrator.core.state import Slot

# Beyond any sum of terms, and far from overflowing when summed.
_UNREACHABLE = 2**59
# The wait for a slot whose predicted end has passed: nothing, but not free either.
_OVERDUE_US = 1
# Waiting longer than this is no plan: a pool whose first slot is a day away is as good as none.
_WAIT_MAX_US = 24 * 3600 * 1_000_000


@dataclass(slots=True, kw_only=True)
class Board:
    """All rows of one class, scored. `bindable`: a slot can be bound now; `possible`: now or after waiting. Microseconds per row."""

    columns: Columns
    estimate: Estimate
    now_us: int
    wait_us: Ints
    fetch_us: Ints
    total_us: Ints
    bindable: Bools
    possible: Bools
    savings: dict[int, int]  # rows whose weights come from host memory, and what that saves

    def best(self, mask: Bools, policy: Policy) -> int | None:
        """The row of least cost among `mask`, ties resolved; None if there is none."""
        total = np.where(mask, self.total_us, _UNREACHABLE)
        if len(total) == 0:
            return None
        least = int(total.min())
        if least >= _UNREACHABLE:
            return None
        margin = max(policy.tie_us, least * policy.tie_milli // 1_000)
        (tied,) = np.nonzero(total <= least + margin)
        if len(tied) == 1:
            return int(tied[0])
        # Among equals: already resident, nothing to fetch, cheaper, more free slots, then the order of names.
        free = np.minimum(self.columns.free[tied % len(self.columns.columns)], 2**20 - 1)
        virtue = self.estimate.virtue[tied] | ((2**20 - 1 - free) << 16) | np.where(self.fetch_us[tied] > 0, 1 << 60, 0)
        return int(tied[int(virtue.argmin())])

    def overdue(self, row: int) -> bool:
        """Whether the row waits for a slot that should have been free by now."""
        return int(self.wait_us[row]) == _OVERDUE_US

    def delay_us(self, row: int) -> int:
        """Predicted time from decision to result, without what money is worth."""
        return int(self.total_us[row]) - int(self.estimate.fixed.money_us[row])

    def candidates(self, rows: list[int]) -> tuple[Candidate, ...]:
        """Rows as they are kept in an explanation."""
        index = np.array(rows, dtype=np.int64)
        terms = terms_of(self.estimate.fixed, index, self.wait_us, self.fetch_us).T.tolist()
        totals_us = self.total_us[index].tolist()
        count = len(self.columns.columns)
        found = []
        for row, term, total_us in zip(rows, terms, totals_us, strict=True):
            term[STAGE] -= self.savings.get(row, 0)
            column = self.columns.columns[row % count]
            found.append(
                Candidate(
                    site_id=column.site.site_id,
                    pool_id=column.pool.pool_id,
                    total_us=total_us,
                    terms_us=tuple(term),
                    cold=row >= count,
                    wait_us=0 if self.bindable[row] else int(self.wait_us[row]),
                )
            )
        return tuple(found)

    def is_at(self, row: int, candidate: Candidate | None) -> bool:
        """Whether a row means the place of a candidate."""
        count = len(self.columns.columns)
        column = self.columns.columns[row % count]
        return candidate is not None and (candidate.site_id, candidate.pool_id, candidate.cold) == (
            column.site.site_id,
            column.pool.pool_id,
            row >= count,
        )

    def next_best(self, chosen: int) -> list[int]:
        """The next best rows besides `chosen`, cheapest first."""
        total = np.where(self.possible, self.total_us, _UNREACHABLE)
        total[chosen] = _UNREACHABLE
        keep = min(limits.CANDIDATES_KEPT - 1, len(total) - 1)
        nearest = np.argpartition(total, keep)[:keep] if keep else np.empty(0, dtype=np.int64)
        ranked = sorted((cost, row) for cost, row in zip(total[nearest].tolist(), nearest.tolist(), strict=True))
        return [row for cost, row in ranked if cost < _UNREACHABLE]

    def rejections(self) -> tuple[Rejection, ...]:
        """Pools that cannot be bound now, counted by reason; the order is that of `Reason`."""
        count = len(self.columns.columns)
        closed = self.estimate.feasible & ~(self.bindable[:count] | self.bindable[count:])
        counts = self.estimate.rejected + np.bincount(self.columns.reason[closed], minlength=len(REASONS))
        found = []
        for code in np.flatnonzero(counts).tolist():
            reason = REASONS[code]
            if reason is not None:
                found.append(Rejection(reason=reason, pools=int(counts[code])))
        return tuple(found)


def score(key: ClassKey, estimate: Estimate, columns: Columns, now_us: int) -> Board:
    """Cost every row of a class."""
    count = len(columns.columns)
    feasible = estimate.feasible & columns.accepting
    free = columns.free > 0
    wait = np.empty(2 * count, dtype=np.int64)
    fetch = np.empty(2 * count, dtype=np.int64)
    bindable = np.zeros(2 * count, dtype=np.bool_)
    possible = np.zeros(2 * count, dtype=np.bool_)
    wait[:count] = _UNREACHABLE
    wait[count:] = np.where(free, 0, np.maximum(columns.soonest - now_us, _OVERDUE_US))
    fetch[:count] = 0
    fetch[count:] = estimate.fetch_alone_us * (columns.flows + 1)
    bindable[count:] = feasible & free
    possible[count:] = feasible & (wait[count:] < _WAIT_MAX_US)
    savings: dict[int, int] = {}
    for pool in columns.by_model.get(key.model_id, ()):
        if not feasible[pool]:
            continue
        column = columns.columns[pool]
        warm = column.warm.get(key.model_id)
        if warm is not None:
            _warm_row(column, warm, pool, now_us, wait, bindable, possible)
        _, ready_us, from_host = cold_source(column, key.model_id, now_us)
        if ready_us is not None:
            fetch[count + pool] = ready_us
            if from_host:
                savings[count + pool] = int(estimate.host_saving_us[pool])
    total = totals(estimate.fixed, wait, fetch)
    for row, saving_us in savings.items():
        total[row] -= saving_us
    return Board(
        columns=columns,
        estimate=estimate,
        now_us=now_us,
        wait_us=wait,
        fetch_us=fetch,
        total_us=total,
        bindable=bindable,
        possible=possible,
        savings=savings,
    )


def _warm_row(column: Column, warm: WarmIndex, pool: int, now_us: int, wait: Ints, bindable: Bools, possible: Bools) -> None:
    if column.top(warm.free) is not None:
        wait[pool] = 0
        bindable[pool] = True
    else:
        slot = column.top(warm.open)
        bindable[pool] = slot is not None
        slot = slot or column.top(warm.full)
        if slot is None:
            return
        wait[pool] = max(slot.busy_until_us - now_us, _OVERDUE_US)
    possible[pool] = wait[pool] < _WAIT_MAX_US


def warm_slot(column: Column, model_id: ModelId) -> Slot | None:
    """The slot that a resident row of this pool means: free and most recently used, else the one free soonest that may take one more."""
    warm = column.warm.get(model_id)
    if warm is None:
        return None
    return column.top(warm.free) or column.top(warm.open)


def awaited_slot(column: Column, model_id: ModelId, cold: bool) -> Slot | None:
    """The busy slot whose end a row of this pool waits for."""
    if cold:
        return column.top(column.busy)
    warm = column.warm.get(model_id)
    return (column.top(warm.open) or column.top(warm.full)) if warm is not None else None


def cold_source(column: Column, model_id: ModelId, now_us: int) -> tuple[int | None, int | None, bool]:
    """The node with a free slot where the weights are nearest: (node, microseconds until on its disk, whether in host memory).

    Without a node of that kind: (None, None, False), and the weights come from the origin. While no slot is free at all, any node that
    holds the weights counts, since it is waiting that is being priced.
    """
    anywhere = column.free_slots == 0
    for nodes, from_host in ((column.host.get(model_id), True), (column.disk.get(model_id), False)):
        if nodes:
            fitting = [node for node in nodes if anywhere or column.node_free[node]]
            if fitting:
                return min(fitting), 0, from_host
    fetching = column.fetching.get(model_id)
    if fetching:
        fitting = [node for node in fetching if anywhere or column.node_free[node]]
        if fitting:
            node = min(fitting, key=lambda node: (column.pool.nodes[node].fetching[model_id], node))
            return node, max(column.pool.nodes[node].fetching[model_id] - now_us, 0), False
    return None, None, False


def cold_slot(column: Column, model_id: ModelId, now_us: int) -> Slot | None:
    """The slot that a cold row of this pool means: on the node where the weights are nearest, else the emptiest or longest idle."""
    node_index, _, _ = cold_source(column, model_id, now_us)
    if node_index is None:
        return column.top(column.free)
    free = [slot for slot in column.pool.nodes[node_index].slots if slot.ready and not slot.attempts]
    return min(free, key=lambda slot: (slot.last_used_us, slot.index), default=None)
