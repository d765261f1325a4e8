"""From one class of jobs and the fleet as it is now to candidates: the best place that can be bound, and the best worth waiting for.

Decides cost, feasibility now, and ties. Must not change any state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from atoll.model import limits
from atoll.model.ids import ModelId
from atoll.model.placement import Candidate, Reason, Rejection
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.columns import Column, Columns, WarmIndex
from orchestrator.core.placement.estimate import Estimate
from orchestrator.core.placement.filters import REASONS
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.registry import Costs, costs
from orchestrator.core.placement.rows import Bools, Ints, Rows
from orchestrator.core.state import Slot

# Beyond any sum of terms, and far from overflowing when summed.
_UNREACHABLE = 2**60
# Waiting longer than this is no plan: a pool whose first slot is a day away is as good as none.
_WAIT_MAX_US = 24 * 3600 * 1_000_000


@dataclass(slots=True, kw_only=True)
class Board:
    """All rows of one class, scored. `bindable`: a slot can be bound now; `possible`: now or after waiting."""

    columns: Columns
    estimate: Estimate
    now_us: int
    rows: Rows
    costs: Costs
    bindable: Bools
    possible: Bools

    def best(self, mask: Bools, policy: Policy) -> int | None:
        """The row of least cost among `mask`, ties resolved; None if there is none."""
        if not mask.any():
            return None
        total = np.where(mask, self.costs.total, _UNREACHABLE)
        least = int(total.min())
        margin = max(policy.tie_us, least * policy.tie_milli // 1_000)
        tied = np.flatnonzero(total <= least + margin)
        if len(tied) == 1:
            return int(tied[0])
        return min((int(row) for row in tied), key=lambda row: self._virtues(row, total))

    def _virtues(self, row: int, total: Ints) -> tuple[int, int, int, int, int]:
        """Among equals: already resident, nothing to fetch, cheaper, more free slots, then the row's own order of names."""
        count = len(self.columns.columns)
        pool = row % count
        fetched = int(self.rows.fetch_us[row] > 0)
        return (int(row >= count), fetched, int(self.columns.price[pool]), -int(self.columns.free[pool]), row)

    def candidate(self, row: int) -> Candidate:
        """The row as it is kept in an explanation."""
        count = len(self.columns.columns)
        column = self.columns.columns[row % count]
        return Candidate(
            site_id=column.site.site_id,
            pool_id=column.pool.pool_id,
            total_us=int(self.costs.total[row]),
            terms_us=tuple(self.costs.terms[:, row].tolist()),
            cold=row >= count,
            wait_us=0 if self.bindable[row] else int(self.rows.wait_us[row]),
        )

    def others(self, chosen: int) -> tuple[Candidate, ...]:
        """The next best rows besides `chosen`, cheapest first."""
        total = np.where(self.possible, self.costs.total, _UNREACHABLE)
        total[chosen] = _UNREACHABLE
        keep = min(limits.CANDIDATES_KEPT - 1, int((total < _UNREACHABLE).sum()))
        if keep == 0:
            return ()
        nearest = np.argpartition(total, keep - 1)[:keep]
        order = nearest[np.lexsort((nearest, total[nearest]))]
        return tuple(self.candidate(int(row)) for row in order)

    def rejections(self) -> tuple[Rejection, ...]:
        """Pools that cannot be bound now, counted by reason; the order is that of `Reason`."""
        counts: dict[Reason, int] = {}
        codes = self.estimate.codes
        count = len(codes)
        for code, pools in enumerate(np.bincount(codes, minlength=len(REASONS)).tolist()):
            reason = REASONS[code]
            if reason is not None and pools:
                counts[reason] = pools
        open_now = (codes == 0) & ~(self.bindable[:count] | self.bindable[count:])
        for pool in np.flatnonzero(open_now).tolist():
            reason = self.columns.reason[pool]
            counts[reason] = counts.get(reason, 0) + 1
        return tuple(Rejection(reason=reason, pools=counts[reason]) for reason in Reason if reason in counts)


def score(key: ClassKey, estimate: Estimate, columns: Columns, policy: Policy, now_us: int) -> Board:
    """Cost every row of a class."""
    count = len(columns.columns)
    feasible = (estimate.codes == 0) & columns.accepting
    cold_wait = np.where(columns.free > 0, 0, np.clip(columns.soonest - now_us, 1, _UNREACHABLE))
    wait = np.concatenate([np.full(count, _UNREACHABLE, dtype=np.int64), cold_wait])
    fetch = np.concatenate([np.zeros(count, dtype=np.int64), estimate.fetch_alone_us * (1 + columns.flows)])
    stage = np.concatenate([np.zeros(count, dtype=np.int64), estimate.stage_us])
    resident = np.zeros(2 * count, dtype=np.bool_)
    bindable = np.concatenate([np.zeros(count, dtype=np.bool_), feasible & (columns.free > 0)])
    possible = np.concatenate([np.zeros(count, dtype=np.bool_), feasible & (cold_wait < _WAIT_MAX_US)])
    for pool in columns.by_model.get(key.model_id, ()):
        if not feasible[pool]:
            continue
        column = columns.columns[pool]
        warm = column.warm.get(key.model_id)
        if warm is not None:
            _warm_row(column, warm, pool, now_us, wait, bindable, possible)
            resident[pool] = possible[pool]
        row = count + pool
        _, ready_us, from_host = cold_source(column, key.model_id, now_us)
        if ready_us is not None:
            fetch[row] = ready_us
            if from_host:
                stage[row] = estimate.stage_host_us[pool]
    twice = np.concatenate
    rows = Rows(
        resident=resident,
        wait_us=np.where(possible, wait, 0),
        fetch_us=fetch,
        input_us=twice([estimate.input_us, estimate.input_us]),
        stage_us=stage,
        init_us=np.full(2 * count, estimate.init_us, dtype=np.int64),
        execution_us=twice([estimate.execution_us, estimate.execution_us]),
        output_us=twice([estimate.output_us, estimate.output_us]),
        usd_micros_per_hour=twice([columns.price, columns.price]),
        weight_milli=policy.weight_milli(key.priority),
        seconds_per_dollar=policy.seconds_per_dollar,
    )
    return Board(
        columns=columns, estimate=estimate, now_us=now_us, rows=rows, costs=costs(rows), bindable=bindable, possible=possible
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
        wait[pool] = max(slot.busy_until_us - now_us, 1)
    possible[pool] = wait[pool] < _WAIT_MAX_US


def warm_slot(column: Column, model_id: ModelId) -> Slot | None:
    """The slot that a resident row of this pool means: free and most recently used, else the one free soonest that may take one more."""
    warm = column.warm.get(model_id)
    if warm is None:
        return None
    return column.top(warm.free) or column.top(warm.open)


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
