"""How fast jobs end, in all and by tenant: what a caller that met a bound is told to wait for.

Decides the pause after a refusal by a bound: until so many jobs should have ended that a place is likely to be left for this caller too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from atoll.model.ids import TenantId

# Ends are counted over the last half to whole minute: long enough for a few at the pace of films, short enough to follow an outage.
_WINDOW_US: Final = 30_000_000
# Several callers meet a full queue together; each is sent away until so many places have come free.
_PLACES: Final = 16
# Sooner than this only adds load; later than this a client might as well look for itself.
_PAUSE_MIN_MS: Final = 500
_PAUSE_MAX_MS: Final = 60_000
# Nothing has ended yet, so nothing is known: look again when a job of usual length could have ended.
_PAUSE_UNKNOWN_MS: Final = 5_000


@dataclass(slots=True)
class _Ends:
    """Ends in the window that began at `since_us`, and in the one before."""

    since_us: int = 0
    now: int = 0
    before: int = 0

    def count(self, now_us: int) -> None:
        self.turn(now_us)
        self.now += 1

    def turn(self, now_us: int) -> None:
        windows = (now_us - self.since_us) // _WINDOW_US
        if windows:
            self.before = self.now if windows == 1 else 0
            self.now = 0
            self.since_us += windows * _WINDOW_US

    def pause_ms(self, now_us: int) -> int:
        """Changes nothing: readers ask too."""
        as_of = replace(self)
        as_of.turn(now_us)
        ended = as_of.now + as_of.before
        if not ended:
            return _PAUSE_UNKNOWN_MS
        span_us = now_us - as_of.since_us + (_WINDOW_US if as_of.before else 0)
        return min(max(span_us * _PLACES // ended // 1_000, _PAUSE_MIN_MS), _PAUSE_MAX_MS)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutflowSnapshot:
    """Counts as (since_us, now, before): in all, and by tenant."""

    fleet: tuple[int, int, int]
    tenants: tuple[tuple[TenantId, int, int, int], ...]


class Outflow:
    """Counts of ends. A tenant's is kept while it has jobs."""

    __slots__ = ("_fleet", "_tenants")

    def __init__(self) -> None:
        self._fleet = _Ends()
        self._tenants: dict[TenantId, _Ends] = {}

    def ended(self, tenant: TenantId, now_us: int, left: int) -> None:
        """A job of this tenant ended; so many of its jobs are left."""
        self._fleet.count(now_us)
        if left:
            self._tenants.setdefault(tenant, _Ends(since_us=now_us)).count(now_us)
        else:
            self._tenants.pop(tenant, None)

    def fleet_pause_ms(self, now_us: int) -> int:
        """How long to wait for a place in the queue."""
        return self._fleet.pause_ms(now_us)

    def tenant_pause_ms(self, tenant: TenantId, now_us: int) -> int:
        """How long to wait for a place within this tenant's bound."""
        ends = self._tenants.get(tenant)
        return _PAUSE_UNKNOWN_MS if ends is None else ends.pause_ms(now_us)

    def take(self) -> OutflowSnapshot:
        """All counts, tenants by name."""
        return OutflowSnapshot(
            fleet=(self._fleet.since_us, self._fleet.now, self._fleet.before),
            tenants=tuple((tenant, ends.since_us, ends.now, ends.before) for tenant, ends in sorted(self._tenants.items())),
        )

    def restore(self, told: OutflowSnapshot) -> None:
        """Go on counting from here."""
        self._fleet = _Ends(*told.fleet)
        self._tenants = {tenant: _Ends(*counts) for tenant, *counts in told.tenants}
