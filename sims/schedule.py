"""When the faults that are not a matter of chance strike: partitions, crashes, lost sites, a full store, meddling operators.

Decides instants and victims, from the seed. Everything it breaks it also mends, at the latest when the world heals.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from sims.faults import SCHEDULED, Fault, Faults
from sims.links import Side
from sims.orchestrator import Orchestrators
from sims.people import Operators
from sims.sites import SimSite
from sims.store import SimStore
from sims.world import SECOND_US, World

# How often each happens in a run.
_TIMES: Final[dict[Fault, tuple[int, int]]] = {
    Fault.PARTITION: (1, 5),
    Fault.ONE_WAY: (1, 4),
    Fault.HALF_OPEN: (1, 2),
    Fault.BREAK_STREAM: (2, 12),
    Fault.STORE_FULL: (1, 2),
    Fault.CRASH_ORCHESTRATOR: (1, 4),
    Fault.SPLIT_BRAIN: (1, 3),
    Fault.CRASH_AGENT: (1, 8),
    Fault.LOSE_SITE: (1, 2),
    Fault.REBOOT_SITE: (1, 3),
    Fault.GONE_SITE: (1, 1),
    Fault.FLAP: (1, 2),
    Fault.OPERATOR: (1, 5),
    Fault.REMOVE_SITE: (1, 2),
    Fault.BROKEN_SITE: (1, 2),
}
_OUTAGE_US: Final = (SECOND_US, 25 * SECOND_US)
# Now and then an outage outlives the patience of a lease.
_LONG_OUTAGE_US: Final = (65 * SECOND_US, 100 * SECOND_US)
# Longer than the pause of a breaker, so that probes fail too.
_BROKEN_US: Final = (20 * SECOND_US, 120 * SECOND_US)
_FLAP_US: Final = (SECOND_US // 2, 3 * SECOND_US)
_FLAPS: Final = 8


class Schedule:
    """The planned faults of one run."""

    def __init__(
        self,
        world: World,
        faults: Faults,
        store: SimStore,
        orchestrators: Orchestrators,
        sites: tuple[SimSite, ...],
        operators: Operators,
    ) -> None:
        self._world = world
        self._faults = faults
        self._store = store
        self._orchestrators = orchestrators
        self._sites = sites
        self._operators = operators
        self._random = world.stream("schedule")
        self._blows: dict[Fault, Callable[[], None]] = {
            Fault.PARTITION: partial(self._cut, Fault.PARTITION),
            Fault.ONE_WAY: partial(self._cut, Fault.ONE_WAY),
            # A dead peer is noticed late only where a link is cut.
            Fault.HALF_OPEN: partial(self._cut, Fault.PARTITION),
            Fault.BREAK_STREAM: self._break_streams,
            Fault.STORE_FULL: self._fill_store,
            Fault.CRASH_ORCHESTRATOR: self._crash_orchestrator,
            Fault.SPLIT_BRAIN: self._split,
            Fault.CRASH_AGENT: self._crash_agent,
            Fault.LOSE_SITE: partial(self._power_loss, Fault.LOSE_SITE),
            Fault.REBOOT_SITE: partial(self._power_loss, Fault.REBOOT_SITE),
            Fault.GONE_SITE: self._take_for_good,
            Fault.FLAP: self._flap,
            Fault.OPERATOR: operators.meddle,
            Fault.REMOVE_SITE: operators.remove,
            Fault.BROKEN_SITE: self._break_site,
        }

    def plan(self, from_us: int, until_us: int) -> None:
        """Draw every instant."""
        for fault in SCHEDULED:
            if fault not in self._faults.enabled:
                continue
            for _ in range(self._random.randint(*_TIMES[fault])):
                self._world.at(self._random.randint(from_us, until_us), partial(self._strike, fault))

    def insist(self) -> None:
        """Strike again with what was planned but found no victim."""
        for fault in self._faults.never_fired():
            if fault in self._blows:
                self._strike(fault)

    def _strike(self, fault: Fault) -> None:
        if self._faults.on(fault):
            self._blows[fault]()

    def heal(self) -> None:
        """Mend all that mends at once; the rest comes up by itself."""
        self._faults.heal()
        self._store.full = False
        for site in self._sites:
            site.link.unblock()
            site.runtime.heal()
            site.own_up()
        self._orchestrators.depose_all_but_newest()
        self._operators.open_all()

    # --- blows -----------------------------------------------------------------------------------------------------------------

    def _victim(self) -> SimSite:
        return self._random.choice(self._sites)

    def _cut(self, fault: Fault) -> None:
        sides = tuple(Side) if fault is Fault.PARTITION else (self._random.choice(tuple(Side)),)
        # One site, several, or all: the last is our own network, and no site's.
        victims = self._random.sample(self._sites, self._random.choice((1, 1, 2, len(self._sites))))
        outage_us = self._random.randint(*(_LONG_OUTAGE_US if self._random.random() < 0.3 else _OUTAGE_US))
        for site in victims:
            self._faults.strike(fault, f"{site.spec.site_id} {'+'.join(sides)} {outage_us}")
            site.link.block(*sides)
            self._world.after(outage_us, site.link.unblock)

    def _break_streams(self) -> None:
        site = self._victim()
        self._faults.strike(Fault.BREAK_STREAM, site.spec.site_id)
        site.link.break_streams()

    def _fill_store(self) -> None:
        self._faults.strike(Fault.STORE_FULL)
        self._store.full = True

        def empty() -> None:
            self._store.full = False

        self._world.after(self._random.randint(*_OUTAGE_US), empty)

    def _crash_orchestrator(self) -> None:
        leader = self._orchestrators.leader()
        if leader is None:
            self._world.after(SECOND_US, partial(self._strike, Fault.CRASH_ORCHESTRATOR))
            return
        self._faults.strike(Fault.CRASH_ORCHESTRATOR)
        leader.crash()

    def _split(self) -> None:
        """A second process takes over while the first lives on: cut off from the store it cannot learn that it was deposed, and
        agents that lose their streams find now the one, now the other."""
        self._faults.strike(Fault.SPLIT_BRAIN)
        outage_us = self._random.randint(*_OUTAGE_US)
        leader = self._orchestrators.leader()
        if leader is not None:
            self._store.isolate(leader.term, outage_us)
        self._orchestrators.start()
        for site in self._sites:
            for _ in range(2):
                self._world.after(self._random.randint(0, outage_us), site.link.break_streams)

    def _crash_agent(self) -> None:
        site = self._victim()
        self._faults.strike(Fault.CRASH_AGENT, site.spec.site_id)
        site.crash()

    def _power_loss(self, fault: Fault) -> None:
        site = self._victim()
        self._faults.strike(fault, site.spec.site_id)
        site.power_loss(disk_lost=fault is Fault.LOSE_SITE)

    def _take_for_good(self) -> None:
        """The first site stays: it is the one where everything fits."""
        site = self._random.choice(self._sites[1:])
        self._faults.strike(Fault.GONE_SITE, site.spec.site_id)
        site.power_loss(disk_lost=True, for_good=True)

    def _break_site(self) -> None:
        """It strikes with each attempt that fails of it."""
        self._victim().runtime.break_for(self._random.randint(*_BROKEN_US))

    def _flap(self) -> None:
        site = self._victim()
        self._faults.strike(Fault.FLAP, site.spec.site_id)

        def once(left: int) -> None:
            if left == 0 or not self._faults.on(Fault.FLAP):
                return
            if self._random.random() < 0.5:
                site.link.break_streams()
            else:
                site.crash(delay_us=self._random.randint(*_FLAP_US))
            self._world.after(self._random.randint(*_FLAP_US), lambda: once(left - 1))

        once(_FLAPS)
