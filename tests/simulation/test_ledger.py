"""The books of a run: they balance whatever befalls sites, are an account of their own, and a run in which they do not is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from agents.core.events import AttemptFinished, ReplicaLoaded, WeightsFetched
from agents.core.outputs import FetchWeights, LoadReplica, RunAttempt
from agents.twin.plant import Plant
from atoll.model.attempt import PhaseTimes, ResultManifest
from atoll.model.ids import AttemptKey, JobId, ModelId, Ordinal, SiteId, SlotRef
from atoll.model.job import Job, JobState
from sims.play.collecting import CountedPeers
from sims.play.ledger import Doing, Ledger, NotConserved
from sims.play.player import Player
from sims.play.timeline import Timeline
from sims.play.weather import Weather
from sims.traces.job import TraceJob
from tests.simulation.played import Law, Rows, mixed, three_sites
from tests.unit.fleet_of_machines import GB, GPUS, model, pool, site, spec

DAY_MILLI = 24 * 1_000
STORM = Weather(
    outages_per_day_milli=6 * DAY_MILLI, outage_s=120, reclaims=True, reclaim_s=20, reports_late_ms=300, reports_lost_milli=100,
    maintenances_per_day_milli=4 * DAY_MILLI, maintenance_s=60,
)  # fmt: skip


def gangs(count: int) -> list[TraceJob]:
    """Films on two GPUs among the jobs of one."""
    found = []
    for number, job in enumerate(mixed(count)):
        found.append(replace(job, gang_size=2, model_id=ModelId("wan"), adapters=()) if number % 5 == 0 else job)
    return found


# A storm of three minutes may miss all that executes: of 300 jobs, in ten minutes, it ends several on their way.
@pytest.mark.parametrize(("weather", "jobs"), [(Weather(), 100), (STORM, 300)], ids=["calm", "storm"])
def test_the_books_of_a_run_agree_with_its_rows(weather: Weather, jobs: int) -> None:
    scenario = three_sites()
    spot = tuple(replace(one, preemptions_per_million_gpu_hours=5_000_000) for one in scenario.sites)
    rows = Rows()
    player = Player(replace(scenario, sites=spot, weather=weather, drain_us=600_000_000), gangs(jobs), rows)
    found = player.play()
    spent_us, ledger = player.ledger.gpu_us(), player.ledger
    assert sum(spent_us.values()) == sum(len(one.machine.state.slots) for one in player.sites) * player.timeline.now
    assert ledger.accepted + ledger.refused == found.jobs == jobs
    assert {state.value: count for state, count in ledger.ended.items()} == found.states
    done = [row for row in rows.jobs if row.state == "succeeded"]
    executed_us = sum((row.compile_us + row.execution_us + row.output_us) * row.gang_size for row in done)
    if weather == STORM:
        assert spent_us[Doing.LOST] > 0 and executed_us < spent_us[Doing.EXECUTING]  # what came to nothing is in no row
    else:
        assert spent_us[Doing.LOST] == 0 and executed_us <= spent_us[Doing.EXECUTING]
    for doing in (Doing.IDLE, Doing.LOADING, Doing.ADAPTING):
        assert spent_us[doing] > 0


def test_a_job_of_which_nobody_tells_the_end_is_missed() -> None:
    player = Player(replace(three_sites(), drain_us=10**9), list(mixed(20)), Rows())
    published = player._published

    def forgets(job: Job) -> None:
        if job.job_id != "j000000007" or job.state is JobState.QUEUED:
            published(job)

    player.brain._published = forgets
    with pytest.raises(NotConserved, match=r"a job that was accepted ended, or is pending: .*j000000007"):
        player.play()


@pytest.mark.parametrize("beyond_us", [-1_000_000, 1_000_000])
def test_a_job_that_says_it_was_there_longer_or_shorter_than_it_was_is_found(beyond_us: int) -> None:
    """Little's law. A second is far more than the commits of twenty jobs may hide."""
    player = Player(three_sites(), list(mixed(20)), Rows())
    published = player._published

    def wrong(job: Job) -> None:
        over = job.job_id == "j000000007" and job.ended_us
        published(replace(job, ended_us=job.ended_us + beyond_us) if over else job)

    player.brain._published = wrong
    with pytest.raises(NotConserved, match="as many jobs are there as come, times how long they stay"):
        player.play()


def test_a_job_ends_once_and_not_before_it_was_accepted() -> None:
    ledger = Ledger(Timeline().now_us)
    job = Job(
        job_id=JobId("j"), spec=spec(), state=JobState.SUCCEEDED, idempotency_key="j", payload_digest="", request_id="", accepted_us=0
    )  # fmt: skip
    with pytest.raises(NotConserved, match="was accepted, and ends once"):
        ledger.published(job)
    ledger.took(job.job_id, accepted=True)
    ledger.published(job)
    with pytest.raises(NotConserved, match="was accepted, and ends once"):
        ledger.published(job)
    ledger.close(1, ())
    with pytest.raises(NotConserved, match="jobs that arrived"):
        ledger.close(2, ())


KEY = AttemptKey(job_id=JobId("j"), ordinal=Ordinal(1))
SD = model("sd")


class Watched:
    """A plant of two GPUs and what its books hear."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        pools = pool("p")
        self.node_id = pools.node_id(0)
        self.slot = SlotRef(pool_id=pools.pool_id, node_id=self.node_id, index=0)
        plant = Plant(site("s", pools), gpus=GPUS, truth=Law(10, exponential=False), timers=self.timeline, tell=lambda _: None)
        self.ledger = Ledger(self.timeline.now_us)
        self.hear = self.ledger.watch(site("s").site_id, plant)

    def wait(self, us: int) -> None:
        self.timeline.run(self.timeline.now + us)

    @property
    def load(self) -> LoadReplica:
        return LoadReplica(slot=self.slot, model=SD)

    @property
    def run(self) -> RunAttempt:
        return RunAttempt(slot=self.slot, key=KEY, spec=spec(simulated=True), model=SD, stop_after_ms=10**9, request_id="")

    def loaded(self, elapsed_us: int) -> ReplicaLoaded:
        return ReplicaLoaded(slot=self.slot, model_id=SD.model_id, memory_bytes=SD.resident_bytes, elapsed_us=elapsed_us)

    def finished(self, run_us: int) -> AttemptFinished:
        manifest = ResultManifest(key=KEY, artifacts=(), seed=0, simulated=True)
        return AttemptFinished(key=KEY, manifest=manifest, times=PhaseTimes(run_us=run_us, upload_us=5))


def _right(at: Watched) -> None:
    at.hear(at.load)
    at.wait(30)
    at.hear(at.loaded(30))
    at.wait(7)
    at.hear(at.run)
    at.wait(25)
    at.hear(at.finished(20))


def _load_told_short(at: Watched) -> None:
    at.hear(at.load)
    at.wait(30)
    at.hear(at.loaded(29))


def _run_told_long(at: Watched) -> None:
    at.hear(at.run)
    at.wait(25)
    at.hear(at.finished(21))


def _two_things_at_once(at: Watched) -> None:
    at.hear(at.load)
    at.hear(at.run)


def _bytes_from_nowhere(at: Watched) -> None:
    at.hear(FetchWeights(node_id=at.node_id, model=SD))
    at.hear(WeightsFetched(node_id=at.node_id, model_id=SD.model_id, weights_digest="", bytes=GB, elapsed_us=1))


def test_books_that_balance_tell_what_gpus_did() -> None:
    at = Watched()
    _right(at)
    at.wait(100)
    at.ledger.close(0, ())
    told = {doing: us for doing, us in at.ledger.gpu_us().items() if us}
    assert told == {Doing.LOADING: 30, Doing.EXECUTING: 25, Doing.IDLE: 2 * 162 - 55}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (_load_told_short, "took as long as was said"),
        (_run_told_long, "took as long as was said"),
        (_two_things_at_once, "one thing at a time"),
        (_bytes_from_nowhere, "disks hold what came"),
    ],
)
def test_what_does_not_add_up_is_told(wrong: Callable[[Watched], None], said: str) -> None:
    def told(at: Watched) -> None:
        wrong(at)
        at.ledger.close(0, ())

    with pytest.raises(NotConserved, match=said):
        told(Watched())


def test_what_sites_give_is_what_comes_of_them_though_a_fetch_yields_and_goes_on_elsewhere() -> None:
    here, fast, slow = SiteId("here"), SiteId("fast"), SiteId("slow")
    gave: Counter[SiteId] = Counter()
    peers = CountedPeers([site(name) for name in (here, fast, slow)])
    peers.gave = lambda site_id, size_bytes: gave.update({site_id: size_bytes})
    key = (here, pool("p").node_id(0), SD.model_id)
    # Of 90 GB six ninths come from the one, two from the other, and one from the origin store: half of all, then it yields.
    peers.begin(key, 90 * GB, {fast: 10, slow: 30}, 60, origin_too=True)
    peers.end(key, left=0.5)
    assert gave == {fast: 30 * GB, slow: 10 * GB}
    peers.begin(key, 90 * GB, {slow: 30}, 60, origin_too=False, left=0.5)
    peers.end(key)
    assert gave == {fast: 30 * GB, slow: 55 * GB}
