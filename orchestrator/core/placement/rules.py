"""How a place is chosen among those that can be bound, where it is not by cost: the baselines, each a rule of the same machine.

Decides keys only: a figure per row, the lowest is taken. Filters, feasibility, reservations, the queue and explanations are everybody's.
Must not change state, and must not draw: chance is a hash of the policy's seed, the job, its attempt and the place, so that the order of
calls changes nothing.

Among rows of equal key: a resident replica before one that lacks adapters, before a load; then what begins sooner; then a hash of model
and pool. Deadlines, prices and what others lose move none of these rules; a rule says itself if it would rather wait than bind.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar, Final, NamedTuple, Protocol

import numpy as np

from atoll.model.ids import JobId, Ordinal, PoolId, SiteId
from orchestrator.core.placement.policy import Rule
from orchestrator.core.placement.rows import BARE, COLD, READY, UNREACHABLE, AnyArray, Bools, Dyn, Fix, Ints, Out, Source

# Rows behind a busy slot come after all rows that begin at once: beyond any share in parts per million, any points.
_BEHIND: Final = 10**9
_PPM: Final = 1_000_000
_POINTS_MAX: Final = 100
# How far weights are from being loaded, by where they come from; a resident replica is nearer than all of these.
_STEP_OF: Final = {
    Source.HOST: 2, Source.DISK: 3, Source.SITE: 4, Source.FETCHING: 4, Source.SITE_FETCHING: 4, Source.ORIGIN: 5,
}  # fmt: skip
_STEPS: Final = np.array([_STEP_OF[source] for source in Source], dtype=np.int64)
# splitmix64: three multiplications and shifts that leave no pattern of their argument.
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))


class Lot(NamedTuple):
    """Whose decision it is, and where the fleet's last attempt went: what chance and rotation are derived from."""

    job_id: JobId = JobId("")
    ordinal: Ordinal = Ordinal(1)
    last: tuple[SiteId, PoolId] | None = None


NO_LOT: Final = Lot()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What a rule may look at: the tables of a decision, figures per row of the class, slots per pool, and whose turn it is.

    `bindable`: the rows to choose among; `held`: per pool, whether a node of its site has the weights, also where they come sooner from
    elsewhere; `after`: the pool that begins a round, the one behind the fleet's last attempt.
    """

    bindable: Bools
    out: Ints
    fix: Ints
    dyn: Ints
    slots: Ints
    held: Bools
    transfer_us: Ints
    usd_micros: Ints
    lot: Lot
    seed: int
    after: int

    @property
    def pools(self) -> int:
        """Rows are kind x pools + pool."""
        return len(self.dyn)

    @property
    def kind(self) -> Ints:
        """READY, COLD or BARE, per row."""
        return np.arange(len(self.out), dtype=np.int64) // max(self.pools, 1)

    def by_row(self, of_pool: AnyArray) -> AnyArray:
        """A figure per pool, for each of its rows."""
        return np.tile(of_pool, len(self.out) // max(self.pools, 1))

    def behind(self) -> Bools:
        """Rows that begin only after other work of their slot."""
        return np.asarray(self.out[:, Out.WAIT] > 0)

    def busy_ppm(self) -> Ints:
        """The share of the pool's slots that have work, per row."""
        slots = np.maximum(self.slots, 1)
        return self.by_row((slots - self.dyn[:, Dyn.FREE]) * _PPM // slots)

    def drawn(self) -> Ints:
        """A number from 0 to 2**63 - 1 that chance gives each pool for this job's attempt, per row."""
        text = f"{self.seed}/{self.lot.job_id}/{self.lot.ordinal}".encode()
        token = np.uint64(int.from_bytes(blake2b(text, digest_size=8).digest(), "big"))
        mixed = self.fix[: self.pools, Fix.HASH].astype(np.uint64) * _GOLDEN ^ token
        for shift, factor in _MIX:
            mixed = (mixed ^ (mixed >> shift)) * factor
        return self.by_row(((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(1)).astype(np.int64))


class Chooser(Protocol):
    """A rule: the key of every row, lowest first. `waits`: a busy place of a lower key is waited for; `summary` is for people."""

    waits: ClassVar[bool]
    summary: ClassVar[str]

    def keys(self, table: Table) -> Ints: ...


class Random:
    """Any pool that can be bound, each as likely as the other. Never waits while one can."""

    waits: ClassVar[bool] = False
    summary: ClassVar[str] = "any place that can be had"

    def keys(self, table: Table) -> Ints:
        """The draw itself."""
        return table.drawn()


class RoundRobin:
    """The next pool by name, behind the one that the fleet's last attempt went to. Never waits while one can be bound."""

    waits: ClassVar[bool] = False
    summary: ClassVar[str] = "one pool after the other"

    def keys(self, table: Table) -> Ints:
        """How many pools further on."""
        return table.by_row((np.arange(table.pools, dtype=np.int64) - table.after) % max(table.pools, 1))


class LeastLoaded:
    """The pool with the smallest share of busy slots; behind a busy slot only where none is free. Never waits while one can be bound."""

    waits: ClassVar[bool] = False
    summary: ClassVar[str] = "where the smallest share of slots is busy"

    def keys(self, table: Table) -> Ints:
        """Parts per million of busy slots."""
        return table.busy_ppm() + table.behind() * _BEHIND


class Nearest:
    """The site to and from which the job's data travel least. Never waits while a place can be bound."""

    waits: ClassVar[bool] = False
    summary: ClassVar[str] = "least transfer time of input and result"

    def keys(self, table: Table) -> Ints:
        """Microseconds of transfer."""
        return table.transfer_us


class Cheapest:
    """The place where this job costs least money: GPU time as predicted, and egress. Never waits while one can be bound."""

    waits: ClassVar[bool] = False
    summary: ClassVar[str] = "least money for GPU time and egress"

    def keys(self, table: Table) -> Ints:
        """Micro-dollars."""
        return table.usd_micros


class WarmFirst:
    """A resident replica, else weights in host memory, on a disk, at another node of the site or on their way, at the origin; among equals
    the pool with the smallest share of busy slots. How long any of that takes counts nothing: a site would lose by a faster disk, from
    which loading is as quick as from memory. Takes a turn behind a busy replica before it loads another; never waits for one that takes no
    more.
    """

    waits: ClassVar[bool] = False
    summary: ClassVar[str] = "where the model is most nearly loaded, then least loaded"

    def keys(self, table: Table) -> Ints:
        """Steps of warmth, then parts per million of busy slots."""
        kind, source = table.kind, table.out[:, Out.SOURCE]
        cold = _STEPS[np.where((source == Source.ORIGIN) & table.by_row(table.held), Source.SITE, source)]
        return np.where(kind == READY, 0, np.where(kind == BARE, 1, cold)) * _BEHIND + table.busy_ppm()


class LoadTime:
    """Least time until the model could begin: waiting and fetch, which go on together, then the load from the tier where the weights are.
    As ServerlessLLM chooses: speed of execution, prices and what others lose count nothing. Waits where a busy replica is ready sooner.
    """

    waits: ClassVar[bool] = True
    summary: ClassVar[str] = "least startup time: waiting, fetch and load, as ServerlessLLM chooses"

    def keys(self, table: Table) -> Ints:
        """Microseconds until the model is loaded and the slot is free."""
        out = table.out
        loading = np.where(table.kind == COLD, table.fix[:, Fix.RELOAD] - out[:, Out.SAVING], 0)
        return np.maximum(out[:, Out.WAIT], out[:, Out.FETCH]) + loading


class Points:
    """Filter and score: from 0 to 100 points for free slots, and for locality of the model (100 loaded, 50 in host memory or on a disk),
    the mean counts. As kube-scheduler and GPUStack do: points have no unit. A pool without a free slot comes last; never waits while a
    place can be bound.
    """

    waits: ClassVar[bool] = False
    summary: ClassVar[str] = "points from 0 to 100 for free slots and for locality of the model, without a unit"

    def keys(self, table: Table) -> Ints:
        """Points missing to a hundred."""
        free = _POINTS_MAX - table.busy_ppm() * _POINTS_MAX // _PPM
        near = np.where(table.out[:, Out.FETCH] > 0, 0, _POINTS_MAX // 2)
        local = np.where(table.kind == COLD, near, _POINTS_MAX)
        return _POINTS_MAX - (free + local) // 2 + table.behind() * _BEHIND


class TwoChoices:
    """The less loaded of two pools drawn by chance among those that can be bound. Never waits while one can."""

    waits: ClassVar[bool] = False
    summary: ClassVar[str] = "the less loaded of two places drawn by chance"

    def keys(self, table: Table) -> Ints:
        """Load of the two, and nothing of the others."""
        drawn = table.drawn()
        two = np.unique(drawn[table.bindable])[:2]
        load = table.busy_ppm() + table.behind() * _BEHIND
        return np.where(np.isin(drawn, two), load, UNREACHABLE)


# Every rule but that of least cost, which `kernel` computes.
RULES: Final[dict[Rule, Chooser]] = {
    Rule.RANDOM: Random(),
    Rule.ROUND_ROBIN: RoundRobin(),
    Rule.LEAST_LOADED: LeastLoaded(),
    Rule.NEAREST: Nearest(),
    Rule.CHEAPEST: Cheapest(),
    Rule.WARM_FIRST: WarmFirst(),
    Rule.LOAD_TIME: LoadTime(),
    Rule.POINTS: Points(),
    Rule.TWO_CHOICES: TwoChoices(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a rule came to: the row to bind, the one to wait for, and the keys where waiting is weighed by them."""

    bound: int | None
    patient: int | None
    keys: Ints | None


def choose(chooser: Chooser, table: Table, waiting: Bools, patient: int | None) -> Chosen:
    """The bindable row of lowest key. `waiting`: rows that may be waited for; `patient`: the one of least cost among them, which is what
    everybody waits for where nothing can be bound.
    """
    keys = chooser.keys(table)
    bound = _lowest(table, keys, table.bindable)
    if chooser.waits:
        return Chosen(bound=bound, patient=_lowest(table, keys, waiting), keys=keys)
    return Chosen(bound=bound, patient=patient if bound is None else None, keys=None)


def _lowest(table: Table, keys: Ints, rows: Bools) -> int | None:
    (known,) = np.nonzero(rows)
    if len(known) == 0:
        return None
    kind = table.kind[known]
    order = np.lexsort((known, table.fix[known, Fix.HASH], table.out[known, Out.WAIT], kind, kind == COLD, keys[known]))
    return int(known[order[0]])
