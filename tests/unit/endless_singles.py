"""A fleet that is never out of single jobs, in virtual time: attempts take what was predicted times a factor, stops a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from atoll.model.attempt import AttemptState
from atoll.model.ids import AttemptKey, JobId, SiteId
from atoll.model.job import JobSpec, JobState, Priority
from atoll.model.replica import ReplicaState
from atoll.model.shape import Shape
from orchestrator.core.machine import Machine
from orchestrator.core.placement.policy import Policy
from orchestrator.core.state import LiveAttempt, Slot
from tests.unit.fleet_of_machines import BATCH, SECOND, Fleet, model, pool, site, spec


@dataclass
class Endless:
    """Ends the attempts of one site as their time comes, and submits as many singles as were begun. `single`: the next one's spec;
    `factor_milli`: what an attempt takes of its prediction."""

    fleet: Fleet
    single: Callable[[int], JobSpec]
    backlog: int = 12
    factor_milli: Callable[[AttemptKey], int] = lambda _: 1_000
    ends: dict[AttemptKey, int] = field(default_factory=dict)
    began_us: dict[JobId, int] = field(default_factory=dict)
    longest_us: int = 0
    idle_since: dict[tuple[str, str, int], int] = field(default_factory=dict)
    idle_longest_us: int = 0
    singles: int = 0
    name: SiteId = SiteId("a")

    @property
    def machine(self) -> Machine:
        """The core."""
        return self.fleet.machine

    def slots(self) -> list[Slot]:
        """All slots of the site."""
        pools = self.machine.context.state.sites[self.name].pools.values()
        return [slot for one in pools for node in one.nodes for slot in node.slots]

    def refill(self) -> None:
        """As many singles wait as should."""
        waiting = sum(1 for job in self.fleet.jobs.values() if job.state is JobState.QUEUED and job.spec.gang_size == 1)
        for _ in range(self.backlog - waiting):
            self.fleet.submit(self.single(self.singles))
            self.singles += 1

    def submit(self, one: JobSpec) -> JobId:
        """A job beside the singles."""
        before = set(self.machine.context.state.jobs)
        self.fleet.submit(one)
        self._look()
        (job_id,) = set(self.machine.context.state.jobs) - before
        return job_id

    def has_begun(self, job_id: JobId) -> bool:
        """Whether a job has been bound."""
        return bool(self.fleet.jobs[job_id].attempts)

    def _look(self) -> None:
        """Heads of slots begin to execute; who is told to stop does so at the end of a step."""
        lives = self.machine.context.state.sites[self.name].attempts
        for slot in self.slots():
            if slot.attempts and slot.attempts[0] not in self.ends:
                live = lives[slot.attempts[0]]
                self._begin(live)
            where = (slot.ref.pool_id, slot.ref.node_id, slot.index)
            if slot.claimed_until_us and not slot.attempts:
                self.idle_since.setdefault(where, self.fleet.now_us)
                self.idle_longest_us = max(self.idle_longest_us, self.fleet.now_us - self.idle_since[where])
            else:
                self.idle_since.pop(where, None)
        for key, live in lives.items():
            if live.attempt.state is AttemptState.STOPPING:
                step_us = live.exec_us // live.spec.shape.steps
                self.ends[key] = min(self.ends.get(key, self.fleet.now_us), self.fleet.now_us + step_us)

    def _begin(self, live: LiveAttempt) -> None:
        slot = live.attempt.slot
        held = next(one for one in self.slots() if one.ref == slot).replicas[live.replica]
        load_us = live.attempt.predicted_us - live.exec_us if held.state is ReplicaState.ABSENT else 0
        took_us = (live.exec_us + load_us) * self.factor_milli(live.key) // 1_000
        self.longest_us = max(self.longest_us, took_us)
        self.ends[live.key] = self.fleet.now_us + took_us
        self.began_us[live.key.job_id] = self.fleet.now_us

    def advance(self) -> None:
        """To the next end, or a second on."""
        self._look()
        lives = self.machine.context.state.sites[self.name].attempts
        due = sorted((at_us, str(key), key) for key, at_us in self.ends.items() if key in lives)
        until_us = min(due[0][0] if due else self.fleet.now_us + SECOND, self.fleet.now_us + SECOND)
        self.fleet.wait(max(until_us - self.fleet.now_us, 1) / SECOND)
        for at_us, _, key in due:
            live = lives.get(key)
            if at_us <= self.fleet.now_us and live is not None:
                stopped = live.attempt.state is AttemptState.STOPPING
                self.fleet.end_attempt(self.name, key, AttemptState.STOPPED if stopped else AttemptState.SUCCEEDED, after_us=0)
                self._look()
        self._tell()
        self.refill()
        self._look()

    def _tell(self) -> None:
        """The agent reports, with what executes."""
        self.fleet.report(self.name, after_us=0)
        for key, live in list(self.machine.context.state.sites[self.name].attempts.items()):
            if key in self.ends and live.attempt.state is AttemptState.LEASED:
                self.fleet.running(self.name, key)

    def until_begun(self, job_id: JobId, within_us: int) -> int:
        """How long a job waited; an assertion if it did for longer than this."""
        from_us = self.fleet.jobs[job_id].accepted_us
        while not self.has_begun(job_id):
            assert self.fleet.now_us - from_us <= within_us, f"{job_id} waits for more than {within_us / SECOND} s"
            self.advance()
        return self.fleet.jobs[job_id].attempts[-1].leased_us - from_us


def of_steps(steps: int, model_id: str = "m", **changes: object) -> JobSpec:
    """A job of so many steps."""
    return spec(model_id, shape=Shape(width=1024, height=1024, steps=steps), **changes)


def crowded(
    *, gpus: int = 8, nodes: int = 1, priority: Priority = BATCH, steps: int = 40, policy: Policy | None = None, backlog: int = 12
) -> Endless:
    """A pool that is full of singles, with more of them waiting."""
    fleet = Fleet(site("a", pool("p", gpus=gpus, nodes=nodes)), models=(model("m"),), policy=policy)
    for node in range(nodes):
        for gpu in range(gpus):
            fleet.warm("a", f"p-{node}", gpu, "m")
    fleet.agents[SiteId("a")].disk.add("m")
    fleet.report("a")
    endless = Endless(fleet, lambda number: of_steps(steps, prompt=f"s{number}", priority=priority), backlog=backlog)
    for _ in range(3 * gpus * nodes):
        if len(endless.fleet.machine.context.queue) >= backlog:
            break
        endless.refill()
    for _ in range(gpus):
        endless.advance()
    return endless
