"""Why a job went where it went: candidates in seconds by term, rejections by reason, deferrals.

Decides the form in which decisions are kept. Must not know how costs are computed.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, overload

from atoll.model.ids import AdapterId, JobId, ModelId, NodeId, Ordinal, PoolId, SiteId

# For a gang of eight all that runs in its slots, and waits behind that.
STOPPED_MAX: Final = 16


class Reason(StrEnum):
    """Why a pool cannot take a job. Each is counted as a metric, and printed in words with what would have to change."""

    NOT_CONNECTED = "not_connected"
    CORDONED = "cordoned"
    DRAINING = "draining"
    BREAKER_OPEN = "breaker_open"  # attempts of different jobs failed there, one after the other, for reasons of the place
    TENANT_NOT_ALLOWED = "tenant_not_allowed"  # the policy's rules for its tenant
    SITE_NOT_ALLOWED = "site_not_allowed"
    REGION_NOT_ALLOWED = "region_not_allowed"
    GPU_TYPE_NOT_ALLOWED = "gpu_type_not_allowed"
    PRICE_TOO_HIGH = "price_too_high"
    LOAD_TOO_DEAR = "load_too_dear"  # the price is too high while the weights are far: the GPU is taken until they have come
    MEMORY_TOO_SMALL = "memory_too_small"
    EVICTION_IN_VAIN = "eviction_in_vain"  # others would have to leave, and the job's time would be over before it is done, or begins
    MEMORY_BUSY = "memory_busy"  # would fit if pinned or busy replicas went
    PRECISION_UNSUPPORTED = "precision_unsupported"
    GANG_TOO_LARGE = "gang_too_large"
    TOO_SLOW = "too_slow"  # it would take a year or more, which is as good as never
    DISK_TOO_SMALL = "disk_too_small"
    WEIGHTS_UNAVAILABLE = "weights_unavailable"
    SIMULATED_SITE = "simulated_site"  # a twin, and the job wants a real result
    REAL_SITE = "real_site"  # a real site, and the job is a rehearsal
    RECENT_FAILURE = "recent_failure"  # this job failed there a moment ago
    NO_SLOT = "no_slot"  # every slot has as much work as may be bound
    NO_BLOCK = "no_block"  # so many GPUs of one node, side by side, are not free at once: single ones may be


# What is so where a pool rejects a job, for people. Programs read the codes.
MEANINGS: Final[dict[Reason, str]] = {
    Reason.NOT_CONNECTED: "the site is not connected",
    Reason.CORDONED: "the site is cordoned",
    Reason.DRAINING: "the site is being drained",
    Reason.BREAKER_OPEN: "attempts kept failing there",
    Reason.TENANT_NOT_ALLOWED: "the policy keeps this tenant elsewhere",
    Reason.SITE_NOT_ALLOWED: "the job names other sites",
    Reason.REGION_NOT_ALLOWED: "the job names other regions",
    Reason.GPU_TYPE_NOT_ALLOWED: "the job names other GPU types",
    Reason.PRICE_TOO_HIGH: "it would cost more than the job may",
    Reason.LOAD_TOO_DEAR: "the price is too high while the weights are far",
    Reason.MEMORY_TOO_SMALL: "the GPU is too small for the model at this shape",
    Reason.EVICTION_IN_VAIN: "others would have to leave for a job that comes too late all the same",
    Reason.MEMORY_BUSY: "the memory is held by replicas at work",
    Reason.PRECISION_UNSUPPORTED: "the GPU cannot compute in this precision",
    Reason.GANG_TOO_LARGE: "its nodes have fewer GPUs than the job wants at once",
    Reason.TOO_SLOW: "the job would take more than a year there",
    Reason.DISK_TOO_SMALL: "the weights do not fit on the disk of a node",
    Reason.WEIGHTS_UNAVAILABLE: "the weights cannot be had there",
    Reason.SIMULATED_SITE: "it is a twin, which only rehearses",
    Reason.REAL_SITE: "it is a real site, which runs no rehearsals",
    Reason.RECENT_FAILURE: "this job failed there a moment ago",
    Reason.NO_SLOT: "every slot has all the work that may be bound to it",
    Reason.NO_BLOCK: "single GPUs may be free, but no block of as many on one node as the gang wants at once",
}


# What no waiting changes, only another job, another fleet, or somebody's work on a site. A price is counted among them: what is learned
# moves it by some percent, and who set the limit can raise it. The others end by themselves, or by a word of an operator.
LASTING: Final = frozenset(
    {
        Reason.TENANT_NOT_ALLOWED,
        Reason.SITE_NOT_ALLOWED,
        Reason.REGION_NOT_ALLOWED,
        Reason.GPU_TYPE_NOT_ALLOWED,
        Reason.PRICE_TOO_HIGH,
        Reason.MEMORY_TOO_SMALL,
        Reason.PRECISION_UNSUPPORTED,
        Reason.GANG_TOO_LARGE,
        Reason.TOO_SLOW,
        Reason.DISK_TOO_SMALL,
        Reason.WEIGHTS_UNAVAILABLE,
        Reason.SIMULATED_SITE,
        Reason.REAL_SITE,
    }
)


# Terms that are no time that passes, but what something is worth in time; the others add up to the predicted delay.
PRICE_TERMS: Final = frozenset({"money", "net", "link", "evict", "churn", "fragmentation", "risk", "deadline"})


class Awaits(StrEnum):
    """What a place is behind that is no work of its slot."""

    NOTHING = ""
    LOAD = "load"  # the replica is not there yet: it is fetched or loaded for another job or ahead of demand
    FETCH = "fetch"  # slots are free, but another node of the site fetches the model, and it is fetched once
    GANG = "gang"  # the slot is idle, but kept for a gang that waits for others beside it


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchFrom:
    """Sites whose disks weights come from, all at once, the one that gives most first. `origin_too`: and from the origin store; from that
    alone, where there are no sites, although other nodes of the site have them."""

    sites: tuple[SiteId, ...]
    origin_too: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A place with its cost. `terms_us` are parallel to `Explanation.term_names`; int64 microseconds."""

    site_id: SiteId
    pool_id: PoolId
    total_us: int
    terms_us: tuple[int, ...]
    cold: bool
    wait_us: int = 0  # > 0: no slot can be bound now, this is the deferral's price
    awaits: Awaits = Awaits.NOTHING
    fetch_from: FetchFrom | None = None  # None: another node of the site where one has them, else the origin store; or no fetch
    lacks: tuple[AdapterId, ...] = ()  # adapters of the job that its replica is still to be given


AWAITS: Final = tuple(Awaits)


@dataclass(frozen=True, slots=True, eq=False)
class PackedCandidates(Sequence[Candidate]):
    """Places with their costs as one block of figures, made into candidates by whoever reads them: hardly anybody asks about a decision,
    and each keeps eight. Equal to a tuple of equal candidates.

    `figures`: int64 of this machine, a line for each place: total, wait, cold, what it awaits by its number in `AWAITS`, terms.
    `fetch_from`: () where none has a peer site to fetch from; `lacks`: () where the job has no adapters.
    """

    figures: bytes
    places: tuple[tuple[SiteId, PoolId], ...]
    fetch_from: tuple[FetchFrom | None, ...] = ()
    lacks: tuple[tuple[AdapterId, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Candidate: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Candidate, ...]: ...
    def __getitem__(self, index: int | slice) -> Candidate | tuple[Candidate, ...]:
        return tuple(self)[index]

    def __iter__(self) -> Iterator[Candidate]:
        figures = array("q", self.figures).tolist()
        width = len(figures) // max(len(self.places), 1)
        for number, place in enumerate(self.places):
            fetch_from = self.fetch_from[number] if self.fetch_from else None
            lacks = self.lacks[number] if self.lacks else ()
            yield candidate_of(place, figures[number * width : (number + 1) * width], fetch_from, lacks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, tuple | PackedCandidates) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return tuple(self).__hash__()

    def __repr__(self) -> str:
        return repr(tuple(self))


def candidate_of(
    place: tuple[SiteId, PoolId], line: list[int], fetch_from: FetchFrom | None, lacks: tuple[AdapterId, ...] = ()
) -> Candidate:
    """A line of figures as a candidate (see `PackedCandidates`)."""
    total_us, wait_us, cold, awaits, *terms_us = line
    return Candidate(
        site_id=place[0],
        pool_id=place[1],
        total_us=total_us,
        terms_us=tuple(terms_us),
        cold=bool(cold),
        wait_us=wait_us,
        awaits=AWAITS[awaits],
        fetch_from=fetch_from,
        lacks=lacks,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """How many pools were rejected for this reason."""

    reason: Reason
    pools: int


def is_lasting(rejections: Iterable[Rejection]) -> bool:
    """Whether every pool was rejected for what no waiting changes. A fleet without pools is still to come."""
    reasons = {one.reason for one in rejections}
    return bool(reasons) and reasons <= LASTING


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A block of slots of one node that is kept together for a gang: `slots` of them from `first` on. From `begins_us`, when the last of
    them should be free, nothing else begins there."""

    site_id: SiteId
    pool_id: PoolId
    node_id: NodeId
    first: int
    slots: int
    since_us: int
    begins_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TooSmall:
    """Why GPUs are too small for a job: what it needs of each, what of that its weights and those of its adapters take whatever its shape,
    and what the largest of them has."""

    needed_bytes: int
    weights_bytes: int
    adapters_bytes: int
    largest_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferral:
    """Waiting was the cheapest candidate (or there was none): what for, and until when it is looked at again. Of a job that expired while
    it waited also its place in the queue then, from 1, and how many waited; 0 while it waits. In answers also what was `stopped` for the
    job since it was last placed."""

    since_us: int
    until_us: int
    waits_for: Candidate | None
    rejections: tuple[Rejection, ...]
    claim: Claim | None = None  # of a gang: the block that is kept for it
    position: int = 0
    queue_length: int = 0
    stopped: tuple[Stopped, ...] = ()
    too_small: TooSmall | None = None  # None: no GPU is


@dataclass(frozen=True, slots=True, kw_only=True)
class Evicted:
    """A replica that makes room. `price_us`: what others are expected to wait longer because it goes."""

    model_id: ModelId
    price_us: int
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """An attempt of a lower priority that was stopped for a job: `lost_us` of its work has to be done again. `node_id` and `index` are the
    slot that it had, the first of a gang's; "" and 0 in what was written down before they were kept."""

    job_id: JobId
    ordinal: Ordinal
    site_id: SiteId
    pool_id: PoolId
    lost_us: int
    node_id: NodeId = NodeId("")
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One decision, bounded: the chosen, the next best, the rejections counted. `term_names` orders every `terms_us`."""

    decided_us: int
    policy: str
    term_names: tuple[str, ...]
    chosen: Candidate
    node_id: NodeId
    others: Sequence[Candidate]
    rejections: tuple[Rejection, ...]
    evicted: tuple[Evicted, ...] = ()
    stopped: tuple[Stopped, ...] = ()  # for this job, here or, where another place was better then, elsewhere
    deferrals: int = 0  # how often the job had waited by choice before
    queued_us: int = 0  # time in the queue before this decision
    weights_bytes: int = 0  # of the model: what a cold place has to load
    # From the decision to the result: half and nine tenths of such decisions are carried out that fast. 0: not known.
    p50_us: int = 0
    p90_us: int = 0
    rule: str = ""  # how the policy chose; "": by cost
    too_small: TooSmall | None = None  # None: no GPU was
