"""Whatever happens to a fleet: nobody is moved more often than the policy allows, for less than it says, or once it has begun; and no job
is lost by that."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from atoll.model.attempt import AttemptState, FailureKind
from atoll.model.ids import AttemptKey, JobId, SiteId
from atoll.model.job import TERMINAL, JobState, Priority
from atoll.model.report import AttemptProgress
from orchestrator.core import events
from orchestrator.core.placement.policy import Policy
from tests.unit.fleet_of_machines import Fleet, model, pool, site, spec

_SITES = "abc"
_MOVED = re.compile(r"(\S+)/p .*: ([\d.]+) s better \((-?[\d.]+) s from here, (-?[\d.]+) s from there, all costs counted\)")
_ROUNDED_S = 0.02
_PHASES = (AttemptState.FETCHING, AttemptState.LOADING, AttemptState.RUNNING)
_site = st.sampled_from(_SITES)
_ACTION = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from(["m", "n"]), st.integers(1, 6), st.sampled_from([20, 400, 2_000])),
    st.tuples(st.just("urgent"), st.sampled_from(["m", "n"])),
    st.tuples(st.just("begin"), _site, st.sampled_from(_PHASES), st.integers(0, 3)),
    st.tuples(st.just("end"), _site),
    st.tuples(st.just("fail"), _site),
    st.tuples(st.just("stopped"), _site),
    st.tuples(st.just("disk"), _site, st.sampled_from(["m", "n"])),
    st.tuples(st.just("warm"), _site, st.sampled_from(["m", "n"])),
    st.tuples(st.just("cordon"), _site),
    st.tuples(st.just("uncordon"), _site),
    st.tuples(st.just("in vain"), _site),
    st.tuples(st.just("drop"), _site),
    st.tuples(st.just("connect"), _site),
    st.tuples(st.just("wait"), st.sampled_from([0.2, 3.0, 15.0])),
)


@dataclass(slots=True)
class _Watched:
    """A fleet, and what its sites have begun as far as they have said so."""

    fleet: Fleet
    begun: set[AttemptKey] = field(default_factory=set)
    seen: dict[JobId, int] = field(default_factory=dict)

    def act(self, action: tuple[Any, ...]) -> None:  # noqa: C901 - one case per action
        fleet = self.fleet
        match action:
            case ("submit", model_id, count, steps):
                shape = replace(spec().shape, steps=steps)
                fleet.submit(*(spec(model_id, prompt=str(number), shape=shape) for number in range(count)))
            case ("urgent", model_id):
                fleet.submit(spec(model_id, priority=Priority.URGENT))
            case ("begin", name, phase, which):
                for key in self._told(name, stop=False)[which : which + 1]:
                    fleet.report(name, progress=(AttemptProgress(key=key, state=phase, steps_done=0),))
                    if fleet.machine.context.state.sites[SiteId(name)].session is not None:  # else nobody hears it
                        self.begun.add(key)
            case ("end", name):
                for key in self._told(name, stop=False)[:1]:
                    fleet.end_attempt(name, key)
            case ("fail", name):
                for key in self._told(name, stop=False)[:1]:
                    fleet.end_attempt(name, key, AttemptState.FAILED, FailureKind.EXECUTION_FAILED)
            case ("stopped", name):
                for key in self._told(name, stop=True):
                    fleet.end_attempt(name, key, AttemptState.STOPPED)
            case ("disk", name, model_id):
                fleet.agents[SiteId(name)].disk ^= {model_id}
                fleet.report(name)
            case ("warm", name, model_id):
                fleet.warm(name, "p-0", 0, model_id, 30)
                fleet.report(name)
            case ("cordon", name):
                fleet.ask(events.SiteCordoned, actor="t", reason="r", site_id=name)
            case ("uncordon", name):
                fleet.ask(events.SiteUncordoned, actor="t", reason="r", site_id=name)
            case ("in vain", name):  # who is moved there finds it closed again
                self.act(("cordon", name))
                self.act(("uncordon", name))
                self.act(("cordon", name))
                for other in _SITES:
                    self.act(("stopped", other))
            case ("drop", name):
                fleet.happen(events.SiteDisconnected(site_id=SiteId(name), session=fleet.agents[SiteId(name)].session))
            case ("connect", name):
                fleet.connect(fleet.agents[SiteId(name)].site)
            case ("wait", seconds):
                fleet.wait(seconds, reporting=tuple(_SITES))
            case _:
                raise AssertionError(action)
        self.check()

    def _told(self, name: str, *, stop: bool) -> list[AttemptKey]:
        return [key for key, told in self.fleet.agents[SiteId(name)].attempts.items() if told.stop is stop]

    def check(self) -> None:
        """Each move that is new was allowed."""
        policy = self.fleet.policy
        for job in self.fleet.jobs.values():
            moved = [one for one in job.attempts if one.failure is not None and one.failure.kind is FailureKind.MOVED]
            assert len(moved) <= policy.moves_max, job.job_id
            for one in moved[self.seen.get(job.job_id, 0) :]:
                assert one.key not in self.begun, f"{one.key} had begun"
                assert one.failure is not None
                told = _MOVED.fullmatch(one.failure.message)
                assert told is not None, one.failure.message
                gain_s, here_s, there_s = (float(told[number]) for number in (2, 3, 4))
                assert abs(here_s - there_s - gain_s) <= _ROUNDED_S
                enough_s = max(policy.move_gain_min_ms / 1_000, here_s * policy.move_gain_milli / 1_000)
                assert gain_s >= enough_s - _ROUNDED_S
                event("moved")
            self.seen[job.job_id] = len(moved)

    def settle(self) -> None:
        """Everything is well again, and sites do what they are told, until nothing is left."""
        for name in _SITES:
            self.act(("connect", name))
            self.act(("uncordon", name))
        for _ in range(400):
            if all(job.state in TERMINAL for job in self.fleet.jobs.values()):
                break
            for name in _SITES:
                self.act(("stopped", name))
                self.act(("end", name))
            self.act(("wait", 0.2))
        assert {job.state for job in self.fleet.jobs.values()} <= {JobState.SUCCEEDED, JobState.FAILED}
        assert not self.fleet.machine.context.state.moves
        failed = [job for job in self.fleet.jobs.values() if job.state is JobState.FAILED]
        kinds = {job.failure.kind for job in failed if job.failure is not None}
        assert kinds <= {FailureKind.EXECUTION_FAILED, FailureKind.LOST}, "nobody fails of being moved"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_ACTION, min_size=8, max_size=40), st.integers(0, 2))
def test_moves_are_few_pay_touch_nothing_that_began_and_lose_nothing(actions: list[tuple[Any, ...]], moves_max: int) -> None:
    sites = (site("a", pool("p", gpus=1)), site("b", pool("p", gpus=2)), site("c", pool("p", "small", gpus=2)))
    watched = _Watched(Fleet(*sites, models=(model("m", 15), model("n", 15)), policy=Policy(moves_max=moves_max)))
    for name in "bc":
        watched.act(("cordon", name))
    watched.act(("warm", "a", "m"))
    watched.act(("submit", "m", 2, 2_000))
    for action in actions:
        watched.act(action)
    watched.settle()
