"""What a policy file may set: each figure's key with its unit, the field of Policy it becomes, and why its default is what it is.

Decides names, units and words. Bounds are those of `policy.BOUNDS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# What one unit of the file is in the field's own unit.
_MILLI, _SECONDS_MS, _SECONDS_US = 1_000, 1_000, 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A whole number of Policy. `unit`: how much of the field's unit one of the file's is; 1: whole numbers only."""

    key: str
    field: str
    unit: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Settings that belong together, under a headline."""

    title: str
    settings: tuple[Setting, ...]


def _(key: str, field: str, unit: int, reason: str) -> Setting:
    return Setting(key=key, field=field, unit=unit, reason=reason)


SECTIONS: Final = (
    Section(
        title="How a place is chosen",
        settings=(
            _("seed", "seed", 1, "Chance of the rules that draw; any number is as good as another."),
            _("seconds_per_dollar", "seconds_per_dollar", 1, "A minute of delay weighs as much as a dollar of GPU."),
            _("k_e", "k_e_milli", _MILLI, "A second that others wait because a model gave way weighs as one of this job."),
            _("late_weight", "tardy_milli", _MILLI, "A second past the deadline weighs as three before it (w_D)."),
            _("late_spread", "spread_milli", _MILLI, "Before it is learned: 95 of 100 take at most twice what was predicted of each part."),
            _("hazard_per_million_hours", "hazard_per_million_hours", 1, "A GPU fails twice a year, beside what its owner takes back."),
            _("load_failure_ppm", "load_failure_ppm", 1, "One load in 500 fails."),
            _("link", "link_milli", _MILLI, "A tenth of the delay that a fetch causes to other fetches of the site counts."),
            _("link_used_share", "link_used_milli", _MILLI, "Unless they keep more of the way than this it is 0; one keeps 0.5."),
            _("fragmentation", "fragmentation_milli", _MILLI, "Breaking the last block of a pool with gangs costs half of the job again."),
            _("residence_s", "residence_ms", _SECONDS_MS, "Slots of a busy fleet change their models each quarter of an hour."),
            _("last_copy_weight", "last_copy_milli", _MILLI, "Of the last warm copy whole jobs wait, not one: it counts threefold."),
            _("tie_s", "tie_us", _SECONDS_US, "Places within this of the best are equal: what is loaded, then what is cheaper, decides."),
            _("tie_share", "tie_milli", _MILLI, "Or within this share of the best."),
            _("regret_classes", "regret_classes", 1, "Of so many classes ready together, who loses most goes first. 1: in order."),
            _("arrival_window_s", "arrival_window_ms", _SECONDS_MS, "Jobs within this long of an arrival are placed together. 0: at once."),
            _("candidates_kept", "candidates_kept", 1, "Places kept with a decision beside the chosen one. 0: no explanations."),
        ),
    ),
    Section(
        title="Slots, the queue, preemption, moves",
        settings=(
            _("slot_depth", "slot_depth", 1, "One executes, one waits with its weights at hand."),
            _("queued_jobs_per_tenant_max", "queued_jobs_per_tenant_max", 1, "Half of the queue: one tenant alone never fills it."),
            _("ageing_s", "ageing_ms", _SECONDS_MS, "A job that waits longer is offered slots out of turn."),
            _("aged_every", "aged_every", 1, "One in so many slots: urgent work keeps the others."),
            _("preemptions_max", "preemptions_max", 1, "Of one job; work is thrown away. 0: none."),
            _("preempt_margin", "preempt_margin_milli", _MILLI, "Seconds won exceed those lost by so much: predictions are that wrong."),
            _("preempt_gain_min_s", "preempt_gain_min_ms", _SECONDS_MS, "Stopping and starting takes a second."),
            _("preempt_tail_share", "preempt_tail_milli", _MILLI, "Never in the last tenth of an attempt."),
            _("claims_share", "claims_share_milli", _MILLI, "Of a pool, or one block: drains for gangs that wait. 0: they may starve."),
            _("move_gain_min_s", "move_gain_min_ms", _SECONDS_MS, "Bound work that has not begun moves to a free slot for more than this."),
            _("move_gain_share", "move_gain_milli", _MILLI, "And for more than this share of what is left."),
            _("moves_max", "moves_max", 1, "So often at most. 0: never."),
            _("recheck_min_s", "recheck_min_ms", _SECONDS_MS, "A job that waits is looked at again no sooner."),
            _("recheck_max_s", "recheck_max_ms", _SECONDS_MS, "And no later."),
            _("recheck_idle_s", "recheck_idle_ms", _SECONDS_MS, "Without a possible place: woken by what makes one possible, or then."),
        ),
    ),
    Section(
        title="Silence and loss",
        settings=(
            _("report_interval_s", "report_interval_ms", _SECONDS_MS, "How often agents report."),
            _("silent_after_s", "silent_after_ms", _SECONDS_MS, "Five missed reports are no hiccup of a link."),
            _("lost_after_min_s", "lost_after_min_ms", _SECONDS_MS, "A silent site's work is lost after twice its time, no sooner."),
            _("lost_after_max_s", "lost_after_max_ms", _SECONDS_MS, "And no later."),
            _("stop_after_s", "stop_after_ms", _SECONDS_MS, "Without a word of the orchestrator, work at a site stops itself."),
            _("hang_factor", "hang_factor", 1, "No new step for so many times the predicted time: it hangs."),
            _("hang_min_s", "hang_min_ms", _SECONDS_MS, "But no sooner: a film is decoded in one long step."),
            _("brake_sites_min", "brake_sites_min", 1, "So many silent sites, if they are most of the fleet: the trouble is likely ours."),
            _("brake_recheck_s", "brake_recheck_ms", _SECONDS_MS, "How long a brake holds before it looks again."),
            _("breaker_failures", "breaker_failures", 1, "So many different jobs failed in a pool in turn: no new work. 0: never."),
            _("breaker_window_s", "breaker_window_ms", _SECONDS_MS, "Within this long: older failures are of another trouble."),
            _("breaker_pause_s", "breaker_pause_ms", _SECONDS_MS, "Then one attempt is let in; if it fails too, twice as long."),
            _("breaker_pause_max_s", "breaker_pause_max_ms", _SECONDS_MS, "And no longer: somebody may have mended it."),
            _("resend_after_s", "resend_after_ms", _SECONDS_MS, "A report of an older generation after this long: a message was lost."),
        ),
    ),
    Section(
        title="Copies ahead of demand",
        settings=(
            _("launch_prior_per_hour", "launch_prior_per_hour_milli", _MILLI, "Requests expected of a model that nothing is known of."),
            _("residency_interval_s", "residency_interval_ms", _SECONDS_MS, "Twice a minute: a copy takes about as long to come."),
            _("residency_floor_s_per_gb_hour", "residency_floor_us_per_hour", _SECONDS_US, "Seconds an hour a copy must save for each GB."),
            _("residency_hysteresis_parts", "residency_hysteresis_parts", 1, "A quarter more to come, a quarter less to go."),
            _("residency_memory_share", "residency_memory_milli", _MILLI, "The other half of GPU memory is for what nobody foresaw."),
            _("spread_per_hour", "spread_per_hour_milli", _MILLI, "The top models, if asked for as often, are kept on two sites."),
            _("protect_per_hour", "protect_per_hour_milli", _MILLI, "Asked for as often: the last warm copy does not make room."),
            _("prefetch_link_share", "prefetch_link_milli", _MILLI, "Of each site's way to the origin."),
            _("push_hold_s", "push_hold_ms", _SECONDS_MS, "Pushed and not asked for within a day: it gives way like anything else."),
        ),
    ),
)  # fmt: skip
SETTINGS: Final = tuple(setting for section in SECTIONS for setting in section.settings)
BY_FIELD: Final = {setting.field: setting for setting in SETTINGS}
# What is no whole number of its own: the field of Policy and the key of the file.
OTHER_KEYS: Final = {
    "name": "name",
    "rule": "rule",
    "eviction": "eviction",
    "learning": "learning",
    "terms": "terms",
    "priority_weight_milli": "priority_weights",
    "tenant_weight_milli": "tenant_weights",
    "tenant_rules": "tenants",
    "demand_half_lives_ms": "demand",
    "demand_weights_milli": "demand",
}
# The three averages of demand, in the order of the fields' tuples.
AVERAGES: Final = ("minutes", "hours", "days")
