"""Turns among classes of one priority: whose is next, when tenants are in many classes and classes have many tenants.

Decides order: the tenant that has had least, then acceptance. A class of few tenants is entered once for each of them, under the
tenant: a charge then moves one tenant and not its thousand classes. A class of many tenants is entered once, under whoever leads it: it
then comes and goes at the price of one entry and not of its ten thousand tenants. Entries are made when somebody asks whose turn it is of
several classes: most classes come and go alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from atoll.model.ids import TenantId
from orchestrator.core.fairness import Tenant
from orchestrator.core.lanes import JobClass, Lane
from orchestrator.core.ranking import Key, Ranking

# Up to so many tenants a class is entered for each. Entering costs a microsecond each; beyond it a class is likely to be of a popular
# model, of which there are few.
_ENTRIES_MAX: Final = 8


class _Group:
    """The lanes of one tenant in classes that are entered for each."""

    __slots__ = ("lanes", "tenant")

    def __init__(self, tenant: Tenant) -> None:
        self.tenant = tenant
        self.lanes: Ranking[Lane] = Ranking(Lane.age_key)

    def key(self) -> Key:
        first = self.lanes.first()
        assert first is not None, "no group is empty"
        return (self.tenant.virtual_us, first.first[0])


class Turns:
    """Classes of one priority, in the order of their turns."""

    __slots__ = ("_came", "_entered", "_groups", "_led", "_tenants")

    def __init__(self) -> None:
        self._entered: dict[JobClass, tuple[Lane, ...]] = {}  # no lanes: it is entered under whoever leads it
        self._came: dict[JobClass, None] = {}  # classes without entries yet
        self._groups: dict[TenantId, _Group] = {}
        self._tenants: Ranking[_Group] = Ranking(_Group.key)
        self._led: Ranking[JobClass] = Ranking(JobClass.fair_key)

    def __len__(self) -> int:
        return len(self._entered)

    def __contains__(self, known: JobClass) -> bool:
        return known in self._entered

    def __iter__(self) -> Iterator[JobClass]:
        return iter(self._entered)

    def enter(self, known: JobClass) -> None:
        """A class takes part, or takes part anew because a job came whose turn may be earlier than those it had."""
        if known in self._entered:
            self.leave(known)
        self._entered[known] = ()
        self._came[known] = None

    def _make_entries(self) -> None:
        for known in self._came:
            if len(known.lanes) > _ENTRIES_MAX:
                self._led.offer(known)
                continue
            lanes = self._entered[known] = tuple(known.lanes.values())
            for lane in lanes:
                group = self._groups.get(lane.tenant.tenant_id)
                if group is None:
                    group = self._groups[lane.tenant.tenant_id] = _Group(lane.tenant)
                group.lanes.offer(lane)
                self._tenants.offer(group)
        self._came.clear()

    def leave(self, known: JobClass) -> None:
        """A class takes part no longer."""
        lanes = self._entered.pop(known, None)
        if lanes is None:
            return
        if known in self._came:
            del self._came[known]
            return
        if not lanes:
            self._led.withdraw(known)
        for lane in lanes:
            self.lane_ended(lane)

    def lane_ended(self, lane: Lane) -> None:
        """A tenant has no more jobs in a class that takes part."""
        group = self._groups.get(lane.tenant.tenant_id)
        if group is None or lane not in group.lanes:
            return
        group.lanes.withdraw(lane)
        if not len(group.lanes):
            self._tenants.withdraw(group)
            del self._groups[lane.tenant.tenant_id]

    def few(self, most: int) -> list[JobClass] | None:
        """All that take part, in the order of their turns, if they are at most so many; None if there are more."""
        if len(self._entered) == 1:
            return list(self._entered)
        return sorted(self._entered, key=JobClass.rank_key) if len(self._entered) <= most else None

    def first(self) -> JobClass | None:
        """The class whose turn it is; None if none takes part."""
        if len(self._entered) <= 1:
            return next(iter(self._entered), None)
        if self._came:
            self._make_entries()
        group, led = self._tenants.first(), self._led.first()
        if group is None or (led is not None and led.fair_key() < group.key()):
            return led
        lane = group.lanes.first()
        assert lane is not None, "no group is empty"
        return lane.job_class
