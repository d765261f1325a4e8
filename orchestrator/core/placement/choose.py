"""From one class of jobs and the fleet as it is now to candidates: the best place that can be bound, and the best worth waiting for.

Decides which slot a chosen row means. Must not change any state of the fleet. The arithmetic is `kernel`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from atoll.model.ids import AdapterId, ModelId
from atoll.model.placement import AWAITS, Awaits, Candidate, FetchFrom, PackedCandidates, Reason, Rejection, candidate_of
from atoll.model.replica import ReplicaState
from orchestrator.core.learning.book import Book
from orchestrator.core.placement import kernel, listing
from orchestrator.core.placement.blocks import Members
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.column import Column, free_bytes
from orchestrator.core.placement.columns import REASON_CODE, REASONS, Columns
from orchestrator.core.placement.estimate import Estimate
from orchestrator.core.placement.eviction import leaving
from orchestrator.core.placement.filters import counted
from orchestrator.core.placement.gangs import spare_slot
from orchestrator.core.placement.nearness import NOTHING_NEAR
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.presence import lacked, warm_slot
from orchestrator.core.placement.registry import LAYOUT, TERM_NAMES
from orchestrator.core.placement.rows import (
    COLD,
    FORBIDDEN_US,
    LEAD,
    NO_DEADLINE,
    OVERDUE_US,
    READY,
    UNREACHABLE,
    Bools,
    Dyn,
    Fix,
    Ints,
    Out,
    Pres,
    Rate,
    Source,
    State,
)
from orchestrator.core.placement.rules import NO_LOT, RULES, Chooser, Lot, Table, choose
from orchestrator.core.placement.worths import Worths
from orchestrator.core.state import ReplicaKey, Slot

# Rows besides the best among which one of another pool is: a pool has three at most.
_OTHERS_MAX: Final = 4
# As plain integers: a member of an IntEnum costs a look-up where a list is indexed.
_NO_SLOT, _NO_BLOCK = REASON_CODE[Reason.NO_SLOT], REASON_CODE[Reason.NO_BLOCK]
_TOLD_APART = (REASON_CODE[Reason.MEMORY_BUSY], REASON_CODE[Reason.LOAD_TOO_DEAR], REASON_CODE[Reason.EVICTION_IN_VAIN])
_ON_ITS_WAY: Final = (ReplicaState.ABSENT, ReplicaState.LOADING)
_WIDTH: Final = LEAD + len(TERM_NAMES)
# The origin store gives sooner than those of the site that have the weights.
PAST_THE_SITE: Final = FetchFrom(sites=(), origin_too=True)
_TOLD_WAIT, _TOLD_AWAITS = 1, 3
_AWAITS: Final = {awaits: number for number, awaits in enumerate(AWAITS)}
_NOW, _NEED, _CHURN, _SLACK = int(Rate.NOW), int(Rate.NEED), int(Rate.CHURN), int(Rate.SLACK)
_DONE_WITHIN, _BEGUN_WITHIN = int(Rate.DONE_WITHIN), int(Rate.BEGUN_WITHIN)
_FETCH, _SOURCE, _ORIGIN, _SITE_FETCHING = int(Out.FETCH), int(Out.SOURCE), int(Source.ORIGIN), int(Source.SITE_FETCHING)
_TOTAL, _WAIT, _DELAY, _PAID, _FREE = int(Out.TOTAL), int(Out.WAIT), int(Out.DELAY), int(Out.PAID), int(Dyn.FREE)


@dataclass(slots=True, kw_only=True)
class Board:
    """All rows of one class, scored: `out` as `rows.Out` says. `bound`: the row to bind now, `patient`: the one to wait for; None: none."""

    columns: Columns
    estimate: Estimate
    now_us: int
    dyn: Ints  # what the pools are like for this class: a gang's free blocks in the place of slots
    out: Ints
    bound: int | None
    patient: int | None
    pools: int  # rows are kind x pools + pool
    changes: int  # of `columns`, for which this was true
    slack_us: int  # until the deadline
    begin_us: int  # until it is ended if it does not execute
    serving: tuple[int, listing.Serving] | None = None  # kept for who asks again: of which row, and what serves it as well
    keys: Ints | None = None  # where a rule that is not least cost weighs waiting: by what

    def holds(self, slack_us: int, begin_us: int) -> bool:
        """Whether scoring again in the same step would find the same."""
        return self.columns.changes == self.changes and (slack_us, begin_us) == (self.slack_us, self.begin_us)

    def column(self, row: int) -> Column:
        """The pool of a row."""
        return self.columns.columns[row % self.pools]

    def is_cold(self, row: int) -> bool:
        """Whether the model has to be loaded for this row."""
        return row // self.pools == COLD

    def total_us(self, row: int) -> int:
        """The cost of a row."""
        return self.out.item(row, _TOTAL)

    def gain_us(self, bound: int, patient: int) -> int:
        """By how much the row to wait for is better than the row to bind."""
        return self.total_us(bound) - self.total_us(patient) if self.keys is None else int(self.keys[bound] - self.keys[patient])

    def wait_us(self, row: int) -> int:
        """How long until a row could begin."""
        return self.out.item(row, _WAIT)

    def fetch_us(self, row: int) -> int:
        """How long until the weights of a row are there."""
        return self.out.item(row, _FETCH)

    def source(self, row: int) -> Source:
        """Where the weights of a cold row come from."""
        return Source(int(self.out[row, Out.SOURCE]))

    def awaits_flight(self, row: int) -> bool:
        """Whether slots are free for a row, and its weights on their way to another node of the site: only these are waited for."""
        flies = self.is_cold(row) and self.out.item(row, _SOURCE) == _SITE_FETCHING and self.wait_us(row) > 0
        return flies and self.dyn.item(row % self.pools, _FREE) > 0

    def overdue(self, row: int) -> bool:
        """Whether the row waits for a slot that should have been free by now."""
        return self.out.item(row, _WAIT) == OVERDUE_US

    def gpu_usd_micros(self, row: int) -> int:
        """Micro-dollars of GPU time that a row costs, the fetch for which its slot is held included."""
        return self.out.item(row, _PAID)

    def delay_us(self, row: int) -> int:
        """Predicted time from decision to result, without prices."""
        return self.out.item(row, _DELAY) + self.estimate.unpriced_us.item(row)

    def candidates(self, rows: list[int]) -> tuple[Candidate, ...]:
        """Rows as they are kept in an explanation."""
        return tuple(self.told(row, 0)[0] for row in rows)

    def told(self, row: int, keep: int) -> tuple[Candidate, Sequence[Candidate]]:
        """A row as it is kept in an explanation, and the next best besides it, cheapest first, at most `keep`."""
        rows = np.empty(1 + keep, dtype=np.int64)
        rows[0] = row
        figures = np.empty((1 + keep, _WIDTH), dtype=np.int64)
        found = listing.tell(self.out, self.estimate.still.terms, self.pools, rows, LAYOUT, figures)
        told, columns, pools = rows[:found].tolist(), self.columns.columns, self.pools
        for number, (one, wait_us) in enumerate(zip(told, figures[:found, _TOLD_WAIT].tolist(), strict=True)):
            # Nothing is looked up for those that load in a slot which is free: they wait for nothing.
            if (one // pools != COLD or wait_us) and (awaits := awaited(self, one)) is not Awaits.NOTHING:
                figures[number, _TOLD_AWAITS] = _AWAITS[awaits]
        fetch_from = () if self.estimate.ways.peers is None else tuple(map(self._peers_of, told))
        lacks = () if self.estimate.adapting is None else tuple(map(self.lacks, told))
        of_first = (self.fetch_from(row), lacks[0] if lacks else ())
        chosen = candidate_of(columns[row % pools].place, figures[0].tolist(), *of_first)
        if found == 1:
            return chosen, ()
        places = tuple([columns[one % pools].place for one in told[1:]])
        return chosen, PackedCandidates(figures[1:found].tobytes(), places, fetch_from[1:], lacks[1:])

    def lacks(self, row: int) -> tuple[AdapterId, ...]:
        """The adapters of the class that have to be brought to a row's replica: all of them to one that has to be loaded."""
        return self.estimate.variant.adapters if self.is_cold(row) else lacked(self.estimate.variant, slots_of(self, row))

    def fetch_from(self, row: int) -> FetchFrom | None:
        """From where outside of the site a row's weights have to come, if that has to be said: from peer sites, or past nodes of the site
        that have them, or should by now. None: the origin store, as nobody is nearer, or they are at the site or on their way."""
        if row // self.pools != COLD or self.out.item(row, _SOURCE) != _ORIGIN or not self.out.item(row, _FETCH):
            return None
        peers, near = self._peers_of(row), self.columns.where.near(self.column(row), self.estimate.variant.model_id)
        return PAST_THE_SITE if peers is None and near != NOTHING_NEAR else peers

    def _peers_of(self, row: int) -> FetchFrom | None:
        ways = self.estimate.ways
        if ways.peers is None or row // self.pools != COLD or self.out.item(row, _SOURCE) != _ORIGIN or not self.out.item(row, _FETCH):
            return None
        return ways.source(row % self.pools)

    def is_at(self, row: int, candidate: Candidate | None) -> bool:
        """Whether a row means the place of a candidate."""
        here = (*self.column(row).place, self.is_cold(row))
        return candidate is not None and (candidate.site_id, candidate.pool_id, candidate.cold) == here

    def regret_us(self) -> int:
        """By how much the best place that can be bound beats the best in another pool; nothing if none can be bound."""
        if self.bound is None:
            return 0
        rows = np.empty(_OTHERS_MAX, dtype=np.int64)
        found = listing.nearest(self.out, self.bound, rows)
        for row in rows[:found].tolist():
            if row % self.pools != self.bound % self.pools:
                return max(self.total_us(row) - self.total_us(self.bound), 0)
        return UNREACHABLE

    def best_waiting(self, kind: int) -> int | None:
        """The row of a kind that costs least of those that are worth waiting for."""
        rows = np.flatnonzero(self.out[kind * self.pools : (kind + 1) * self.pools, Out.STATE] == State.WAITS) + kind * self.pools
        return int(rows[self.out[rows, Out.TOTAL].argmin()]) if len(rows) else None

    def short_us(self) -> int:
        """By how much the job comes too late wherever it goes, by what is likely; not positive: there is a place, now or later, for which
        it has the time, or it has time for ever. 0 too where there is no place at all."""
        if (self.slack_us, self.begin_us) == (NO_DEADLINE, NO_DEADLINE):
            return 0
        short = self.out[:, Out.SHORT][(self.out[:, Out.STATE] != State.IMPOSSIBLE) | (self.out[:, Out.SHORT] > 0)]
        return int(short.min()) if len(short) else 0

    def rejections(self) -> tuple[Rejection, ...]:
        """Pools that cannot be bound now, counted by reason; the order is that of `Reason`."""
        counts = np.zeros(len(REASONS), dtype=np.int64)
        taken, reasons = _NO_SLOT, self.columns.reason
        if self.estimate.variant.gang_size > 1:
            # A gang is told of blocks: its pools may well have slots that are free.
            taken, reasons = _NO_BLOCK, np.where(reasons == _NO_SLOT, _NO_BLOCK, reasons)
        listing.count(self.estimate.codes, reasons, self.dyn, self.out, (taken, *_TOLD_APART), counts)
        return counted(counts.tobytes())


class Scorer:
    """Scores classes against the fleet. Tables are kept between calls: a Board is good until the next one is made in the same table."""

    __slots__ = ("_chooser", "_columns", "_everything", "_guards", "_outs", "_policy", "_target", "_timed", "worths")

    def __init__(self, columns: Columns, policy: Policy, target: Callable[[ModelId], int], book: Book) -> None:
        self._columns = columns
        self._target = target
        self._policy = policy
        self._chooser = RULES.get(policy.rule)
        self.worths = Worths(columns, policy, book)
        self._guards, self._timed = "churn" in policy.terms, "deadline" in policy.terms
        self._outs: dict[tuple[int, int], Ints] = {}  # by number of the table, and its rows
        self._everything = np.zeros(0, dtype=np.bool_)

    def score(
        self,
        key: ClassKey,
        estimate: Estimate,
        now_us: int,
        *,
        slack_us: int = NO_DEADLINE,
        begin_us: int = NO_DEADLINE,
        mask: Bools | None = None,
        lot: Lot = NO_LOT,
        table: int = 0,
    ) -> Board:
        """Cost every row of a class. `slack_us`: until the job's deadline, `begin_us`: until its start timeout; `mask`: rows that may be
        chosen; `lot`: whose decision it is, for the policies that choose by chance or in turn; `table`: which of the tables is written."""
        columns, rates = self._columns, self.worths.of(key, estimate.model.modality)
        presence = columns.where.presence(estimate.variant, columns.gangs, estimate.adapting)
        dyn, rooms, node_rooms = columns.dyn, columns.rooms, columns.node_rooms
        if key.gang_size > 1:
            dyn, rooms, node_rooms = columns.gangs.tables(key.gang_size, estimate.memory_bytes, dyn, presence.spots)
        rows = len(estimate.fix)
        out = self._outs.get((table, rows))
        if out is None:
            out = self._allot(table, rows)
        rates[_NOW], rates[_NEED] = now_us, estimate.memory_bytes
        rates[_CHURN] = self.guards(key.model_id)
        self.time(rates, slack_us, begin_us)
        chosen = self._everything[:rows] if mask is None else mask
        bound, patient = kernel.decide(estimate.fix, dyn, rooms, node_rooms, presence.table, presence.spots, rates, chosen, out)
        board = Board(
            columns=columns,
            estimate=estimate,
            now_us=now_us,
            dyn=dyn,
            out=out,
            bound=None if bound < 0 else int(bound),
            patient=None if patient < 0 else int(patient),
            pools=len(columns.columns),
            changes=columns.changes,
            slack_us=slack_us,
            begin_us=begin_us,
        )
        if self._chooser is not None:
            self._choose(self._chooser, board, chosen, presence.table, lot)
        return board

    def time(self, rates: Ints, slack_us: int, begin_us: int) -> None:
        """Write down how long a job has. A policy may not care about being late; whoever would have to leave for it in vain does."""
        rates[_SLACK] = slack_us if self._timed else NO_DEADLINE
        rates[_DONE_WITHIN], rates[_BEGUN_WITHIN] = slack_us, begin_us

    def _allot(self, table: int, rows: int) -> Ints:
        """A table of so many rows. Classes have two or three for each pool: tables for another number of pools are of no use."""
        pools = len(self._columns.columns)
        self._outs = {key: out for key, out in self._outs.items() if key[1] in (2 * pools, 3 * pools)}
        out = self._outs[table, rows] = np.zeros((rows, len(Out)), dtype=np.int64)
        if len(self._everything) < rows:
            self._everything = np.ones(rows, dtype=np.bool_)
        return out

    def _choose(self, chooser: Chooser, board: Board, mask: Bools, presence: Ints, lot: Lot) -> None:
        """Where the policy's rule is not least cost: what it takes of the same rows."""
        columns, estimate, states = self._columns, board.estimate, board.out[:, Out.STATE]
        held = np.zeros(board.pools, dtype=np.bool_)
        held[presence[:, Pres.POOL]] = presence[:, Pres.SOURCE] == Source.SITE
        table = Table(
            bindable=mask & (states == State.BINDABLE),
            out=board.out,
            fix=estimate.fix,
            dyn=columns.dyn,
            slots=columns.slots,
            held=held,
            transfer_us=estimate.fix[:, Fix.INPUT] + estimate.output_us,
            usd_micros=board.out[:, Out.PAID] + estimate.egress_usd_micros,
            lot=lot,
            seed=self._policy.seed,
            after=columns.after(lot.last),
        )
        taken = choose(chooser, table, mask & (states == State.WAITS), board.patient)
        board.bound, board.patient, board.keys = taken.bound, taken.patient, taken.keys

    def guards(self, model_id: ModelId) -> bool:
        """Whether one more copy would be more than the target and one, and the policy minds."""
        return self._guards and self._columns.prices.copies(model_id) > self._target(model_id)


def slots_of(board: Board, row: int) -> tuple[Slot, ...]:
    """The slots that a row which can be bound means, the lead first; one, unless the class is a gang's."""
    column, variant = board.column(row), board.estimate.variant
    if variant.gang_size > 1:
        return _block(board, row) or ()
    slot = _cold_slot(board, column, row) if board.is_cold(row) else _resident_slot(board, row)
    return () if slot is None else (slot,)


def _resident_slot(board: Board, row: int) -> Slot | None:
    """The slot that a row of single jobs means by a resident replica."""
    column, variant, adapting = board.column(row), board.estimate.variant, board.estimate.adapting
    if adapting is None:
        return warm_slot(column, variant.model_id)
    found = board.columns.where.residents(column, variant, adapting)[0 if row // board.pools == READY else 1]
    return None if found is None else found.slot


def _block(board: Board, row: int) -> Members | None:
    """The block that a row of a gang means."""
    column, variant = board.column(row), board.estimate.variant
    blocks = board.columns.gangs.blocks(column, variant.gang_size)
    if not board.is_cold(row):
        return blocks.ready(variant.model_id)
    if board.out[row, Out.STATE] != State.BINDABLE:
        return blocks.soonest()
    node = int(board.out[row, Out.NODE])
    return blocks.to_load_in(board.estimate.memory_bytes, node - 1 - column.first_node if node else None)


def _cold_slot(board: Board, column: Column, row: int) -> Slot | None:
    """Of the free slots of the pool, or of the node that is meant, one where it fits at once, else the cheaper to clear."""
    node = int(board.out[row, Out.NODE])
    node_index = node - 1 - column.first_node if node else None
    free = column.free if node_index is None else column.free_on[node_index]
    need_bytes, roomy = board.estimate.memory_bytes, column.top(free.roomy)
    if roomy is not None and free_bytes(roomy) >= need_bytes:
        return spare_slot(column, need_bytes, node_index) or roomy if column.gangs else roomy
    found = [slot for slot in (column.top(free.cheap), column.top(free.kept)) if slot is not None]
    return min(found, key=lambda slot: _price_us(board, column, slot), default=None)


def _price_us(board: Board, column: Column, slot: Slot) -> int:
    victims, short_bytes = board.columns.prices.victims(slot, column.pool), board.estimate.memory_bytes - free_bytes(slot)
    gone = leaving(victims, short_bytes)
    fits = sum(victim.memory_bytes for victim in gone) >= short_bytes
    return min(sum(victim.price_us for victim in gone), FORBIDDEN_US) if fits else FORBIDDEN_US


def awaited(board: Board, row: int) -> Awaits:
    """What a row is behind that is no work of a slot."""
    column, variant = board.column(row), board.estimate.variant
    if board.is_cold(row):
        if board.awaits_flight(row):
            return Awaits.FETCH
        if not board.wait_us(row) or column.free_slots or variant.gang_size > 1:
            return Awaits.NOTHING
        return Awaits.GANG if _is_kept(column.top(column.busy)) else Awaits.NOTHING
    slot = next(iter(slots_of(board, row)), None)
    if variant.gang_size == 1 and _is_kept(slot):
        return Awaits.GANG
    replica = slot.replicas.get(ReplicaKey(variant.model_id, variant.gang_size)) if slot is not None else None
    return Awaits.LOAD if replica is not None and replica.state in _ON_ITS_WAY else Awaits.NOTHING


def _is_kept(slot: Slot | None) -> bool:
    """Whether a slot is idle and kept for a gang."""
    return slot is not None and bool(slot.claimed_until_us) and not slot.attempts
