"""The simulator beside two that run no code of Atoll's: one trace, one fleet, three ways to play it, and what each does in a second.

Decides what is equal: jobs and their arrivals, slots by type of GPU, and how long a job executes there by physics. A replay in SimPy, as
one would write it for this alone, and Ciw, a public simulator of queueing networks, see nothing else: a queue for each type, and a rule
that sends each job to one of them. So the ratios say what it costs to run production code, not whose event loop is faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import chain, islice, pairwise, repeat
from math import inf
from statistics import mean, median
from typing import Any, Final

from agents.twin.truth import Truth
from atoll.model.ids import GpuTypeId
from atoll.packaged import load_packaged, named_fleet
from orchestrator.core.placement.policies import DEFAULT
from sims.play.player import Player
from sims.play.scenario import Scenario
from sims.results.rows import JobRow, SiteRow
from sims.study.loads import at_load, measured
from sims.study.reckoning import Reckoner
from sims.traces import generating
from sims.traces.job import TraceJob
from tests.simulation.played import AsPredicted

JOBS: Final = 3_000
_MODELS: Final = 600
# Half of what the fleet can do: slots are busy and some jobs wait, and none waits without end.
_LOAD_MILLI: Final = 500
_ROUNDS: Final = 3
# The two others are done in a blink; in each round they play the trace again until this much of the processor's time has passed.
_LEAST_S: Final = 2.0
# Where every site is as physics predicts it, means can be compared: what is left is what the two others leave out.
_UNSURPRISING: Final = "Atoll, as predicted"
_NEEDED: Final = ("simpy", "ciw")
# Played once before, by all: what is compiled, or read from files, is then there.
_FIRST: Final = 50
_COLUMNS: Final = "  {:20}{:>8}{:>8}{:>10}{:>12}{:>12}"
_MODELLED: Final = """\
  Atoll models: orchestrator and sites as they run live, commits, messages, reports, weights that are fetched and loaded, hidden speeds,
    noise, results that travel; its rows say where each job's seconds went.
  SimPy and Ciw model: a queue for each type of GPU, executions as physics predicts them, one rule of placing. They leave out: sites,
    networks, weights and cold starts, adapters, failures, learning, prices, and that one may not know everything. What a job takes on
    each type is looked up beforehand.
  RATIO: jobs a second, over those of Atoll. EXECUTION and LATENCY: means of the jobs done; "as predicted": where every
    site is as physics has it; it is not timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A job as the two others see it. `times_us`: what it takes on each type of GPU that can run it."""

    at_us: int
    times_us: Mapping[GpuTypeId, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One trace on one fleet, for all three."""

    scenario: Scenario
    jobs: Sequence[TraceJob]
    arrivals: Sequence[Arrival]
    slots: Mapping[GpuTypeId, int]


@dataclass(slots=True)
class Done:
    """What came of one way to play it: from arrival to end, and executing, of each job that was done."""

    latency_us: list[int] = field(default_factory=list)
    execution_us: list[int] = field(default_factory=list)

    def ended(self, latency_us: int, execution_us: int) -> None:
        """One more."""
        self.latency_us.append(latency_us)
        self.execution_us.append(execution_us)


def setting(count: int) -> Setting:
    """A generated trace of so many jobs, and fleet-small."""
    packaged = load_packaged()
    fleet, models = named_fleet("fleet-small", packaged.gpus), {model.model_id: model for model in packaged.models}
    assert fleet is not None
    reckoner = Reckoner(fleet.sites, packaged.gpus, models)
    settings = generating.Settings(models=_MODELS)
    made = islice(generating.Generator(settings, models, packaged.gpus[GpuTypeId(generating.REFERENCE_GPU)]).jobs(), count)
    traced = list(made)
    jobs = list(at_load(traced, measured(traced, reckoner), _LOAD_MILLI))
    types = {f"{site.site_id}/{pool.pool_id}": pool.gpu_type for site in fleet.sites for pool in site.pools}
    slots = dict.fromkeys(types.values(), 0)
    for name, number in reckoner.slots.items():
        slots[types[name]] += number
    # Pools of one type of this fleet run the same jobs, equally fast.
    times = [{types[name]: took_us for name, took_us in reckoner.job(job).execution_us.items()} for job in jobs]
    return Setting(
        scenario=Scenario(sites=fleet.sites, links=fleet.links, catalogue=models, gpus=packaged.gpus, policy=DEFAULT),
        jobs=jobs,
        arrivals=[Arrival(at_us=job.arrival_us, times_us=found) for job, found in zip(jobs, times, strict=True)],
        slots=slots,
    )


def with_atoll(given: Setting, truth: Truth | None = None) -> Done:
    """The machines of production, and all that happens to them; by the truth of the scenario's seed, where no other is given."""
    done = Done()
    Player(given.scenario, given.jobs, _Sink(done), truth=truth).play()
    return done


class _Sink:
    """Takes rows as they come, and keeps two figures of each."""

    def __init__(self, done: Done) -> None:
        self._done = done

    def job(self, row: JobRow) -> None:
        if row.state == "succeeded":
            self._done.ended(row.ended_us - row.arrival_us, row.execution_us)

    def site(self, row: SiteRow) -> None:
        del row


def with_simpy(given: Setting) -> Done:
    """A process for each job and a resource for each type of GPU, as SimPy's handbook has it."""
    import simpy

    done = Done()
    world = simpy.Environment()
    queues = {name: simpy.Resource(world, capacity=count) for name, count in given.slots.items()}

    def lives(arrival: Arrival) -> Generator[simpy.Event, None, None]:
        name = chosen(arrival.times_us, {name: queues[name].count + len(queues[name].queue) for name in arrival.times_us}, given.slots)
        took_us = arrival.times_us[name]
        with queues[name].request() as slot:
            yield slot
            yield world.timeout(took_us)
        done.ended(round(world.now) - arrival.at_us, took_us)

    def arrives() -> Generator[simpy.Event, None, None]:
        for arrival in given.arrivals:
            yield world.timeout(arrival.at_us - world.now)
            world.process(lives(arrival))

    world.process(arrives())
    world.run()
    return done


def with_ciw(given: Setting) -> Done:
    """A node with several servers for each type of GPU; whoever arrives is sent to one of them, which takes a class of one's own."""
    import ciw

    names, coming = list(given.slots), iter(given.arrivals)
    moments = [0, *(arrival.at_us for arrival in given.arrivals)]
    gaps = chain((after - before for before, after in pairwise(moments)), repeat(inf))

    # Ciw has no types: its classes are Any.
    class Gaps(ciw.dists.Distribution):  # type: ignore[misc]
        """Between arrivals; after the last one there is none."""

        def sample(self, t: float | None = None, ind: object = None) -> float:
            del t, ind
            return next(gaps)

    class Takes(ciw.dists.Distribution):  # type: ignore[misc]
        """What was found for the job when it came."""

        def sample(self, t: float | None = None, ind: Any = None) -> int:
            del t
            found: int = ind.took_us
            return found

    class Door(ciw.ArrivalNode):  # type: ignore[misc]
        """Sends a job where the rule says."""

        def release_individual(self, next_node: object, next_individual: Any) -> None:
            del next_node
            arrival, nodes = next(coming), self.simulation.transitive_nodes
            present = {name: nodes[place].number_of_individuals for place, name in enumerate(names) if name in arrival.times_us}
            name = chosen(arrival.times_us, present, given.slots)
            next_individual.took_us = arrival.times_us[name]
            super().release_individual(nodes[names.index(name)], next_individual)

    network = ciw.create_network(
        arrival_distributions=[Gaps(), *[None] * (len(names) - 1)],
        service_distributions=[Takes() for _ in names],
        number_of_servers=list(given.slots.values()),
        routing=[[0.0] * len(names) for _ in names],
    )
    played = ciw.Simulation(network, arrival_node_class=Door)
    played.simulate_until_max_customers(len(given.arrivals))
    done = Done()
    for record in played.get_all_records():
        done.ended(round(record.exit_date - record.arrival_date), record.service_time)
    return done


def chosen(times_us: Mapping[GpuTypeId, int], present: Mapping[GpuTypeId, int], slots: Mapping[GpuTypeId, int]) -> GpuTypeId:
    """The fastest type with a slot free; who would have to wait takes longer, as there are more jobs than slots."""
    return min(times_us, key=lambda name: times_us[name] * max(slots[name], present[name] + 1) // slots[name])


WAYS: Final[dict[str, Callable[[Setting], Done]]] = {"Atoll": with_atoll, "SimPy, bespoke": with_simpy, "Ciw": with_ciw}


def _seconds(play: Callable[[Setting], Done], given: Setting) -> tuple[float, Done]:
    """Of the processor's time for one play, of several if one is over at once."""
    begun, plays = time.process_time(), 0
    while True:
        done, plays = play(given), plays + 1
        passed_s = time.process_time() - begun
        if passed_s >= _LEAST_S:
            return passed_s / plays, done


def _told(given: Setting, seconds: Mapping[str, list[float]], done: Mapping[str, Done]) -> Iterator[str]:
    yield _COLUMNS.format("PLAYED WITH", "JOBS/S", "RATIO", "DONE", "EXECUTION", "LATENCY")
    for name, one in done.items():
        speed = ratio = ""
        if spent := seconds.get(name):
            speed = f"{len(given.jobs) / median(spent):,.0f}"
            ratio = f"{median(atoll / own for atoll, own in zip(seconds['Atoll'], spent, strict=True)):,.1f}"
        means = (f"{mean(times) / 1e6:.2f} s" for times in (one.execution_us, one.latency_us))
        yield _COLUMNS.format(name, speed, ratio, f"{len(one.latency_us):,}", *means)


def main() -> None:
    """A line for each of them, and what it is of."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        print(f"sim: {' and '.join(missing)} not installed; `make setup` does it, or pip install 'atoll[dev]'", flush=True)
        return
    given = setting(JOBS)
    for play in WAYS.values():
        play(replace(given, jobs=given.jobs[:_FIRST], arrivals=given.arrivals[:_FIRST]))
    seconds = {name: list[float]() for name in WAYS}
    done = {name: Done() for name in WAYS}
    for number in range(_ROUNDS):
        for name in reversed(WAYS) if number % 2 else WAYS:
            spent, done[name] = _seconds(WAYS[name], given)
            seconds[name].append(spent)
    done[_UNSURPRISING] = with_atoll(given, AsPredicted())
    print(
        f"simulators: {JOBS:,} jobs of {_MODELS} models on fleet-small ({sum(given.slots.values())} slots of {len(given.slots)} types), "
        f"load {_LOAD_MILLI / 1_000:g}, {_ROUNDS} rounds in turns, per second of one processor (medians)"
    )
    for line in _told(given, seconds, done):
        print(line)
    print(_MODELLED, flush=True)
