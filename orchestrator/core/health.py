"""The health of places: what is remembered of how attempts ended there, and whether that keeps new work away.

Decides the form only; `breakers` and `poison` decide what it means.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from atoll.model.attempt import FailureKind
from atoll.model.ids import AttemptKey, JobId, ModelId, PoolId, SiteId, TenantId


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How an attempt in a pool ended; `kind` None: well."""

    at_us: int
    job_id: JobId
    model_id: ModelId
    tenant: TenantId
    kind: FailureKind | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """What is known of a pool's health. `ends`: the last that speak for or against it.

    `until_us` > 0: it is open, until then for everybody, and from then on (`probing`) for all but one `probe`. `level`: how often its
    pause was doubled.
    """

    ends: tuple[End, ...] = ()
    level: int = 0
    until_us: int = 0
    closed_us: int = 0
    probing: bool = False
    probe: AttemptKey | None = None

    @property
    def blocks(self) -> bool:
        """Whether it keeps new work away just now."""
        return self.until_us > 0 and (not self.probing or self.probe is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Struck:
    """An attempt that a slot's process was working for when it died."""

    at_us: int
    key: AttemptKey


class BreakerTurn(StrEnum):
    """What became of a pool's breaker."""

    OPEN = "open"
    PROBE = "probe"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerTurned:
    """A pool takes no new work, or one attempt, or all again."""

    site_id: SiteId
    pool_id: PoolId
    to: BreakerTurn
