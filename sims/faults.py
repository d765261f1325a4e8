"""What can go wrong: the faults of a run, which of them a seed turns on, and whether each of them did strike.

Decides when a fault strikes. How it hurts is the business of whom it strikes.
"""

from __future__ import annotations

import random
from collections import Counter
from enum import StrEnum
from typing import Final

from sims.world import World


class Fault(StrEnum):
    """One way of going wrong."""

    # single messages on the network
    DROP = "drop"
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    DELAY = "delay"
    # links and streams
    PARTITION = "partition"
    ONE_WAY = "one_way"
    HALF_OPEN = "half_open"
    BREAK_STREAM = "break_stream"
    LOST_ANSWER = "lost_answer"
    # store
    COMMIT_UNKNOWN = "commit_unknown"
    COMMIT_SLOW = "commit_slow"
    STORE_FULL = "store_full"
    # orchestrator
    CRASH_ORCHESTRATOR = "crash_orchestrator"
    CRASH_AFTER_COMMIT = "crash_after_commit"
    SPLIT_BRAIN = "split_brain"
    # agents and their sites
    CRASH_AGENT = "crash_agent"
    CRASH_AFTER_RECORD = "crash_after_record"
    LOSE_SITE = "lose_site"  # the host restarts, its disk is empty
    REBOOT_SITE = "reboot_site"  # the host restarts, its disk is there
    GONE_SITE = "gone_site"  # the host never comes back
    FLAP = "flap"
    CLOCK_DRIFT = "clock_drift"
    LIE = "lie"  # claims more memory than there is
    # execution
    SLOW_GPU = "slow_gpu"
    HANG = "hang"
    OUT_OF_MEMORY = "out_of_memory"
    EXECUTION_FAILS = "execution_fails"
    FETCH_FAILS = "fetch_fails"
    SLOT_DIES = "slot_dies"
    # the people
    OPERATOR = "operator"  # cordons, drains and takes it back
    REMOVE_SITE = "remove_site"  # an operator removes a site by force and adds it again
    REUSED_KEY = "reused_key"  # another payload under a key that is in use
    BROKEN_SITE = "broken_site"  # whatever executes at a site fails, for a while


# Chance of striking at one opportunity (a message, a commit, a command), in thousandths. Drops and duplicates are drawn per run
# in these bounds instead, because a network that is a little bad and one that is very bad break different things.
_CHANCE_MILLI: Final[dict[Fault, int]] = {
    Fault.REORDER: 100,
    Fault.DELAY: 50,
    Fault.HALF_OPEN: 300,
    Fault.LOST_ANSWER: 150,
    Fault.COMMIT_UNKNOWN: 10,
    Fault.COMMIT_SLOW: 30,
    Fault.CRASH_AFTER_COMMIT: 8,
    Fault.CRASH_AFTER_RECORD: 20,
    Fault.SLOW_GPU: 100,
    Fault.HANG: 40,
    Fault.OUT_OF_MEMORY: 80,
    Fault.EXECUTION_FAILS: 60,
    Fault.FETCH_FAILS: 200,
    Fault.SLOT_DIES: 50,
    Fault.REUSED_KEY: 60,
}
_DROP_MILLI_MAX: Final = 300
_DUPLICATE_MILLI_MAX: Final = 500

# A fault of chance strikes at the latest at an opportunity drawn from these, so that a short run is not vacuous by bad luck.
_LATEST_OPPORTUNITY: Final = (1, 5)

# These happen at instants that the schedule draws, not at opportunities.
SCHEDULED: Final = (
    Fault.PARTITION,
    Fault.ONE_WAY,
    Fault.HALF_OPEN,
    Fault.BREAK_STREAM,
    Fault.STORE_FULL,
    Fault.CRASH_ORCHESTRATOR,
    Fault.SPLIT_BRAIN,
    Fault.CRASH_AGENT,
    Fault.LOSE_SITE,
    Fault.REBOOT_SITE,
    Fault.GONE_SITE,
    Fault.FLAP,
    Fault.OPERATOR,
    Fault.REMOVE_SITE,
    Fault.BROKEN_SITE,
)
# Drawn from a stream of their own: what came later does not change the fleets and faults of seeds that failed once.
_LATE: Final = {Fault.BROKEN_SITE: 0.3}
_EARLY: Final = tuple(fault for fault in Fault if fault not in _LATE)


class Faults:
    """The faults of one run: drawn from the seed, active until `heal`."""

    __slots__ = ("_chance_milli", "_latest", "_opportunities", "_random", "_world", "active", "enabled", "fired")

    def __init__(self, world: World, enabled: frozenset[Fault]) -> None:
        self.enabled = enabled
        self.active = True
        self.fired: Counter[Fault] = Counter()
        self._world = world
        self._opportunities: Counter[Fault] = Counter()
        self._random = world.stream("faults")
        self._latest = {fault: self._random.randint(*_LATEST_OPPORTUNITY) for fault in _EARLY}
        self._latest[Fault.HALF_OPEN] = 1  # few streams die silently in a run
        self._chance_milli = dict(_CHANCE_MILLI)
        self._chance_milli[Fault.DROP] = self._random.randint(5, _DROP_MILLI_MAX)
        self._chance_milli[Fault.DUPLICATE] = self._random.randint(5, _DUPLICATE_MILLI_MAX)

    def on(self, fault: Fault) -> bool:
        """Whether a fault is enabled and the world not yet healed."""
        return self.active and fault in self.enabled

    def strikes(self, fault: Fault) -> bool:
        """Whether a fault of chance strikes at this opportunity."""
        if not self.on(fault):
            return False
        self._opportunities[fault] += 1
        due = fault not in self.fired and self._opportunities[fault] >= self._latest[fault]
        if not due and self._random.randrange(1_000) >= self._chance_milli[fault]:
            return False
        self.strike(fault)
        return True

    def strike(self, fault: Fault, where: str = "") -> None:
        """A fault happened."""
        self.fired[fault] += 1
        self._world.note("fault", f"{fault} {where}" if where else fault)

    def heal(self) -> None:
        """No fault strikes from now on."""
        self.active = False
        self._world.note("fault", "healed")

    def never_fired(self) -> tuple[Fault, ...]:
        """Enabled faults that did not strike: such a run proves less than it says."""
        return tuple(fault for fault in Fault if fault in self.enabled and fault not in self.fired)


def draw_faults(chance: random.Random, late: random.Random) -> frozenset[Fault]:
    """A random subset: few faults find what many would hide. Now and then none, or all."""
    share = chance.choice((0.1, 0.25, 0.25, 0.4, 0.6, 1.0))
    early = frozenset(fault for fault in _EARLY if chance.random() < share)
    return early | {fault for fault, share in _LATE.items() if late.random() < share}
