"""Lines at busy places: how long the wait is, and that who has very many kinds of jobs keeps nobody else from being looked at."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from atoll.model.ids import SiteId, TenantId
from atoll.model.job import Constraints, JobSpec, JobState
from atoll.model.quote import Quote, Verdict
from atoll.model.shape import Shape
from atoll.model.site import SiteRuntime
from orchestrator.core.events import TimerFired
from orchestrator.core.machine import restore
from orchestrator.core.placement.policy import Policy
from tests.unit.as_predicted import AsPredicted, of_steps
from tests.unit.fleet_of_machines import BATCH, GPUS, SECOND, URGENT, Fleet, model, pool, site, spec

_ONLY_A = Constraints(sites=(SiteId("a"),))


def _at_a(steps: int) -> JobSpec:
    return spec(prompt="a film", shape=Shape(width=1024, height=1024, steps=steps), constraints=_ONLY_A)


def _line(films: int) -> Fleet:
    """The model is warm on the one GPU of a, a cold start at b takes a minute and a half; so many films want a."""
    fleet = Fleet(site("a", pool("p", gpus=1)), site("b", pool("p", gpus=1)), models=(model("m", 40),), checked=False)
    fleet.warm("a", "p-0", 0, "m", 40)
    fleet.report("a")
    fleet.report("b")
    for _ in range(films):
        fleet.submit(_at_a(steps=60))
    return fleet


def _quoted(fleet: Fleet, job: JobSpec) -> Quote:
    quote = fleet.machine.quote_job(job, fleet.now_us)
    assert isinstance(quote, Quote)
    return quote


def test_a_short_job_waits_as_long_as_those_before_it_take_not_as_long_as_itself() -> None:
    picture = spec(prompt="a picture", shape=Shape(width=1024, height=1024, steps=2))
    few, many = _line(6), _line(20)
    quoted = _quoted(few, picture)
    film = _quoted(few, _at_a(steps=60))
    assert (quoted.verdict, quoted.chosen and quoted.chosen.site_id) == (Verdict.WAITS, "a")
    assert quoted.turn_us == film.turn_us > 0, "both wait for the same films"
    many.submit(picture)
    job = list(many.jobs.values())[-1]
    assert job.attempts and job.attempts[0].site_id == "b", "eighteen films take longer than to load the model elsewhere"


def test_films_behind_a_line_of_pictures_know_that_it_is_short() -> None:
    fleet = _line(2)
    for _ in range(8):
        fleet.submit(_at_a(steps=1))
    quoted = _quoted(fleet, _at_a(steps=60))
    assert quoted.verdict is Verdict.WAITS
    assert quoted.turn_us < quoted.predicted_us, "eight steps, not eight films"


def _of(tenant: str, number: int, at: str) -> JobSpec:
    shape = Shape(width=64 + 8 * (number % 200), height=64 + 8 * (number // 200), steps=20)
    return spec(prompt="one of a kind", shape=shape, tenant=TenantId(tenant), constraints=Constraints(sites=(SiteId(at),)))


def _crowd(kinds: int) -> Fleet:
    """One tenant has a job of each of so many kinds, all for the one GPU of a; b is idle."""
    fleet = Fleet(site("a", pool("p", gpus=1)), site("b", pool("p", gpus=1)), models=(model("m"),), checked=False)
    for name in "ab":
        fleet.warm(name, "p-0", 0, "m")
        fleet.report(name)
    fleet.submit(*(_of("crowd", number, "a") for number in range(kinds)))
    return fleet


def _settle(fleet: Fleet) -> int:
    """Let steps follow on each other until all has been looked at; how many it took."""
    steps = 0
    while (due_us := fleet.machine.next_deadline()) is not None and due_us <= fleet.now_us:
        fleet.happen(TimerFired(), 0)
        steps += 1
    return steps


def test_a_tenant_with_many_kinds_of_jobs_lets_others_be_looked_at_at_once() -> None:
    fleet = _crowd(kinds=600)
    assert not all(known.resting for known in fleet.machine.context.queue.classes.values()), "it takes more than one step"
    fleet.submit(_of("other", 0, "b"))
    job = list(fleet.jobs.values())[-1]
    assert job.state is JobState.PLACED, "in the very step in which it came"


def test_many_kinds_that_wait_are_looked_at_again_less_often_and_few_as_often_as_ever() -> None:
    kinds = 3_000
    fleet = _crowd(kinds)
    assert _settle(fleet) > 1
    window_us = fleet.policy.recheck_max_ms * 1_000
    soon = [known for known in fleet.machine.context.queue.classes.values() if known.wake_us <= fleet.now_us + window_us]
    assert len(soon) < 10
    fleet.wait(5, reporting=("a", "b"))
    fleet.submit(_of("other", 0, "a"))
    (other,) = [known for known in fleet.machine.context.queue.classes.values() if "other" in known.lanes]
    assert other.wake_us <= fleet.now_us + window_us, "of one kind only, beside thousands of another tenant"


def test_what_was_looked_at_in_vain_costs_nothing_where_a_tenant_waits_with_one_kind() -> None:
    fleet = _crowd(kinds=1)
    fleet.submit(replace(_of("crowd", 0, "a"), prompt="again"))
    account = fleet.machine.context.queue.shares.tenants[TenantId("crowd")]
    before_us = account.virtual_us
    fleet.wait(10)
    assert account.virtual_us == before_us


def _two_models(*names: str, gpus: int = 2, warm: str = "mn", policy: Policy | None = None) -> AsPredicted:
    """Models m and n are in the same slots of the first site, and on the disks of all."""
    models = (model("m"), model("n"), model("x", 60))
    fleet = Fleet(*(site(name, pool("p", gpus=gpus)) for name in names), models=models, policy=policy, checked=False)
    for name in names:
        fleet.agents[SiteId(name)].disk |= {"m", "n", "x"}
        for gpu in range(gpus):
            for model_id in warm if name == names[0] else "":
                fleet.warm(name, "p-0", gpu, model_id)
        fleet.report(name)
    return AsPredicted(fleet)


def _many(world: AsPredicted, jobs: int, model_id: str = "m", **changes: object) -> None:
    world.fleet.submit(*(of_steps(20, model_id, prompt=str(number), constraints=_ONLY_A, **changes) for number in range(jobs)))
    world.until(world.fleet.now_us + SECOND)


def test_a_line_is_of_all_who_want_the_same_slots_whatever_their_model() -> None:
    """The other model's jobs wait before it at a, so it loads at b, which is idle: 7 s and not 150."""
    world = _two_models("a", "b")
    _many(world, 100)
    quoted = world.ask(of_steps(20, "n"))
    assert (quoted.verdict, quoted.chosen and quoted.chosen.site_id) == (Verdict.NOW, "b")
    world.all_done()
    (held,) = world.held()
    assert held.took_us < 10 * SECOND


def test_who_shares_the_slots_of_a_line_is_told_how_long_it_is() -> None:
    world = _two_models("a")
    _many(world, 100)
    mine, theirs = world.quote(of_steps(20, "n")), world.quote(of_steps(20, "m"))
    assert theirs.turn_us * 9 // 10 <= mine.turn_us <= theirs.turn_us * 11 // 10
    apart = _two_models("a", warm="m")
    _many(apart, 100)
    # Where it is not in these slots it would have to be loaded there, and those whose model is there pass it.
    assert apart.quote(of_steps(20, "n")).turn_us >= mine.turn_us * 9 // 10


def _told_later_us(world: AsPredicted) -> int:
    """How long the one job that was asked for takes in all, as it is told ten seconds later."""
    world.until(world.fleet.now_us + 10 * SECOND)
    ((_, job_id, quote),) = world.asked
    told = world.fleet.machine.outlook(job_id, world.fleet.job(job_id).spec, world.fleet.now_us)
    assert isinstance(told, Quote) and told.eta is not None and told.verdict is Verdict.WAITS
    return told.eta.end_p50_us - quote.at_us


def test_who_has_to_load_waits_for_all_who_were_there_before_it_however_soon_jobs_age() -> None:
    """Their model is in all slots, which are busy with them for two minutes; the slots that are due to the oldest are theirs too."""
    world = _two_models("a", warm="m", policy=Policy(ageing_ms=20_000))
    _many(world, 100)
    world.ask(of_steps(20, "n"))
    later_us = _told_later_us(world)
    world.all_done()
    (held,) = world.held()
    assert held.took_us > 120 * SECOND and 0.9 < held.ratio < 1.1
    assert 0.9 < held.took_us / later_us < 1.1


def test_who_has_to_load_and_is_the_oldest_waits_no_longer_than_ageing_lets_it() -> None:
    """As many of a higher priority came after it."""
    world = _two_models("a", warm="m", policy=Policy(ageing_ms=20_000))
    _many(world, 4)
    world.ask(of_steps(20, "n", priority=BATCH))
    _many(world, 100)
    later_us = _told_later_us(world)
    world.until(world.fleet.now_us + 60 * SECOND)
    (held,) = world.held()
    assert 0.9 < held.took_us / later_us < 1.1


def test_less_urgent_work_is_nobodys_line() -> None:
    world = _two_models("a")
    _many(world, 40, priority=BATCH)
    assert world.quote(of_steps(20, "n")).turn_us == 0
    assert world.quote(of_steps(20, "n", priority=BATCH)).turn_us > 0


def test_a_job_of_another_tenant_takes_its_turn_in_slots_that_another_model_keeps_busy() -> None:
    """Behind the work of its own model a slot takes the next job before it is free: who shares it would wait for all of them."""
    took = []
    for one in (of_steps(20, "n", tenant=TenantId("u")), of_steps(20, "n", priority=URGENT), of_steps(20, "n")):
        world = _two_models("a")
        _many(world, 100)
        world.ask(one)
        world.all_done()
        took += [held.took_us for held in world.held()]
    other, urgent, same = took
    assert urgent < other < 10 * SECOND, "it has had nothing yet; who is urgent need not even wait for what is bound"
    assert same > 100 * SECOND, "its tenant's others came before"


def test_models_that_share_a_slot_are_served_as_they_came() -> None:
    world = _two_models("a", gpus=1)
    for number in range(16):
        world.ask(of_steps(20, "mn"[number % 2]))
    world.all_done()
    took = [one.took_us for one in world.held()]
    assert all(later - earlier > -4 * SECOND for earlier, later in pairwise(took))
    assert all(0.7 <= one.ratio <= 1.4 for one in world.held())


def test_gangs_in_a_line_count_all_the_slots_they_hold() -> None:
    turns = {}
    for size in (2, 4):
        world = _two_models("a", gpus=8, warm="m")
        world.fleet.submit(*(of_steps(20, prompt=str(number), gang_size=size) for number in range(20)))
        world.until(world.fleet.now_us + SECOND)
        turns[size] = world.quote(of_steps(21, gang_size=8)).turn_us
        offered = world.ask(of_steps(20, gang_size=size))
        assert offered.turn_us > 0
        world.all_done()
        (held,) = world.held()
        assert 0.8 <= held.ratio <= 1.2
    # Their executions are a little longer than half of those on two GPUs, and take twice as many.
    assert turns[4] > turns[2]


def test_what_loads_once_is_counted_once() -> None:
    """Thirty jobs of a model that is nowhere: some slots load it, and most of them find it there."""
    world = _two_models("a", gpus=4, warm="m")
    _many(world, 8)
    _many(world, 30, "x", tenant=TenantId("u"))
    offered = world.ask(of_steps(20, "x", tenant=TenantId("u"), constraints=_ONLY_A))
    world.all_done()
    (held,) = world.held()
    assert offered.verdict is Verdict.WAITS and 0.6 <= held.ratio <= 1.6


def test_a_line_that_many_sites_serve_is_so_much_shorter() -> None:
    turns = {}
    for sites in (1, 6, 12):
        names = "abcdefghijkl"[:sites]
        fleet = Fleet(*(site(name, pool("p", gpus=2)) for name in names), checked=False)
        for name in names:
            fleet.warm(name, "p-0", 0, "m")
            fleet.warm(name, "p-0", 1, "m")
            fleet.report(name)
        fleet.submit(*(of_steps(20 + number % 3, prompt=str(number)) for number in range(240 + 4 * sites)))
        world = AsPredicted(fleet)
        world.until(fleet.now_us + SECOND)
        turns[sites] = world.quote(of_steps(20)).turn_us
    assert turns[1] > 5 * turns[6] > 9 * turns[12] > 0
    assert turns[6] > turns[1] // 8 and turns[12] > turns[1] // 16


def test_a_restored_core_knows_how_long_the_line_is() -> None:
    fleet = _line(6)
    picture = spec(prompt="a picture", shape=Shape(width=1024, height=1024, steps=2))
    again = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
    assert again.snapshot() == fleet.machine.snapshot()
    quoted = _quoted(fleet, picture)
    assert quoted.verdict is Verdict.WAITS and quoted.turn_us > 0
    assert again.quote_job(picture, fleet.now_us) == quoted


def _flight(*, elsewhere: bool) -> tuple[Fleet, JobSpec]:
    """20 GB of weights are on their way to one of the twenty nodes of a, which copy at 5 GB/s and fetch at 1 GB/s, for a gang of all of its
    eight GPUs; b, if there is one, costs half as much again."""
    cheap, dear = (replace(pool("p", nodes=20, gpus=8), usd_micros_per_gpu_hour=usd * 1_000_000) for usd in (2, 3))
    sites = (site("a", cheap), *((site("b", dear),) if elsewhere else ()))
    made = [replace(one, lan_bytes_per_s=5 * 10**9) for one in sites]
    policy = Policy(learning=False, claims_share_milli=0)
    fleet = Fleet(*made, models=(model("m", 20),), runtime=SiteRuntime.TWIN, policy=policy, checked=False)
    gang = spec(simulated=True, gang_size=8, shape=Shape(width=2048, height=2048, steps=1_000))
    fleet.submit(gang)
    (job,) = fleet.jobs.values()
    assert job.attempts and job.attempts[0].site_id == "a"
    return fleet, gang


_COPY_AND_FETCH_US = SECOND * 20 * 4 // (20 + 4)


def test_who_waits_for_weights_knows_of_others_who_will_copy_them() -> None:
    fleet, gang = _flight(elsewhere=False)
    others = [replace(gang, shape=replace(gang.shape, steps=steps)) for steps in (900, 800, 700)]
    for number in range(4):
        fleet.submit(*(replace(other, prompt=str(number)) for other in others))
    assert sum(1 for job in fleet.jobs.values() if job.state is JobState.QUEUED) == 12
    quoted = _quoted(fleet, gang)
    assert quoted.verdict is Verdict.WAITS and abs(quoted.turn_us - 12 * _COPY_AND_FETCH_US) < 100


def test_who_waits_for_weights_behind_more_than_there_are_slots_for_knows_of_their_work() -> None:
    """Twelve others and ten like it wait for nineteen free blocks: the last three of these wait for one to be free again."""
    fleet, gang = _flight(elsewhere=False)
    fleet.submit(*(replace(gang, shape=replace(gang.shape, steps=990), prompt=str(number)) for number in range(12)))
    fleet.submit(*(replace(gang, prompt=str(number)) for number in range(10)))
    assert sum(1 for job in fleet.jobs.values() if job.state is JobState.QUEUED) == 22
    quoted = _quoted(fleet, gang)
    assert quoted.chosen is not None
    each_us = quoted.chosen.terms_us[quoted.term_names.index("execution")] // 20
    assert each_us > _COPY_AND_FETCH_US
    assert abs(quoted.turn_us - 19 * _COPY_AND_FETCH_US - 3 * each_us) < 100


def test_no_more_wait_for_weights_than_are_better_off_with_a_copy_of_them() -> None:
    fleet, gang = _flight(elsewhere=True)
    quoted = _quoted(fleet, gang)
    assert quoted.chosen is not None and (quoted.verdict, quoted.chosen.site_id) == (Verdict.WAITS, "a")
    gain_us = next(other.total_us for other in quoted.others if other.site_id == "b") - quoted.chosen.total_us
    better_off = gain_us // _COPY_AND_FETCH_US + 1
    assert 1 < better_off < 12
    fleet.submit(*(replace(gang, prompt=str(number)) for number in range(12)))
    waiting = [job for job in fleet.jobs.values() if not job.attempts]
    assert any(job.attempts and job.attempts[0].site_id == "b" for job in fleet.jobs.values())
    # Those behind the first at b wait for its flight too, or for that at a: of both as many as each gives.
    assert better_off <= len(waiting) < 12
