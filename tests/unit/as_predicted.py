"""A fleet whose work takes exactly what was predicted, in virtual time: what is told of a wait can be held against the wait."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from atoll.model.attempt import AttemptState
from atoll.model.ids import AttemptKey, JobId, SiteId
from atoll.model.job import JobSpec
from atoll.model.quote import Quote
from atoll.model.report import AttemptProgress
from atoll.model.shape import Shape
from orchestrator.core import events
from orchestrator.core.state import LiveAttempt, Pool, Site, Slot
from tests.unit.fleet_of_machines import SECOND, Fleet, spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A quote beside what came of it."""

    name: str
    quote: Quote
    took_us: int

    @property
    def p50_us(self) -> int:
        """What was said of half of such jobs."""
        assert self.quote.eta is not None, "what can be had has a time"
        return self.quote.eta.end_p50_us - self.quote.at_us

    @property
    def ratio(self) -> float:
        """How much longer it took than was quoted."""
        return self.took_us / self.p50_us

    @property
    def covered(self) -> bool:
        """Whether it was done by when nine tenths should be."""
        assert self.quote.eta is not None, "what can be had has a time"
        return self.quote.at_us + self.took_us <= self.quote.eta.end_p90_us


@dataclass
class AsPredicted:
    """Executes what is bound, each slot one after the other; stops take a step, weights are fetched once for a site."""

    fleet: Fleet
    ends: dict[AttemptKey, tuple[int, int]] = field(default_factory=dict)  # when it begins to execute, and when it is over
    done: dict[JobId, int] = field(default_factory=dict)
    asked: list[tuple[str, JobId, Quote]] = field(default_factory=list)
    reported_us: int = 0

    @property
    def sites(self) -> dict[SiteId, Site]:
        """The sites as the core knows them."""
        return self.fleet.machine.context.state.sites

    def quote(self, one: JobSpec) -> Quote:
        """What a job would be offered now."""
        offered = self.fleet.machine.quote_job(one, self.fleet.now_us)
        assert isinstance(offered, Quote), offered
        return offered

    def ask(self, one: JobSpec) -> Quote:
        """Ask for a quote, and submit the job."""
        offered = self.quote(one)
        name = f"asked {len(self.asked)}"
        self.fleet.submit(replace(one, prompt=name))
        (job_id,) = [job.job_id for job in self.fleet.jobs.values() if job.spec.prompt == name]
        self.asked.append((name, job_id, offered))
        return offered

    def held(self) -> list[Held]:
        """All quotes of jobs that are done."""
        return [
            Held(name=name, quote=quote, took_us=self.done[job_id] - quote.at_us)
            for name, job_id, quote in self.asked
            if job_id in self.done
        ]

    def until(self, at_us: int) -> None:
        """Let time pass."""
        fleet = self.fleet
        while fleet.now_us < at_us:
            self._begin()
            due = [at_us, self.reported_us + SECOND, *(end for _, end in self.ends.values())]
            timer_us = fleet.machine.next_deadline()
            next_us = min(*due, at_us if timer_us is None else timer_us)
            fleet.now_us = max(next_us, fleet.now_us)
            for key in sorted((key for key, (_, end) in self.ends.items() if end <= fleet.now_us), key=str):
                self._end(key)
                self._begin()
            if fleet.now_us >= self.reported_us + SECOND:
                self._report()
            fleet.happen(events.TimerFired(), 0 if timer_us is None or timer_us > fleet.now_us else 1)

    def all_done(self, within_s: int = 3_600) -> None:
        """Until nobody waits any more."""
        end_us = self.fleet.now_us + within_s * SECOND
        while len(self.done) < len(self.fleet.jobs):
            assert self.fleet.now_us < end_us, "somebody waits for ever"
            self.until(self.fleet.now_us + SECOND)

    def _begin(self) -> None:
        for site in self.sites.values():
            for key, live in site.attempts.items():
                if live.attempt.state is AttemptState.STOPPING:
                    step_us = live.exec_us // live.spec.shape.steps if key in self.ends else 0
                    begun_us, end_us = self.ends.get(key, (self.fleet.now_us, self.fleet.now_us))
                    self.ends[key] = (begun_us, min(end_us, self.fleet.now_us + step_us))
                elif key not in self.ends:
                    slots = _slots(site, live)
                    if all(slot.attempts[0] == key for slot in slots):
                        begun_us = self.fleet.now_us + self._load_us(site, live, slots)
                        self.ends[key] = (begun_us, begun_us + live.exec_us)

    def _load_us(self, site: Site, live: LiveAttempt, slots: list[Slot]) -> int:
        """What it loads, and what of the slot's memory goes for it."""
        agent, told = self.fleet.agents[site.site_id], live.attempt.explanation
        assert told is not None, "each attempt says why"
        node_id, size = slots[0].ref.node_id, live.spec.gang_size
        memory_bytes = self.fleet.machine.context.state.models[live.model_id].resident_bytes
        came = False
        for slot in slots:
            where = (str(node_id), slot.index)
            held, shared = agent.warm.setdefault(where, {}), agent.gangs.setdefault(where, {})
            came |= live.model_id not in held if size == 1 else (live.model_id, size) not in shared
            for gone in live.evict:
                held.pop(gone, None)
                for key in [key for key in shared if key[0] == gone and key != (live.model_id, size)]:
                    del shared[key]
            if size == 1:
                held[live.model_id] = memory_bytes
            else:
                shared[live.model_id, size] = memory_bytes
        terms = dict(zip(told.term_names, told.chosen.terms_us, strict=True))
        fetched = 0 if live.model_id in agent.disk else terms["fetch"]
        agent.disk.add(live.model_id)
        return fetched + terms["stage"] + terms["init"] + terms["compile"] if came else 0

    def _end(self, key: AttemptKey) -> None:
        del self.ends[key]
        for name, site in self.sites.items():
            live = site.attempts.get(key)
            if live is None:
                continue
            stopped = live.attempt.state is AttemptState.STOPPING
            if not stopped:
                self.done[key.job_id] = self.fleet.now_us
            self.fleet.end_attempt(name, key, AttemptState.STOPPED if stopped else AttemptState.SUCCEEDED, after_us=0)
            return

    def _report(self) -> None:
        self.reported_us = self.fleet.now_us
        for name, site in self.sites.items():
            progress = []
            for key, live in site.attempts.items():
                if key in self.ends and live.attempt.state is not AttemptState.STOPPING:
                    begun_us, end_us = self.ends[key]
                    steps = live.spec.shape.steps
                    done = (self.fleet.now_us - begun_us) * steps // max(end_us - begun_us, 1)
                    state = AttemptState.RUNNING if done >= 0 else AttemptState.LOADING
                    progress.append(AttemptProgress(key=key, state=state, steps_done=min(max(done, 0), steps - 1)))
            self.fleet.report(name, progress=tuple(progress), after_us=0)


def _slots(site: Site, live: LiveAttempt) -> list[Slot]:
    pool: Pool = site.pools[live.attempt.slot.pool_id]
    return pool.members(live.attempt.slot, live.spec.gang_size)


def of_steps(steps: int, model_id: str = "m", **changes: object) -> JobSpec:
    """A job of so many steps."""
    return spec(model_id, shape=Shape(width=1024, height=1024, steps=steps), **changes)
