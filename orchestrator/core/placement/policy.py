"""The policy: exchange rates between seconds, money and risk, and the times after which silence counts.

Decides figures only. Every default argues its value.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from atoll.model.job import Priority

_REAL_TIME_MILLI: Final = 1_000
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


def _weights() -> dict[Priority, int]:
    # An urgent job's second is worth five of a normal one, a batch job's a fifth: enough to outbid money, not to ignore it.
    return {Priority.URGENT: 5_000, Priority.NORMAL: 1_000, Priority.BATCH: 200}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Figures of one named policy. Durations are fleet time."""

    name: str = "default"
    # A person waiting at $60 an hour of attention: a minute of delay weighs as much as a dollar of GPU.
    seconds_per_dollar: int = 60
    priority_weight_milli: dict[Priority, int] = field(default_factory=_weights)
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

    def at_scale(self, time_scale_milli: int) -> Policy:
        """This policy where fleet time runs faster than real time: what waits for processes and networks waits as long in real time.

        Agents report and answer in real time, so silence, loss and resending are that much more fleet time. Slower clocks change nothing.
        """
        if time_scale_milli <= _REAL_TIME_MILLI:
            return self
        grown = {name: getattr(self, name) * time_scale_milli // _REAL_TIME_MILLI for name in _REAL_WAITS}
        return replace(self, **grown)

    def weight_milli(self, priority: Priority) -> int:
        """What a second of this priority's delay is worth, in thousandths of a normal job's."""
        return self.priority_weight_milli[priority]
