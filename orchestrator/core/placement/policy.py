"""The policy: exchange rates between seconds, money and risk, and the times after which silence counts.

Decides figures only. Every default argues its value.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from hashlib import sha256
from itertools import pairwise
from typing import Final

from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.ids import TenantId, parse_name
from atoll.model.job import Priority
from atoll.model.shape import parse_int
from orchestrator.core.placement.tenants import TenantRules

_REAL_TIME_MILLI: Final = 1_000
WHOLE_MILLI: Final = 1_000
# Enough that no two policies of a fleet's life have the same; fits a line of a table.
_DIGEST_CHARS: Final = 12
# A year: what lasts longer is never.
_DURATION_MS_MAX: Final = 52 * limits.DEADLINE_MS_MAX
# Weights from a thousandth to a thousandfold: beyond it a tenant has all or nothing, and that is an operator's typing error.
TENANT_WEIGHT_MILLI: Final = (1, 1_000_000)
# Ten times the tenants of the largest fleet; each costs a line of the policy.
TENANTS_MAX: Final = 100_000
# A hundredth to a hundredfold: beyond it other priorities might as well not exist, and money over weight leaves int64.
PRIORITY_WEIGHT_MILLI: Final = (10, 100_000)
HALF_LIFE_MS: Final = (1_000, _DURATION_MS_MAX)
_TIMES: Final = (1, _DURATION_MS_MAX)
_SHARE: Final = (0, WHOLE_MILLI)
# Rates of requests up to what 20 models of the largest fleet ever see; their products with prices stay in int64.
_PER_HOUR_MILLI: Final = (0, 10**10)
# Least and most of every whole number, in the field's own unit.
BOUNDS: Final[dict[str, tuple[int, int]]] = {
    "seed": (0, 2**63 - 1),
    # A second for a hundredth of a cent: money rules alone.
    "seconds_per_dollar": (0, 100_000),
    "k_e_milli": (0, 100_000),
    # Times a delay of a year these stay in int64.
    "tardy_milli": (0, 10_000),
    "spread_milli": (1_000, 10_000),
    # A GPU that is lost each hour.
    "hazard_per_million_hours": (0, 1_000_000),
    "load_failure_ppm": (0, 1_000_000),
    "link_milli": (0, 100_000),
    "link_used_milli": _SHARE,
    "fragmentation_milli": (0, 100_000),
    "residence_ms": (60_000, _DURATION_MS_MAX),
    "move_gain_min_ms": (0, limits.DEADLINE_MS_MAX),
    "move_gain_milli": _SHARE,
    # Moves, preemptions and retries share the attempts of a job.
    "moves_max": (0, limits.ATTEMPTS_PER_JOB_MAX // 4),
    # Each is scored once more in every round in which several came together.
    "regret_classes": (1, 64),
    # Longer is felt by whoever waits for a picture of a second.
    "arrival_window_ms": (0, 30),
    "last_copy_milli": (1_000, 100_000),
    "launch_prior_per_hour_milli": _PER_HOUR_MILLI,
    "candidates_kept": (0, limits.CANDIDATES_KEPT - 1),
    "slot_depth": (1, 8),
    "report_interval_ms": (10, _DURATION_MS_MAX),
    "silent_after_ms": _TIMES,
    "lost_after_min_ms": _TIMES,
    "lost_after_max_ms": _TIMES,
    "stop_after_ms": _TIMES,
    "hang_factor": (1, 1_000),
    "hang_min_ms": _TIMES,
    "brake_sites_min": (1, limits.SITES_MAX),
    "brake_recheck_ms": _TIMES,
    # As many as ends that are remembered of a pool.
    "breaker_failures": (0, 32),
    "breaker_window_ms": _TIMES,
    "breaker_pause_ms": _TIMES,
    "breaker_pause_max_ms": (1, limits.DEADLINE_MS_MAX),
    "recheck_max_ms": _TIMES,
    "recheck_idle_ms": _TIMES,
    "recheck_min_ms": _TIMES,
    "resend_after_ms": _TIMES,
    "tie_us": (0, 3_600_000_000),
    "tie_milli": _SHARE,
    "queued_jobs_per_tenant_max": (1, limits.QUEUED_JOBS_MAX),
    "ageing_ms": (1, limits.DEADLINE_MS_MAX),
    # Rarer than one slot in a thousand is not ageing.
    "aged_every": (1, 1_000),
    "preemptions_max": (0, limits.ATTEMPTS_PER_JOB_MAX // 2),
    # A hundredfold margin switches preemption off for all purposes; no preemptions at most says so.
    "preempt_margin_milli": (0, 100_000),
    "preempt_gain_min_ms": (0, limits.DEADLINE_MS_MAX),
    "preempt_tail_milli": _SHARE,
    "claims_share_milli": _SHARE,
    "residency_interval_ms": (1_000, limits.DEADLINE_MS_MAX),
    "residency_floor_us_per_hour": (1, 3_600_000_000_000),
    "residency_hysteresis_parts": (1, 1_000),
    "residency_memory_milli": _SHARE,
    "spread_per_hour_milli": _PER_HOUR_MILLI,
    "protect_per_hour_milli": _PER_HOUR_MILLI,
    "prefetch_link_milli": _SHARE,
    "push_hold_ms": _TIMES,
}
# The second is never less than the first.
IN_ORDER: Final = (
    ("report_interval_ms", "silent_after_ms"),
    ("lost_after_min_ms", "lost_after_max_ms"),
    ("recheck_min_ms", "recheck_max_ms"),
    ("breaker_pause_ms", "breaker_pause_max_ms"),
)
# The queue lets urgent jobs go first whatever they are worth; were they worth less, nothing would be stopped for them and the worst places
# be good enough.
WEIGHTS_IN_ORDER: Final = "urgent at least normal, and normal at least batch"
# Durations that real processes and networks need, whatever the fleet's clock says.
_REAL_WAITS: Final = (
    "report_interval_ms",
    "silent_after_ms",
    "lost_after_min_ms",
    "lost_after_max_ms",
    "stop_after_ms",
    "brake_recheck_ms",
    "recheck_max_ms",
    "recheck_min_ms",
    "recheck_idle_ms",
    "resend_after_ms",
)


# Every term that a policy may leave out. `registry` has them in the order of printing; a test holds the two together.
_PRICES: Final = frozenset({"money", "net", "link", "evict", "churn", "fragmentation", "risk", "deadline"})
ALL_TERMS: Final = _PRICES | {"input", "stage", "init", "adapt", "compile", "execution", "output"}


def _weights() -> dict[Priority, int]:
    # An urgent job's second is worth five of a normal one, a batch job's a fifth: enough to outbid money, not to ignore it.
    return {Priority.URGENT: 5_000, Priority.NORMAL: 1_000, Priority.BATCH: 200}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which policy it is: two of one name may differ, two of one digest do not."""

    name: str
    digest: str


class Rule(StrEnum):
    """How a place is chosen among those that can be bound. All but the first are baselines (`rules`)."""

    COST = "cost"
    RANDOM = "random"
    ROUND_ROBIN = "round-robin"
    LEAST_LOADED = "least-loaded"
    NEAREST = "nearest"
    CHEAPEST = "cheapest"
    WARM_FIRST = "warm-first"
    LOAD_TIME = "load-time-only"
    POINTS = "points"
    TWO_CHOICES = "two-choices"


class Eviction(StrEnum):
    """Which of a slot's replicas makes room first. `lru` is a baseline: the one used longest ago, whatever it costs others."""

    PRICE = "price"
    LRU = "lru"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Figures of one named policy. Durations are fleet time."""

    name: str = "default"
    # Least expected cost, unless somebody wants to see what that is worth.
    rule: Rule = Rule.COST
    # What others ask for and what a reload takes is known, so neither is left to how old a use is.
    eviction: Eviction = Eviction.PRICE
    # Rules that draw derive chance from it; any number is as good as another.
    seed: int = 0
    # Whether estimates are corrected by what settled attempts say. Off, they are judged all the same: that is how learning is measured.
    learning: bool = True
    # A person waiting at $60 an hour of attention: a minute of delay weighs as much as a dollar of GPU.
    seconds_per_dollar: int = 60
    priority_weight_milli: dict[Priority, int] = field(default_factory=_weights)
    # Terms of the cost that count (`registry.TERMS`); queue and fetch always do, since they say when a place can begin.
    terms: frozenset[str] = ALL_TERMS
    # Exchange rate of evictions: a second that others will wait weighs as much as one of this job.
    k_e_milli: int = 1_000
    # A second past the deadline weighs as three before it.
    tardy_milli: int = 3_000
    # Until it is learned: 95 of 100 take at most twice what was predicted of a part, with errors of 35 % and loads of two modes.
    spread_milli: int = 2_000
    # A GPU or its node fails about twice a year, beside what its owner takes back: 2 / 8,760 h.
    hazard_per_million_hours: int = 228
    # A tenth of the delay that a fetch causes to others under way counts: most of them are ahead of demand or wait for more than the bytes.
    link_milli: int = 100
    # And it counts from the first of them: a fetch takes all that its way has, so a way with one is full. Beside one more, those under way
    # would keep this share of it: 0.5 if it is one, 0.75 if they are three, so 0.7 lets it count from the third.
    link_used_milli: int = 0
    # A gang that waits is worth as much as the job that it waits for, and about one comes while that runs where gangs are at home.
    fragmentation_milli: int = 1_000
    # One load in 500 fails, of those counted in production traces.
    load_failure_ppm: int = 2_000
    # How long a replica would have stayed if it were not evicted now: slots of a busy fleet change their models each quarter of an hour.
    residence_ms: int = 900_000
    # Work that is bound behind other work and has not begun is moved to a slot that came free when that gains more than this time, and
    # more than this share of what is left; and at most so often: a job that is moved each second arrives nowhere.
    move_gain_min_ms: int = 2_000
    move_gain_milli: int = 200
    moves_max: int = 2
    # Ready classes of one priority among which the one that loses most by not getting its best place goes first.
    regret_classes: int = 8
    # Jobs that come within so long of each other are placed together; the first after a quiet moment is placed at once. A burst of unary
    # submits comes at one per millisecond: ten of them are enough to choose whose turn matters most.
    arrival_window_ms: int = 10
    # Another copy can serve in the place of one that leaves; of the last one whole jobs wait, not one: its price counts threefold.
    last_copy_milli: int = 3_000
    # Requests per hour expected of a model that nothing is known of yet.
    launch_prior_per_hour_milli: int = 1_000
    # Candidates kept with a decision beside the chosen one, so that it can be explained.
    candidates_kept: int = limits.CANDIDATES_KEPT - 1
    # One executes, one waits with its weights at hand: the gap between two jobs is then one message, not one round trip.
    slot_depth: int = 2
    # Agents report each second: five missed reports are no hiccup of a link.
    report_interval_ms: int = 1_000
    silent_after_ms: int = 5_000
    # Twice the predicted time of the attempt, within these bounds: a short job is not given up for a re-dial,
    # a long one not kept for an hour.
    lost_after_min_ms: int = 60_000
    lost_after_max_ms: int = 600_000
    # An hour without a word of the orchestrator: work at the site stops itself.
    stop_after_ms: int = 3_600_000
    # Work that shows no new phase or step for ten times what the whole attempt was predicted to take hangs; never less than ten minutes,
    # because a film is decoded in one long step.
    hang_factor: int = 10
    hang_min_ms: int = 600_000
    # Fewer silent sites than this are single losses; from here on, and if they are most of the fleet, the trouble is likely ours.
    brake_sites_min: int = 3
    # How long a brake holds before it looks again.
    brake_recheck_ms: int = 5_000
    # A pool where so many different jobs failed one after the other within this window takes no new work: one bad job, with its retries,
    # is fewer. Half a minute outlasts a restarted process; each time that its probe fails too the pause doubles, up to ten minutes, which
    # is how long a person who was called takes to look.
    breaker_failures: int = 4
    breaker_window_ms: int = 600_000
    breaker_pause_ms: int = 30_000
    breaker_pause_max_ms: int = 600_000
    # A job that waits is looked at again at least this often: the liveness bound is five times as long.
    recheck_max_ms: int = 2_000
    # One that has no possible place is woken by whatever makes one possible; this is only a second look at that.
    recheck_idle_ms: int = 5_000
    recheck_min_ms: int = 20
    # Ties: within 50 ms or 2 % of the best, other virtues decide.
    tie_us: int = 50_000
    tie_milli: int = 20
    # A report that shows another generation than was sent this long ago means that a message was lost.
    resend_after_ms: int = 3_000
    # Shares of tenants, in thousandths: a tenant of 2,000 gets twice the GPU-seconds of one of 1,000 while both wait. Others have 1,000.
    tenant_weight_milli: dict[TenantId, int] = field(default_factory=dict)
    # Where the jobs of a tenant may run at all. Others may run anywhere.
    tenant_rules: dict[TenantId, TenantRules] = field(default_factory=dict)
    # Jobs of one tenant that have not ended. Half of the queue: one tenant alone never fills it.
    queued_jobs_per_tenant_max: int = limits.QUEUED_JOBS_PER_TENANT_MAX
    # Ten minutes in the queue is longer than any priority is meant to cost; from then on a job is offered one of so many slots that
    # come free in the pool it waits for. One in eight: batch moves on, and urgent work keeps seven eighths of the fleet at least.
    ageing_ms: int = 600_000
    aged_every: int = 8
    # Work is thrown away by preemption, so: twice a job at most, only if the weighted seconds won exceed those lost by a quarter
    # (predictions are that wrong) and are two seconds at least (stopping and starting takes one), and never in the last tenth of an
    # attempt.
    preemptions_max: int = 2
    preempt_margin_milli: int = 250
    preempt_gain_min_ms: int = 2_000
    preempt_tail_milli: int = 100
    # A gang that waits has a block kept together for it. A quarter of a pool's slots at most drains like that, or one block, so that a
    # burst of gangs does not close the pool to everybody else.
    claims_share_milli: int = 250

    # Demand: half-lives of its three averages, and how they are mixed: the last minutes say most about the next, the week remembers what
    # comes back each morning.
    demand_half_lives_ms: tuple[int, int, int] = (600_000, 21_600_000, 604_800_000)
    demand_weights_milli: tuple[int, int, int] = (500, 300, 200)
    # The slow loop looks twice a minute: a copy takes about as long to come.
    residency_interval_ms: int = 30_000
    # A copy must save others a second an hour for each of its GB: below it, what sits there already is as good. To enter it must be worth
    # a quarter more, to go a quarter less: constant demand never flaps.
    residency_floor_us_per_hour: int = 1_000_000
    residency_hysteresis_parts: int = 4
    # Half of the fleet's GPU memory is for targets; the other half for what nobody foresaw.
    residency_memory_milli: int = 500
    # Models asked for at least once a minute that make up half of all requests are kept on two sites.
    spread_per_hour_milli: int = 60_000
    # The last warm copy of a model asked for once in two hours does not make room.
    protect_per_hour_milli: int = 500
    # Copies ahead of demand have three tenths of each site's way to the origin.
    prefetch_link_milli: int = 300
    # What was pushed and not asked for within a day gives way like anything else.
    push_hold_ms: int = 86_400_000
    # Where fleet time runs faster: the digest of the policy that this one was scaled from.
    unscaled_digest: str = ""

    def check(self) -> Policy:
        """Self if every field keeps its bounds; else FieldError for the first that does not."""
        parse_name("name", self.name)
        for name, (low, high) in BOUNDS.items():
            parse_int(name, getattr(self, name), low, high)
        for lesser, greater in IN_ORDER:
            if getattr(self, greater) < getattr(self, lesser):
                raise FieldError(greater, getattr(self, greater), f"at least {lesser}")
        if not self.terms <= ALL_TERMS:
            raise FieldError("terms", sorted(self.terms - ALL_TERMS), f"some of {', '.join(sorted(ALL_TERMS))}")
        for priority in Priority:
            parse_int(f"priority_weight_milli.{priority}", self.priority_weight_milli.get(priority), *PRIORITY_WEIGHT_MILLI)
        if not self.has_weights_in_order():
            raise FieldError("priority_weight_milli", self.priority_weight_milli, WEIGHTS_IN_ORDER)
        if len(self.tenant_weight_milli) > TENANTS_MAX:
            raise FieldError("tenant_weight_milli", len(self.tenant_weight_milli), f"at most {TENANTS_MAX} tenants")
        for tenant, weight_milli in self.tenant_weight_milli.items():
            parse_name("tenant_weight_milli", tenant)
            parse_int(f"tenant_weight_milli.{tenant}", weight_milli, *TENANT_WEIGHT_MILLI)
        if len(self.tenant_rules) > TENANTS_MAX:
            raise FieldError("tenants", len(self.tenant_rules), f"at most {TENANTS_MAX} tenants")
        for tenant, rules in self.tenant_rules.items():
            parse_name("tenants", tenant)
            rules.check(tenant)
        for half_life_ms in self.demand_half_lives_ms:
            parse_int("demand_half_lives_ms", half_life_ms, *HALF_LIFE_MS)
        for weight in self.demand_weights_milli:
            parse_int("demand_weights_milli", weight, 0, WHOLE_MILLI)
        parse_int("demand_weights_milli", sum(self.demand_weights_milli), WHOLE_MILLI, WHOLE_MILLI)
        return self

    @property
    def identity(self) -> Identity:
        """Its name, and a digest of all its figures as they were before any scale of time."""
        return Identity(name=self.name, digest=self.unscaled_digest or self._digest())

    def _digest(self) -> str:
        told = []
        for each in fields(self):
            value = getattr(self, each.name)
            told.append((each.name, sorted(value.items()) if isinstance(value, dict) else sorted(value) if each.name == "terms" else value))
        return sha256(repr(told).encode()).hexdigest()[:_DIGEST_CHARS]

    def at_scale(self, time_scale_milli: int) -> Policy:
        """This policy where fleet time runs faster than real time: what waits for processes and networks waits as long in real time.

        Agents report and answer in real time, so silence, loss and resending are that much more fleet time. Slower clocks change nothing.
        """
        if time_scale_milli <= _REAL_TIME_MILLI:
            return self
        grown = {name: min(getattr(self, name) * time_scale_milli // _REAL_TIME_MILLI, BOUNDS[name][1]) for name in _REAL_WAITS}
        return replace(self, unscaled_digest=self.identity.digest, **grown)

    def has_weights_in_order(self) -> bool:
        """Whether no priority is worth less than the one that it goes before."""
        return all(self.weight_milli(first) >= self.weight_milli(then) for first, then in pairwise(Priority))

    def weight_milli(self, priority: Priority) -> int:
        """What a second of this priority's delay is worth, in thousandths of a normal job's."""
        return self.priority_weight_milli[priority]
