"""One simulated run from one seed: build the world, break it under load, heal it, and see that every promise was kept.

Decides what a run is made of and when it counts. Same seed and options, same digest.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from atoll.model.ids import FleetId
from atoll.model.job import JobState
from orchestrator.core.placement.policy import Policy
from sims.checks import History, Violation
from sims.clients import Clients
from sims.faults import Fault, Faults, draw_faults
from sims.fleet import GPUS, Fleet, draw_fleet, draw_order, with_peers
from sims.links import Link
from sims.liveness import Liveness
from sims.orchestrator import Orchestrators, Rules
from sims.people import Operators
from sims.runtime import SimRuntime
from sims.schedule import Schedule
from sims.sites import SimSite
from sims.store import SimStore
from sims.truth import Truth
from sims.weights import Disks
from sims.world import SECOND_US, World

FLEET_ID: Final = FleetId("fleet-simulated")
_LOAD_US: Final = (40 * SECOND_US, 120 * SECOND_US)
# From the last submit to the end of faults: time in which what is queued meets them too.
_AFTER_LOAD_US: Final = 20 * SECOND_US

# For how long a run is kept going for the sake of a fault that had no opportunity yet.
_WAIT_FOR_FAULTS_US: Final = 150 * SECOND_US
# Jobs every ten seconds of that time: most faults strike work.
_ORDERS_AGAIN: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What differs between runs besides the seed. `faults` None: drawn from the seed."""

    jobs: int | None = None
    faults: frozenset[Fault] | None = None
    policy: Policy = Policy()
    resnapshot: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a run. `never_fired` non-empty: the run proves less than it says. `tail`: the last lines before a violation."""

    seed: int
    digest: str
    submitted: int
    accepted: int
    states: dict[JobState, int]
    enabled: frozenset[Fault]
    fired: dict[Fault, int]
    never_fired: tuple[Fault, ...]
    violation: str | None
    overcommits: int
    events: int
    virtual_us: int
    tail: tuple[str, ...]

    @property
    def vacuous(self) -> str | None:
        """Why this run proves too little, if it does."""
        if self.accepted < self.submitted:
            return f"{self.accepted} of {self.submitted} jobs were accepted"
        if self.never_fired:
            return f"enabled, but never struck: {', '.join(self.never_fired)}"
        return None


class Run:
    """The parts of one run, wired."""

    def __init__(self, seed: int, options: Options, listener: Callable[[str], None] | None) -> None:
        self.world = World(seed)
        self.world.listener = listener
        chance = self.world.stream("plan")
        enabled = draw_faults(chance, self.world.stream("late faults")) if options.faults is None else options.faults
        self.faults = Faults(self.world, enabled)
        self.fleet: Fleet = with_peers(draw_fleet(chance), self.world.stream("peers"))
        self.store = SimStore(self.world, self.faults, FLEET_ID)
        self.history = History(self.world, self.store, options.policy.slot_depth)
        rules = Rules(policy=options.policy, gpus=GPUS, resnapshot=options.resnapshot)
        self.orchestrators = Orchestrators(self.world, self.faults, self.store, self.history, rules)
        truth = Truth(seed, self.fleet, GPUS)
        disks = Disks()
        self.sites = tuple(
            SimSite(
                self.world,
                self.faults,
                self.history,
                self.orchestrators,
                spec,
                SimRuntime(self.world, self.faults, self.history, truth, spec, disks),
                Link(self.world, self.faults, spec.site_id),
            )
            for spec in self.fleet.sites
        )
        self.clients = Clients(self.world, self.faults, self.orchestrators, self.history)
        self.operators = Operators(self.world, self.faults, self.orchestrators)
        self.schedule = Schedule(self.world, self.faults, self.store, self.orchestrators, self.sites, self.operators)
        self.jobs = chance.randint(60, 150) if options.jobs is None else options.jobs
        self.load_us = chance.randint(*_LOAD_US)

    def play(self) -> None:
        """Faults and load, then heal, then liveness. Raises Violation, or whatever a machine raises."""
        self.orchestrators.start()
        self.operators.declare(self.fleet)
        for site in self.sites:
            site.boot()
        while self.operators.asking:
            self.world.run(self.world.now_us + SECOND_US)
        from_us = self.world.now_us
        self._plan_orders(from_us)
        end_us = from_us + self.load_us + _AFTER_LOAD_US
        self.schedule.plan(from_us, end_us - 5 * SECOND_US)
        self.world.run(end_us)
        while self.faults.never_fired() and self.world.now_us < end_us + _WAIT_FOR_FAULTS_US:
            self.schedule.insist()
            for _ in range(_ORDERS_AGAIN):
                self.clients.submit(draw_order(self.world.stream("orders"), self.jobs, self.fleet))
                self.jobs += 1
            self.world.run(self.world.now_us + 10 * SECOND_US)
        self.schedule.heal()
        Liveness(
            world=self.world,
            store=self.store,
            history=self.history,
            orchestrators=self.orchestrators,
            sites=self.sites,
            clients=self.clients,
        ).check()

    def _plan_orders(self, from_us: int) -> None:
        chance = self.world.stream("orders")
        number = 0
        while number < self.jobs:
            size = min(chance.choice((1, 1, 1, 2, 5, 12)), self.jobs - number)
            orders = tuple(draw_order(chance, number + offset, self.fleet) for offset in range(size))
            number += size
            self.world.at(
                chance.randint(from_us, from_us + self.load_us),
                lambda orders=orders: self.clients.submit(*orders),  # type: ignore[misc]
            )


def run_seed(seed: int, options: Options | None = None, *, listener: Callable[[str], None] | None = None) -> Outcome:
    """One run. Whatever goes wrong in it is in the outcome; `listener` hears every line of its history."""
    run = Run(seed, options or Options(), listener)
    violation: str | None = None
    try:
        run.play()
    except Violation as error:
        violation = str(error)
    except Exception:  # noqa: BLE001 - a machine that raises has broken its first promise
        violation = traceback.format_exc(limit=-6)
    return Outcome(
        seed=seed,
        digest=run.world.digest(),
        submitted=run.jobs,
        accepted=len(run.history.promises),
        states=run.history.states(),
        enabled=run.faults.enabled,
        fired=dict(run.faults.fired),
        never_fired=run.faults.never_fired(),
        violation=violation,
        overcommits=run.history.overcommits,
        events=run.world.events,
        virtual_us=run.world.now_us,
        tail=tuple(run.world.tail),
    )
