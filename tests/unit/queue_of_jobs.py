"""A queue alone, with jobs that are only names: for tests of who goes first."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType

from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId, JobId, TenantId
from atoll.model.job import Priority
from orchestrator.core.fairness import _REFERENCE_FLOPS
from orchestrator.core.placement.classes import ClassKey, class_of
from orchestrator.core.placement.policy import Policy
from orchestrator.core.queue import JobClass, Queue
from tests.unit.fleet_of_machines import SECOND, spec

# One second of it is one normalised second.
REFERENCE = GpuType(
    gpu_type=GpuTypeId("ref"), vendor="t", arch="t", memory_bytes=1, memory_bytes_per_s=1, fp32_flops=1,
    fp16_flops=_REFERENCE_FLOPS, h2d_bytes_per_s=1,
)  # fmt: skip


@dataclass(slots=True)
class Line:
    """A queue in front of one pool: jobs are named by tenant and number, and taken one at a time."""

    policy: Policy = field(default_factory=Policy)
    queue: Queue = field(init=False)
    seq: int = 0
    now_us: int = SECOND
    tenant_of: dict[JobId, str] = field(default_factory=dict)
    accepted: dict[JobId, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.queue = Queue(self.policy)
        self.queue.told_time(self.now_us)

    def submit(self, tenant: str, model: str = "m", priority: Priority = Priority.NORMAL) -> JobId:
        """A job of this tenant waits."""
        self.seq += 1
        job_id = JobId(f"{tenant}-{self.seq}")
        self.tenant_of[job_id], self.accepted[job_id] = tenant, self.seq
        self.queue.add(class_of(spec(model, priority=priority)), self.seq, job_id, TenantId(tenant), self.now_us)
        return job_id

    def take(self, exec_us: Callable[[str], int] = lambda _: SECOND) -> JobId | None:
        """Bind the job whose turn it is; its charge stays open."""
        known = self.queue.first_ready()
        if known is None:
            return None
        job_id = known.head[1]
        tenant = self.tenant_of[job_id]
        self.queue.charge(TenantId(tenant), exec_us(tenant), REFERENCE, 1)
        self.queue.discard(job_id)
        self.queue.bound(known)
        return job_id

    def rest_all(self, pool: int = 0) -> None:
        """Every ready class finds the pool full."""
        for key in self.queue.in_order():
            self.queue.rest(key, self.now_us + 10**15, pool)

    def free_slot(self, pool: int = 0) -> JobId | None:
        """A slot of the pool comes free: who takes it. All others rest on."""
        self.queue.wake_for_slot(pool)
        job_id = self.take()
        self.rest_all(pool)
        return job_id

    def pass_time(self, seconds: int) -> None:
        """Fleet time goes on."""
        self.now_us += seconds * SECOND
        self.queue.told_time(self.now_us)

    def key(self, model: str = "m", priority: Priority = Priority.NORMAL) -> ClassKey:
        """The class of a model's jobs."""
        return class_of(spec(model, priority=priority))

    def class_of(self, model: str = "m", priority: Priority = Priority.NORMAL) -> JobClass:
        """The class as it waits."""
        return self.queue.classes[self.key(model, priority)]


def calls_of(work: Callable[[], object]) -> int:
    """How many functions were called, Python's and C's: what work costs, on any machine."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls
