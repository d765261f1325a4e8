"""Attempts: their states, how they fail, and what they leave behind.

Decides which changes of an attempt are legal and what a failure means for a retry (the table of causes).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from atoll.model.ids import AttemptKey, SiteId, SlotRef
from atoll.model.placement import Explanation


class AttemptState(StrEnum):
    """Where an attempt stands. All but the last five are live: they hold a slot and its memory."""

    LEASED = "leased"
    FETCHING = "fetching"
    LOADING = "loading"
    COMPILING = "compiling"
    RUNNING = "running"
    UPLOADING = "uploading"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REFUSED = "refused"
    LOST = "lost"
    STOPPED = "stopped"


_S = AttemptState
_ENDS = frozenset({_S.SUCCEEDED, _S.FAILED, _S.REFUSED, _S.LOST, _S.STOPPING})

# Phases only move forward; any of them may be skipped (a warm replica fetches nothing).
ATTEMPT_TABLE: Final[dict[AttemptState, frozenset[AttemptState]]] = {
    _S.LEASED: frozenset({_S.FETCHING, _S.LOADING, _S.COMPILING, _S.RUNNING, _S.UPLOADING}) | _ENDS,
    _S.FETCHING: frozenset({_S.LOADING, _S.COMPILING, _S.RUNNING, _S.UPLOADING}) | _ENDS,
    _S.LOADING: frozenset({_S.COMPILING, _S.RUNNING, _S.UPLOADING}) | _ENDS,
    _S.COMPILING: frozenset({_S.RUNNING, _S.UPLOADING}) | _ENDS,
    _S.RUNNING: frozenset({_S.UPLOADING}) | _ENDS,
    _S.UPLOADING: _ENDS,
    # Told to stop; whatever the agent says next ends it, and only the agent's word (or the site's loss) frees the slot.
    _S.STOPPING: frozenset({_S.STOPPED, _S.SUCCEEDED, _S.FAILED, _S.REFUSED, _S.LOST}),
    _S.SUCCEEDED: frozenset(),
    _S.FAILED: frozenset(),
    _S.REFUSED: frozenset(),
    _S.LOST: frozenset(),
    _S.STOPPED: frozenset(),
}

ENDED: Final = frozenset(state for state, following in ATTEMPT_TABLE.items() if not following)
# States in which an agent has begun nothing that costs: such an attempt may be moved.
PHASES: Final = (_S.FETCHING, _S.LOADING, _S.COMPILING, _S.RUNNING, _S.UPLOADING)


class FailureKind(StrEnum):
    """Why an attempt ended without a result. The retry table in `RETRIES` says what follows."""

    BAD_INPUT = "bad_input"  # the pipeline refuses this job's input: the next one would too
    FETCH_FAILED = "fetch_failed"
    DISK_FULL = "disk_full"
    BAD_WEIGHTS = "bad_weights"  # wrong digest, a pickle, a missing file
    LOAD_FAILED = "load_failed"
    OUT_OF_MEMORY = "out_of_memory"
    EXECUTION_FAILED = "execution_failed"
    RUNTIME_LOST = "runtime_lost"  # the slot's process died
    UPLOAD_FAILED = "upload_failed"
    TIMED_OUT = "timed_out"  # hung
    REFUSED = "refused"
    LOST = "lost"  # the site was silent too long, or heard nobody who wanted the work for stop_after
    MOVED = "moved"  # drain or move: nobody's fault
    INTERNAL = "internal"
    PREEMPTED = "preempted"  # it made room for a job of a higher priority

    @property
    def words(self) -> str:
        """As people read it."""
        return self.value.replace("_", " ")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRule:
    """`budget` further attempts for this cause, `backoff_ms` before the next, `avoid_ms` without the site that failed."""

    budget: int
    backoff_ms: int
    avoid_ms: int


RETRIES: Final[dict[FailureKind, RetryRule]] = {
    # The same input fails the same way everywhere.
    FailureKind.BAD_INPUT: RetryRule(budget=0, backoff_ms=0, avoid_ms=0),
    # Trouble of one place: try others, a few times.
    FailureKind.FETCH_FAILED: RetryRule(budget=4, backoff_ms=1_000, avoid_ms=60_000),
    FailureKind.DISK_FULL: RetryRule(budget=4, backoff_ms=500, avoid_ms=300_000),
    FailureKind.BAD_WEIGHTS: RetryRule(budget=2, backoff_ms=1_000, avoid_ms=300_000),
    FailureKind.LOAD_FAILED: RetryRule(budget=3, backoff_ms=1_000, avoid_ms=60_000),
    FailureKind.OUT_OF_MEMORY: RetryRule(budget=3, backoff_ms=500, avoid_ms=120_000),
    # Perhaps the job, perhaps the place: two more tries tell.
    FailureKind.EXECUTION_FAILED: RetryRule(budget=2, backoff_ms=1_000, avoid_ms=30_000),
    FailureKind.RUNTIME_LOST: RetryRule(budget=3, backoff_ms=500, avoid_ms=10_000),
    FailureKind.UPLOAD_FAILED: RetryRule(budget=4, backoff_ms=1_000, avoid_ms=10_000),
    FailureKind.TIMED_OUT: RetryRule(budget=1, backoff_ms=1_000, avoid_ms=60_000),
    # A refusal is a fact to re-plan with, and cheap.
    FailureKind.REFUSED: RetryRule(budget=16, backoff_ms=100, avoid_ms=2_000),
    FailureKind.LOST: RetryRule(budget=8, backoff_ms=0, avoid_ms=10_000),
    # Never the job's fault, bounded by ATTEMPTS_PER_JOB_MAX alone.
    FailureKind.MOVED: RetryRule(budget=1_000, backoff_ms=0, avoid_ms=0),
    FailureKind.INTERNAL: RetryRule(budget=2, backoff_ms=1_000, avoid_ms=30_000),
    # As above; how often a job may be is the policy's `preemptions_max`.
    FailureKind.PREEMPTED: RetryRule(budget=1_000, backoff_ms=0, avoid_ms=0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why something ended badly: the kind, and one line that a person can act on."""

    kind: FailureKind
    message: str

    @property
    def words(self) -> str:
        """As people read it."""
        return f"{self.kind.words}: {self.message}" if self.message else self.kind.words


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One file of a result. `digest` is sha256 of the bytes, `pixel_digest` of the decoded pixels."""

    name: str
    media_type: str
    bytes: int
    digest: str
    pixel_digest: str = ""
    uri: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultManifest:
    """What an attempt produced, committed to the artifact store before the result is reported."""

    key: AttemptKey
    artifacts: tuple[Artifact, ...]
    seed: int
    simulated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTimes:
    """Actual durations of an attempt by phase, fleet time, measured at the site. -1: the phase did not happen."""

    waiting_us: int = -1  # accepted by the agent, behind other work of its slot
    fetch_us: int = -1  # of the weights
    load_us: int = -1
    adapt_us: int = -1  # from the resident base to all adapters on it, what is left of their fetches included
    compile_us: int = -1
    run_us: int = -1
    upload_us: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try to run a job at one site, in the slot that was reserved for it."""

    key: AttemptKey
    site_id: SiteId
    slot: SlotRef
    state: AttemptState
    cold: bool  # whether the chosen replica had to be loaded
    leased_us: int
    predicted_us: int  # from decision to result at the client
    running_us: int = 0  # when it began to execute; 0: not yet
    ended_us: int = 0
    steps_done: int = 0
    failure: Failure | None = None  # of one that is stopping: what for
    times: PhaseTimes = PhaseTimes()
    # Once it ended: what the priors of its prediction were multiplied by, in thousandths, in the order of `learned.Component`; 0: unknown.
    factors_milli: tuple[int, ...] = ()
    explanation: Explanation | None = None
