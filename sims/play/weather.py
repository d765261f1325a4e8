"""What befalls sites that nobody decided, and how often: the way to them breaks, nodes are taken back, GPUs are slow for a while, people
work on them, what they report comes late or not at all.

Decides figures only; `sky` makes them happen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from atoll.model.shape import parse_int

_PER_DAY_MILLI: Final = (0, 1_000_000)
_LASTING_S: Final = (1, 30 * 86_400)
# Later than that a site is silent by any policy.
_LATE_MS_MAX: Final = 3_600_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """Rates are of one site, in thousandths a day; lengths are means. What is 0 never happens.

    `reclaims`: nodes of a site are taken back as often as its fleet file says (`preemptions_per_million_gpu_hours`), for `reclaim_s`.
    `drift_milli`: by how much at most executions of a site become slower or faster from hour to hour, one way or the other.
    """

    outages_per_day_milli: int = 0
    outage_s: int = 300
    reclaims: bool = False
    reclaim_s: int = 900
    slow_per_day_milli: int = 0
    slow_s: int = 1_800
    slow_milli: int = 1_500
    drift_milli: int = 0
    maintenances_per_day_milli: int = 0
    maintenance_s: int = 3_600
    # Reports of a site: by how much more than the way takes they are late (a mean), and how many in a thousand are lost. What a site
    # says later never comes earlier, and ends of attempts are not lost: they are said until they are acknowledged.
    reports_late_ms: int = 0
    reports_lost_milli: int = 0

    def check(self) -> Weather:
        """Self, or FieldError for the first figure that nothing can be made of."""
        for name in ("outages_per_day_milli", "slow_per_day_milli", "maintenances_per_day_milli"):
            parse_int(f"weather.{name}", getattr(self, name), *_PER_DAY_MILLI)
        for name in ("outage_s", "reclaim_s", "slow_s", "maintenance_s"):
            parse_int(f"weather.{name}", getattr(self, name), *_LASTING_S)
        parse_int("weather.slow_milli", self.slow_milli, 1_000, 100_000)
        parse_int("weather.drift_milli", self.drift_milli, 0, 500)
        parse_int("weather.reports_late_ms", self.reports_late_ms, 0, _LATE_MS_MAX)
        parse_int("weather.reports_lost_milli", self.reports_lost_milli, 0, 1_000)
        return self


CALM: Final = Weather()
# A site is cut off once in ten days and slow once in five; half of them are worked on once a month.
ORDINARY: Final = Weather(
    outages_per_day_milli=100, reclaims=True, slow_per_day_milli=200, drift_milli=20, maintenances_per_day_milli=17
)  # fmt: skip
# Something befalls each site several times a day: for tests of policies, not of fleets.
ROUGH: Final = Weather(
    outages_per_day_milli=2_000, reclaims=True, slow_per_day_milli=4_000, slow_milli=2_500, drift_milli=50, maintenances_per_day_milli=1_000
)  # fmt: skip
# Nothing befalls sites, but what is known of them is old: half of the reports are a second late or more, and one in twenty never comes.
HAZY: Final = Weather(reports_late_ms=1_500, reports_lost_milli=50)
WEATHERS: Final = {"calm": CALM, "ordinary": ORDINARY, "rough": ROUGH, "hazy": HAZY}
