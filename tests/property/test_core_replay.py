"""Any history of the core keeps its promises, and a snapshot in the midst of it goes on with equal steps."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.model.attempt import AttemptState, FailureKind, PhaseTimes
from atoll.model.ids import AdapterId, SiteId, TenantId
from atoll.model.job import Priority
from atoll.model.modelspec import AdapterUse
from atoll.model.replica import Tier
from orchestrator.core import events
from orchestrator.core.machine import restore
from orchestrator.core.placement.policies import POLICIES
from tests.unit.fleet_of_machines import GPUS, Fleet, adapter, model, pool, site, spec

_WHOSE = st.tuples(st.sampled_from(["m", "x", "huge"]), st.sampled_from(list(Priority)), st.sampled_from("tuv"))
_ACTION = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 4), _WHOSE),
    st.tuples(st.just("gang"), st.sampled_from(["m", "x"]), st.sampled_from([2, 4])),
    st.tuples(st.just("end"), st.sampled_from(["a", "b", "c"]), st.sampled_from([*FailureKind, None])),
    st.tuples(st.just("take"), st.sampled_from(["a", "b", "c"]), st.sampled_from([100, 900, 2_500, 30_000])),
    st.tuples(st.just("run"), st.sampled_from(["a", "b", "c"])),
    st.tuples(st.just("report"), st.sampled_from(["a", "b", "c"])),
    st.tuples(st.just("stop"), st.sampled_from(["a", "b", "c"])),
    st.tuples(st.just("reconnect"), st.sampled_from(["a", "b", "c"])),
    st.tuples(st.just("drop"), st.sampled_from(["a", "b", "c"])),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 3.0, 20.0, 90.0])),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("admin"), st.sampled_from(["a", "b"]), st.sampled_from(["cordon", "uncordon", "drain"])),
    st.tuples(st.just("styled"), st.sampled_from(["s1", "s2"]), st.integers(1, 2)),
    st.tuples(st.just("adapter"), st.sampled_from(["s1", "s2"]), st.sampled_from(["add", "remove"])),
    st.tuples(st.just("adapted"), st.sampled_from(["a", "b", "c"]), st.sets(st.sampled_from(["s1", "s2"]))),
    st.tuples(st.just("pin"), st.sampled_from("abc"), st.sampled_from("mx"), st.sampled_from([Tier.GPU, Tier.HOST, Tier.DISK])),
    st.tuples(st.just("unpin"), st.sampled_from(["a", "b", "c"]), st.sampled_from(["m", "x"])),
    st.tuples(st.just("push"), st.sampled_from(["m", "x", "huge"]), st.integers(1, 3), st.integers(0, 2)),
    st.tuples(st.just("bring"), st.sampled_from("abc")),
    st.tuples(st.just("disk"), st.sampled_from(["a", "b", "c"]), st.sampled_from(["m", "x"])),
    st.tuples(st.just("warm"), st.sampled_from(["a", "b", "c"]), st.sampled_from(["m", "x"])),
)


def _act(fleet: Fleet, action: tuple) -> None:  # type: ignore[type-arg]  # noqa: C901 - one case per action
    match action:
        case ("submit", count, (model_id, priority, tenant)):
            owner = TenantId(tenant)
            fleet.submit(*(spec(model_id, prompt=str(number), priority=priority, tenant=owner) for number in range(count)))
        case ("gang", model_id, gang_size):
            fleet.submit(spec(model_id, gang_size=gang_size))
        case ("end", name, kind):
            _end(fleet, name, kind)
        case ("take", name, milli):
            _take(fleet, name, milli)
        case ("stop", name):
            for key, told in list(fleet.agents[SiteId(name)].attempts.items()):
                if told.stop:
                    fleet.end_attempt(name, key, AttemptState.STOPPED)
        case ("run", name):
            for key in list(fleet.agents[SiteId(name)].attempts)[:1]:
                fleet.running(name, key)
        case ("report", name):
            fleet.report(name)
        case ("reconnect", name):
            fleet.connect(fleet.agents[SiteId(name)].site)
        case ("drop", name):
            fleet.happen(events.SiteDisconnected(site_id=SiteId(name), session=fleet.agents[SiteId(name)].session))
        case ("wait", seconds):
            fleet.wait(seconds, reporting=("b",))
        case ("cancel", number):
            jobs = sorted(fleet.jobs)
            if jobs:
                job = fleet.jobs[jobs[number % len(jobs)]]
                fleet.ask(events.JobCancelRequested, tenant=job.spec.tenant, job_id=job.job_id, reason="r")
        case ("admin", name, "cordon"):
            fleet.ask(events.SiteCordoned, actor="t", reason="r", site_id=name)
        case ("admin", name, "uncordon"):
            fleet.ask(events.SiteUncordoned, actor="t", reason="r", site_id=name)
        case ("admin", name, "drain"):
            fleet.ask(events.SiteDrainRequested, actor="t", reason="r", site_id=name, deadline_ms=10_000)
        case ("styled", adapter_id, count):
            use = (AdapterUse(adapter_id=AdapterId(adapter_id)),)
            fleet.submit(*(spec("m", prompt=str(number), adapters=use) for number in range(count)))
        case ("adapter", adapter_id, "add"):
            fleet.ask(events.AdaptersAdded, actor="t", adapters=(adapter(adapter_id, "m"),))
        case ("adapter", adapter_id, "remove"):
            fleet.ask(events.AdapterRemoved, actor="t", reason="r", adapter_id=adapter_id)
        case ("adapted", name, adapter_ids):
            agent, one = fleet.agents[SiteId(name)], fleet.agents[SiteId(name)].site.pools[0]
            agent.loaded[(one.node_id(0), 0)], agent.disk_adapters = tuple(sorted(adapter_ids)), set(adapter_ids)
            fleet.report(name)
        case ("pin", name, model_id, tier):
            fleet.ask(events.ModelPinned, actor="t", reason="r", model_id=model_id, site_id=name, tier=tier)
        case ("unpin", name, model_id):
            fleet.ask(events.ModelUnpinned, actor="t", reason="r", model_id=model_id, site_id=name)
        case ("push", model_id, sites, warm):
            fleet.ask(events.ModelPushed, actor="t", reason="r", model_id=model_id, sites=sites, warm=warm)
        case ("bring", name):
            fleet.bring(name)
        case ("disk", name, model_id):
            fleet.agents[SiteId(name)].disk ^= {model_id}
            fleet.report(name)
        case ("warm", name, model_id):
            one = fleet.agents[SiteId(name)].site.pools[0]
            fleet.warm(name, one.node_id(0), 0, model_id)
            fleet.report(name)
        case _:
            raise AssertionError(action)


def _take(fleet: Fleet, name: str, milli: int) -> None:
    """An attempt succeeds after so many thousandths of what was predicted."""
    keys = list(fleet.agents[SiteId(name)].attempts)
    if not keys:
        return
    attempt = fleet.machine.context.state.sites[SiteId(name)].attempts[keys[0]].attempt
    took_us = attempt.predicted_us * milli // 1_000
    times = PhaseTimes(fetch_us=took_us // 2, load_us=took_us // 4, run_us=took_us // 4, upload_us=took_us // 8)
    fleet.end_attempt(name, keys[0], after_us=took_us, times=times)


def _end(fleet: Fleet, name: str, kind: FailureKind | None) -> None:
    keys = list(fleet.agents[SiteId(name)].attempts)
    if keys:
        state = AttemptState.SUCCEEDED if kind is None else AttemptState.FAILED
        fleet.end_attempt(name, keys[0], state, kind)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(_ACTION, max_size=25),
    st.lists(_ACTION, min_size=1, max_size=15),
    st.one_of(st.just("default"), st.sampled_from(sorted(POLICIES))),
)
def test_promises_hold_and_a_restored_snapshot_takes_equal_steps(before: list[tuple], after: list[tuple], name: str) -> None:  # type: ignore[type-arg]
    sites = (site("a", pool("p", gpus=2)), site("b", pool("q", "small", nodes=2, gpus=1)), site("c", pool("r", gpus=1)))
    # Ageing and preemption within the history of a test, and shares that differ.
    shares = {TenantId("u"): 3_000}
    policy = replace(POLICIES[name], ageing_ms=1, aged_every=2, preempt_gain_min_ms=1, tenant_weight_milli=shares)
    fleet = Fleet(*sites, models=(model("m"), model("x", 14), model("huge", 500)), policy=policy)
    for action in before:
        _act(fleet, action)
    snapshot = fleet.machine.snapshot()
    twin = restore(snapshot, fleet.policy, GPUS)
    assert twin.snapshot() == snapshot
    begun, taken = len(fleet.recording), len(fleet.steps)
    for action in after:
        _act(fleet, action)
    steps = fleet.steps[taken:]
    for (now_us, event), step in zip(fleet.recording[begun:], steps, strict=True):
        assert twin.handle(event, now_us) == step
    assert twin.snapshot() == fleet.machine.snapshot()
