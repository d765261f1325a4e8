"""After healing: everything that was promised comes true, in bounded virtual time, and nothing stays reserved.

Decides what liveness means. It looks at the store and at the leader's views from outside, second by second.
"""

from __future__ import annotations

from typing import Final

from agents.core.gangs import block
from atoll.model.attempt import ENDED, AttemptState
from atoll.model.ids import JobId, SlotRef
from atoll.model.job import Job, JobState
from atoll.model.site import SiteAdmin, SiteConnection, SiteSpec
from sims.checks import History, Violation
from sims.clients import Clients
from sims.orchestrator import Orchestrators
from sims.sites import SimSite
from sims.store import SimStore
from sims.world import SECOND_US, World

# Reconnecting (2 s of back-off, 5 s of a lost welcome) and the power-on of a lost site come first.
_GRACE_US: Final = 45 * SECOND_US
# A job that fits into an idle slot is placed within this. It may wait by choice for a busy replica while that is predicted to end before
# a cold start would, and is cured of it at the latest when that prediction has doubled past it: 34 GB at 0.5 GB/s beside another fetch
# are 136 s of cold start, twice that is the bound.
_PLACED_WITHIN_US: Final = 280 * SECOND_US
# Longest back-off after failures (300 s without a site), then the longest work of this world, then room for the queue.
_ENDED_WITHIN_US: Final = 1_800 * SECOND_US
# What operators still had to take back is taken back within this, too.
_SETTLED_WITHIN_US: Final = 90 * SECOND_US


class Liveness:
    """The second phase of a run."""

    def __init__(
        self,
        *,
        world: World,
        store: SimStore,
        history: History,
        orchestrators: Orchestrators,
        sites: tuple[SimSite, ...],
        clients: Clients,
    ) -> None:
        self._world = world
        self._store = store
        self._history = history
        self._orchestrators = orchestrators
        self._sites = sites
        self._clients = clients
        self._idle_since: dict[JobId, int] = {}

    def check(self) -> None:
        """Raises Violation when a promise is not kept in time."""
        healed_us = self._world.now_us
        while self._clients.open_orders or self._history.unfinished():
            self._world.run(self._world.now_us + SECOND_US)
            if self._world.now_us > healed_us + _GRACE_US:
                self._check_idle()
            if self._world.now_us > healed_us + _ENDED_WITHIN_US:
                break
        if self._clients.open_orders:
            raise Violation(f"{self._clients.open_orders} submissions were never answered")
        self._history.check_end()
        self._settle(max(self._world.now_us, healed_us + _GRACE_US) + _SETTLED_WITHIN_US)

    def _settle(self, until_us: int) -> None:
        problem: str | None = "not looked at yet"
        while problem is not None and self._world.now_us < until_us:
            self._world.run(self._world.now_us + SECOND_US)
            problem = self._unsettled()
        if problem is not None:
            raise Violation(f"when all work had ended: {problem}")

    def _unsettled(self) -> str | None:
        leader = self._orchestrators.leader()
        if leader is None:
            return "no orchestrator"
        gone = {site.spec.site_id for site in self._sites if site.gone}
        for view in leader.machine.site_views():
            site_id = view.spec.site_id
            if site_id in gone:
                continue
            if view.connection is not SiteConnection.CONNECTED or view.admin is not SiteAdmin.OPEN:
                return f"{site_id} is {view.connection} and {view.admin}"
            if view.live_attempts or any(pool.slots_used or pool.attempts for pool in view.pools):
                return f"{site_id} still holds {view.live_attempts} attempts: {view.pools}"
        for site in self._sites:
            if site.disk.outbox:
                return f"{site.spec.site_id} keeps events {sorted(site.disk.outbox)}"
        return None

    # --- a job that fits is placed ------------------------------------------------------------------------------------------------

    def _check_idle(self) -> None:
        busy, closed = self._busy_slots(), self._closed_pools()
        for job_id in self._history.unfinished():
            job = self._store.jobs[job_id]
            place = self._idle_place(job, busy, closed) if job.state is JobState.QUEUED else None
            if place is None:
                self._idle_since.pop(job_id, None)
                continue
            since_us = self._idle_since.setdefault(job_id, self._world.now_us)
            if self._world.now_us - since_us > _PLACED_WITHIN_US:
                raise Violation(f"job {job_id} of {job.spec.model_id} is not placed, though it fits into {place}, which is idle")

    def _busy_slots(self) -> set[tuple[str, SlotRef]]:
        return {
            (attempt.site_id, slot)
            for job in self._store.jobs.values()
            for attempt in job.attempts
            if attempt.state not in ENDED
            for slot in block(attempt.slot, job.spec.gang_size)
        }

    def _closed_pools(self) -> set[tuple[str, str]]:
        """Pools that the leader lets nobody into, because attempts kept failing there. How long is bounded: all work ends in time."""
        leader = self._orchestrators.leader()
        views = leader.machine.site_views() if leader is not None else ()
        return {(view.spec.site_id, pool.pool_id) for view in views for pool in view.pools if pool.closed_until_us}

    def _idle_place(self, job: Job, busy: set[tuple[str, SlotRef]], closed: set[tuple[str, str]]) -> str | None:
        spec = job.spec
        model = self._store.models[spec.model_id]
        adapters_bytes = sum(self._store.adapters[use.adapter_id].weights_bytes for use in spec.adapters)
        avoided = {item.site_id for item in job.attempts if item.state in ENDED - {AttemptState.STOPPED}}
        for site in self._sites:
            if site.gone or site.spec.site_id in avoided:
                continue
            if spec.constraints.sites and site.spec.site_id not in spec.constraints.sites:
                continue
            for pool in site.spec.pools:
                if (site.spec.site_id, pool.pool_id) in closed:
                    continue
                if spec.constraints.gpu_types and pool.gpu_type not in spec.constraints.gpu_types:
                    continue
                if model.resident_bytes + 2 * model.activation_bytes + adapters_bytes > pool.gpu_memory_bytes:
                    continue
                if model.weights_bytes > pool.node.disk_cache_bytes // 2:
                    continue
                for slot in _slots(site.spec, pool.pool_id):
                    fits = slot.index % spec.gang_size == 0 and slot.index + spec.gang_size <= pool.gpus_per_node
                    if fits and not any((site.spec.site_id, member) in busy for member in block(slot, spec.gang_size)):
                        return f"{site.spec.site_id} {slot}"
        return None


def _slots(site: SiteSpec, pool_id: str) -> list[SlotRef]:
    return [
        SlotRef(pool_id=pool.pool_id, node_id=pool.node_id(index), index=gpu)
        for pool in site.pools
        if pool.pool_id == pool_id
        for index in range(pool.nodes)
        for gpu in range(pool.gpus_per_node)
    ]
