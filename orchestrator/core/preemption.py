"""Preemption: whether work of a lower priority should make room for a job that waits, and which.

Decides by weighted seconds: what the waiting job wins against what is thrown away and delayed. It pays if the first exceeds the second by a
margin. Must not know how work is stopped, who gets the slot, or where; it is asked about slots that would help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.core.placement.nearness import HERE, Arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    """A job that waits, as it stands to a slot: it could begin after `wait_us` if nothing is stopped, and holds the slot for `hold_us` from
    when it begins. Its weights have to be there too (`arrives`): it does not begin before, however empty the slot is."""

    rank: int
    weight_milli: int
    wait_us: int
    hold_us: int
    arrives: Arrival = HERE

    def begins_us(self, free_us: int) -> int:
        """When it begins if the slot is free after this time."""
        return self.arrives.begins_us(free_us)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """An attempt that holds a slot. `lost_us` of it must be done again if it is stopped, which takes `stop_us` (to the end of a step), and
    before that `reload_us` pass for its model, if the waiting job's pushes that out."""

    rank: int
    weight_milli: int
    exec_us: int
    remaining_us: int
    lost_us: int
    stop_us: int
    preempted: int  # how often its job was already
    gpus: int = 1  # what is done again is done on so many, and loaded on so many
    reload_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The policy's figures: `tail_milli` of its execution an attempt is never stopped at the end of it."""

    times_max: int
    margin_milli: int
    gain_min_us: int
    tail_milli: int


def best_of(worths: Sequence[int | None]) -> int | None:
    """Which slot to empty, by its place in what emptying each is worth (None: it must not be, or does not pay); None: none of them.

    The one of most worth, the earlier of equals.
    """
    best, best_worth = None, 0
    for place, worth in enumerate(worths):
        if worth is not None and worth > best_worth:
            best, best_worth = place, worth
    return best


def worth_of(waiter: Waiter, works: Sequence[Work], rules: Rules) -> int | None:
    """What emptying a slot is worth, in microseconds of a normal job x 1,000; None if it must not be or does not pay."""
    return worth_of_all(waiter, [works], rules)


def worth_of_all(waiter: Waiter, slots: Sequence[Sequence[Work]], rules: Rules) -> int | None:
    """What emptying all of these slots for one job is worth: it wins once, whoever is stopped loses each. Work that several of them share
    is told once. Nothing is won where the weights come no sooner."""
    works = [work for slot in slots for work in slot]
    if not works or any(not _may_stop(waiter, work, rules) for work in works):
        return None
    longest_us = max(sum(work.remaining_us for work in slot) for slot in slots)
    stop_us = max(work.stop_us for work in works)
    begins_us = waiter.begins_us(stop_us)
    gain_us = min(waiter.wait_us, waiter.begins_us(longest_us)) - begins_us
    if gain_us < max(rules.gain_min_us, 1):
        return None
    won, taken_us = gain_us * waiter.weight_milli, begins_us - stop_us + waiter.hold_us
    lost = sum(((work.lost_us + work.reload_us) * work.gpus + taken_us) * work.weight_milli for work in works)
    return won - lost if won * 1_000 > lost * (1_000 + rules.margin_milli) else None


def _may_stop(waiter: Waiter, work: Work, rules: Rules) -> bool:
    near_its_end = work.remaining_us * 1_000 < work.exec_us * rules.tail_milli
    return work.rank > waiter.rank and work.preempted < rules.times_max and not near_its_end
