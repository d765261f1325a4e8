"""What the fleet has learned of its own estimates: corrections by component and level, calibrations, and the gates they must pass.

Decides the form in which estimates are kept, checkpointed and shown. Must not know how they are learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from atoll.model.ids import ModelId, PoolId, SiteId
from atoll.model.job import Priority
from atoll.model.modelspec import Modality

# Attempts that a gate needs. With fewer a coverage of 90 % is within its gate by chance only: sqrt(0.09 / 200) is two points.
GATE_ATTEMPTS: Final = 200
# |median log residual| at most 0.05, and P90 true for 87 to 93 %: beyond that a stated time is no statement.
MEDIAN_MAX_MILLI: Final = 50
COVERAGE_MILLI: Final = (870, 930)
# The gate of whole completions, beside those of components.
TOTAL: Final = "total"
# And that of waits before a place is bound.
WAIT: Final = "wait"


class Component(StrEnum):
    """A part of a job's time that is predicted and measured on its own, in the order in which they happen.

    `load` is staging and building the pipeline: a site measures them as one duration, so they are corrected as one. `fetch` is a fetch from
    the origin store, `peer` one from a peer site: other links, and so other factors; it came last, and stands last.
    """

    FETCH = "fetch"
    LOAD = "load"
    ADAPT = "adapt"
    COMPILE = "compile"
    EXECUTION = "execution"
    UPLOAD = "upload"
    PEER = "peer"


class QuotePart(StrEnum):
    """What a quoted time is made of, and what both together leave over."""

    BEFORE = "before"  # execution: waiting, fetching, loading
    EXECUTION = "execution"  # with its result
    WHOLE = "whole"  # in margins: how far P90 of the parts lies above their P50


class Start(StrEnum):
    """How an attempt begins: on a warm replica, or with a load from where the weights are. What is copied from another node of the site
    comes from a peer."""

    WARM = "warm"
    HOST = "host"
    DISK = "disk"
    PEER = "peer"
    ORIGIN = "origin"


class Level(StrEnum):
    """Whom a correction is about, from everybody to one model at one site. Each level corrects what those above it leave over."""

    ALL = "all"
    GPU_TYPE = "gpu_type"
    SITE = "site"
    MODEL_GPU_TYPE = "model_gpu_type"
    MODEL_SITE = "model_site"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchState:
    """How far a site's residuals have run to one side: the sums of a CUSUM, in 2^-16 standard deviations, and what they are made of."""

    up: int = 0
    up_log: int = 0
    up_n: int = 0
    down: int = 0
    down_log: int = 0
    down_n: int = 0
    widened_log: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedCell:
    """The evidence of one component at one level for one name ("" where the level has none). Logs are in 2^-16 octaves.

    `weight` is the number of observations times 2^16, older ones counting less. `watch` only where the level is `site`.
    """

    level: Level
    name: str
    other: str  # GPU type or site beside a model
    weight: int
    log_sum: int
    offset_sum: int
    error_sum: int
    error_square_sum: int
    covered: int
    seen_us: int
    looked_us: int
    published_log: int
    side: int = 0  # which mode was met last: -1 the lower, 1 the upper
    changed: bool = False  # evidence came since `published_log` was compared with it
    watch: WatchState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedSpread:
    """A histogram of log ratios, at what sum it is halved, and how often a stated P90 held: `covered` of `counted`; all times 2^10."""

    bins: tuple[int, ...]
    kept_max: int = 0
    covered: int = 0
    counted: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpreadFigures:
    """What was read from a histogram when it was last looked at. Logs in 2^-16 octaves; equal modes: there is only one."""

    p50_log: int = 0
    p90_log: int = 0
    mean_log: int = 0  # log of the mean ratio less the mean log: by what the expected time is above the middle
    variance: int = 0  # within a mode, in 2^-16 square octaves
    cut_log: int = 0
    low_log: int = 0
    high_log: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedComponent:
    """Everything learned of one component. Cells in the order in which they were last looked at, oldest first."""

    component: Component
    cells: tuple[LearnedCell, ...]
    spread: LearnedSpread
    figures: SpreadFigures
    published_mean_log: int
    gate: LearnedSpread
    refreshed_us: int
    observations: int
    shifts: int
    two_modes: bool = False
    pairs: int = 0
    mixed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedQuote:
    """How one part of chosen decisions came out against its prediction, by kind of start and of result."""

    start: str
    modality: str
    spread: LearnedSpread
    p50_log: int
    p90_log: int
    part: str = ""  # a `QuotePart`; "": written before parts were told apart


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedStart:
    """How one part of decisions that began so came out against its prediction. Logs of the quantiles in force, in 2^-16 octaves."""

    start: Start
    modality: Modality
    part: QuotePart
    spread: LearnedSpread
    p50_log: int
    p95_log: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedWait:
    """How waits before a place was bound came out against their prediction, by priority and for one GPU or a gang."""

    priority: Priority
    gang: bool
    spread: LearnedSpread
    p50_log: int
    p90_log: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedPool:
    """How wide the errors of one part are at one pool: observations times 2^10, their sum of squares in widths (2^-26), and the scale in
    force."""

    site_id: SiteId
    pool_id: PoolId
    part: QuotePart
    weight: int
    square_sum: int
    scale_milli: int
    moved: bool = False  # evidence came since `scale_milli` was compared with it


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedCrowd:
    """How many jobs of a model were decided in one window of time: they share their error."""

    model_id: ModelId
    window: int
    jobs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """All that was learned, as a frozen value: part of a snapshot of the core, and what is checkpointed in the store."""

    components: tuple[LearnedComponent, ...] = ()
    quotes: tuple[LearnedQuote, ...] = ()
    gate: LearnedSpread | None = None  # of quoted totals
    crowds: tuple[LearnedCrowd, ...] = ()  # not in checkpoints: what is forgotten weighs as if it had come alone
    starts: tuple[LearnedStart, ...] = ()
    pools: tuple[LearnedPool, ...] = ()
    waits: tuple[LearnedWait, ...] = ()
    all_waits: LearnedSpread | None = None
    wait_gate: LearnedSpread | None = None
    quotes_us: int = 0
    refreshed_us: int = 0
    saved_us: int = 0
    unsaved: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """One line of `atoll costs residuals`: a cell as a person reads it. Logs in thousandths of natural logarithms.

    `effect_milli` is this level's own factor, `bias` and `spread` are of what was left over when the attempts had been predicted.
    """

    component: Component
    level: Level
    name: str
    other: str
    observations_milli: int
    effect_milli: int
    bias_milli: int
    spread_milli: int
    coverage_milli: int
    seen_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Whether a component's (or "total": the quotes') predictions may be believed: |median| and the share of actuals within P90."""

    name: str
    observations: int
    median_milli: int
    coverage_milli: int
    enough: bool
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteFactor:
    """What a quote makes of a prediction: P50 and P90 of a part as thousandths of it, of the whole as thousandths of its margin.

    Jobs that were decided together count less, and a part as much as it was of the whole: `observations` is the sum, rounded.
    """

    start: str
    modality: str
    part: QuotePart
    observations: int
    p50_milli: int
    p90_milli: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Gates and quotes of the fleet as it is now."""

    gates: tuple[Gate, ...]
    quotes: tuple[QuoteFactor, ...]
    factors: int
    shifts: int
    learning: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """A site's component became lastingly slower or faster."""

    component: Component
    site_id: SiteId
    from_milli: int
    to_milli: int
