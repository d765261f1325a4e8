"""What those who rest in front of busy places have before them: jobs and their work, by what they rest for.

Decides nothing: counts. Work is in slot-microseconds: how long a job holds its slots, times how many it holds, so that gangs and singles
add up. A crowd's work is spread over the slots that serve it, wherever they are. Must not know places.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from atoll.model.ids import ModelId

# The line of those whom so many pools serve that they are counted in no single one: whoever rests anywhere has their mean before him.
EVERYWHERE: Final = -2
_WHOLE_MILLI: Final = 1_000

# A model and how many slots share it, as in `ReplicaKey`.
Kind = tuple[ModelId, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """Where a class stands in line while it rests, and what one of its jobs adds."""

    # (pool, share of its work in thousandths, slots there that serve it), of the pools that serve it; or of all in one, EVERYWHERE.
    lines: tuple[tuple[int, int, int], ...] = ()
    cold: bool = False  # any slot will do, after a load; else one that has the model
    each_us: int = 0  # executing
    load_us: int = 0  # loading, where it is cold: once for each copy, however many jobs then find it there
    copies_max: int = 1  # that the slots have room for
    copy_us: int = 0  # of the way between the site's nodes, where the weights are on their way to another one


NO_STAND: Final = Stand()


@dataclass(slots=True)
class Crowd:
    """Those of one kind in a line. All figures are sums, so that the order in which classes came and went leaves no trace."""

    jobs: int = 0
    classes: int = 0
    each_us: int = 0  # of all jobs
    load_us: int = 0  # of all classes
    copies_max: int = 0  # of all classes
    slots: int = 0  # of all classes
    copy_us: int = 0  # of all jobs
    _slot_us: int = field(default=-1, compare=False)  # what `slot_us` answers; -1: to be reckoned when somebody asks

    def add(self, stand: Stand, share_milli: int, slots: int, classes: int, jobs: int) -> None:
        """So many more classes, and jobs, of this stand."""
        self._slot_us = -1
        self.jobs += jobs
        self.classes += classes
        self.each_us += jobs * (stand.each_us * share_milli // _WHOLE_MILLI)
        self.load_us += classes * stand.load_us
        self.copies_max += classes * stand.copies_max
        self.slots += classes * slots
        self.copy_us += jobs * (stand.copy_us * share_milli // _WHOLE_MILLI)

    def slot_us(self) -> int:
        """The work of all jobs that each slot which serves them gets, with the loads that they will make: one more copy where what is left
        to do takes as long as to load it."""
        if self._slot_us < 0:
            work_us, classes = self.each_us, self.classes
            if self.load_us and classes:
                load_us = self.load_us // classes
                work_us += load_us * min(1 + work_us // max(load_us, 1), self.jobs, self.copies_max // classes)
            self._slot_us = work_us * classes // max(self.slots, 1)
        return self._slot_us


@dataclass(slots=True)
class Queued:
    """Those of one priority who rest for slots that have their model, or those who rest for any slot."""

    jobs: int = 0
    crowds: dict[Kind, Crowd] = field(default_factory=dict)
    _slot_us: int = -1  # of all crowds; -1: to be added up when somebody asks

    def add(self, kind: Kind, stand: Stand, line: tuple[int, int, int], classes: int, jobs: int) -> None:
        """So many more classes, and jobs, of a kind; `line` is of their stand's."""
        crowd = self.crowds.get(kind)
        if crowd is None:
            crowd = self.crowds[kind] = Crowd()
        if self._slot_us < 0 or not stand.cold:
            crowd.add(stand, line[1], line[2], classes, jobs)
            self._slot_us = -1
        else:
            self._slot_us -= crowd.slot_us()
            crowd.add(stand, line[1], line[2], classes, jobs)
            self._slot_us += crowd.slot_us()
        self.jobs += jobs
        if not crowd.classes:
            del self.crowds[kind]

    def slot_us(self) -> int:
        """What each slot gets of all crowds."""
        if self._slot_us < 0:
            self._slot_us = sum([crowd.slot_us() for crowd in self.crowds.values()])
        return self._slot_us

    def without(self, kind: Kind, stand: Stand, line: tuple[int, int, int], jobs: int) -> Queued:
        """As if a class with so many jobs were not among them."""
        rest = Queued(jobs=self.jobs, crowds={**self.crowds, kind: replace(self.crowds[kind])})
        rest.add(kind, stand, line, -1, -jobs)
        return rest
