"""Lines at busy places: how long the wait is, and that who has very many kinds of jobs keeps nobody else from being looked at."""

from __future__ import annotations

from dataclasses import replace

from atoll.model.ids import SiteId, TenantId
from atoll.model.job import Constraints, JobSpec, JobState
from atoll.model.quote import Quote, Verdict
from atoll.model.shape import Shape
from orchestrator.core.events import TimerFired
from tests.unit.fleet_of_machines import Fleet, model, pool, site, spec

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
