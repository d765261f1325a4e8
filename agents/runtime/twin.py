"""Runtime `twin`: a rehearsal of a site. It takes the time that physics and the hidden truth of its world give, and makes nothing.

Decides when simulated fetches, loads and executions end. Every result is marked `simulated` and says so in its one artifact, a JSON
text: never a picture. Nothing survives the process. Must not know the orchestrator.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import Final, assert_never

from agents.core.events import (
    AgentEvent,
    AttemptAdvanced,
    AttemptErrored,
    AttemptFinished,
    AttemptHalted,
    FetchFailed,
    NodeMeasured,
    RatesMeasured,
    RecoveredSlot,
    ReplicaEvicted,
    ReplicaLoaded,
    ReplicaLoadFailed,
    RuntimeStarted,
    WeightsDeleted,
    WeightsFetched,
)
from agents.core.outputs import EvictReplica, FetchWeights, LoadReplica, RunAttempt
from agents.runtime.base import RuntimeCommand, Sink
from agents.runtime.fair_link import FairLink
from atoll.model.attempt import Artifact, AttemptState, Failure, FailureKind, PhaseTimes, ResultManifest
from atoll.model.errors import FieldError
from atoll.model.gpu import GpuType
from atoll.model.ids import AttemptKey, GpuTypeId, ModelId, NodeId, SlotRef
from atoll.model.report import RateFacts, Welcome
from atoll.model.site import PoolSpec, SiteRuntime, SiteSpec
from atoll.physics.coldstart import transfer_us
from atoll.physics.hidden import HiddenWorld
from atoll.physics.output import output_bytes

# Dropping references to a pipeline and emptying the allocator's cache.
_EVICT_US: Final = 200_000
# Steps are told at most this often, in real time and per attempt: 10,000 GPUs must not drown one process in progress.
_MARKS_MAX: Final = 8
_MARK_MIN_S: Final = 1.0
# Attempts whose log can still be asked for.
_LOGS_MAX: Final = 1_000
# Renewals are looked at this often.
_EXPIRY_CHECK_S: Final = 5.0


@dataclass(slots=True, kw_only=True)
class _Run:
    command: RunAttempt
    run_us: int
    upload_us: int
    began_s: float
    renewed_s: float
    timers: list[asyncio.TimerHandle] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class _Slot:
    memory_bytes: int
    replicas: dict[ModelId, int] = field(default_factory=dict)
    loads: int = 0


@dataclass(slots=True, kw_only=True)
class _Node:
    pool: PoolSpec
    gpu: GpuType
    disk: OrderedDict[ModelId, tuple[int, str]] = field(default_factory=OrderedDict)  # bytes and digest, least recently used first
    incoming: dict[ModelId, int] = field(default_factory=dict)

    @property
    def disk_free_bytes(self) -> int:
        held = sum(size for size, _ in self.disk.values()) + sum(self.incoming.values())
        return max(self.pool.node.disk_cache_bytes - held, 0)


class TwinRuntime:
    """The twin of one site. `keep_results` stores each artifact where results of real sites go; else its manifest is all there is."""

    kind = SiteRuntime.TWIN

    def __init__(
        self,
        spec: SiteSpec,
        *,
        gpus: Mapping[GpuTypeId, GpuType],
        hidden: HiddenWorld,
        keep_result: Callable[[ResultManifest, bytes], asyncio.Future[ResultManifest]] | None = None,
    ) -> None:
        """FieldError when a pool's GPU type is not in the catalogue."""
        self._site_id = spec.site_id
        self._spec = spec
        self._hidden = hidden
        self._keep_result = keep_result
        self._sink: Sink = _nobody
        self._scale_milli = 1_000
        self._nodes: dict[NodeId, _Node] = {}
        self._slots: dict[SlotRef, _Slot] = {}
        self._runs: dict[AttemptKey, _Run] = {}
        self._link = FairLink()
        self._link_timer: asyncio.TimerHandle | None = None
        self._expiry_timer: asyncio.TimerHandle | None = None
        self._rates = RateFacts()
        self._fetches = 0
        self._logs: OrderedDict[AttemptKey, list[str]] = OrderedDict()
        self._closed = False
        pools = []
        for pool in spec.pools:
            gpu = gpus.get(pool.gpu_type)
            if gpu is None:
                raise FieldError(f"pool {pool.pool_id}.gpu_type", pool.gpu_type, f"a type of the catalogue: {', '.join(sorted(gpus))}")
            pools.append(replace(pool, gpu_memory_bytes=pool.gpu_memory_bytes or gpu.memory_bytes))
            self._build(pools[-1], gpu)
        self._pools = tuple(pools)

    def _build(self, pool: PoolSpec, gpu: GpuType) -> None:
        for index in range(pool.nodes):
            node_id = pool.node_id(index)
            self._nodes[node_id] = _Node(pool=pool, gpu=gpu)
            for number in range(pool.gpus_per_node):
                ref = SlotRef(pool_id=pool.pool_id, node_id=node_id, index=number)
                self._slots[ref] = _Slot(memory_bytes=pool.gpu_memory_bytes)

    # --- Runtime --------------------------------------------------------------------------------------------------------------

    @property
    def pools(self) -> tuple[PoolSpec, ...]:
        """The declared pools."""
        return self._pools

    async def start(self, sink: Sink) -> RuntimeStarted:
        """Empty slots, empty disks."""
        self._sink = sink
        return RuntimeStarted(slots=tuple(RecoveredSlot(slot=ref) for ref in self._slots))

    def welcome(self, welcome: Welcome) -> None:
        """From now on waits are as long as this scale says."""
        self._scale_milli = welcome.time_scale_milli

    def perform(self, command: RuntimeCommand) -> None:  # noqa: C901 - one case per command and nothing else
        """Begin a command."""
        match command:
            case _ if self._closed:
                return
            case FetchWeights():
                self._fetch(self._nodes[command.node_id], command)
            case LoadReplica():
                self._load(self._slots[command.slot], command)
            case EvictReplica():
                self._after(_EVICT_US, partial(self._evicted, command))
            case RunAttempt():
                self._run(command)
            case _ if isinstance(command, EvictReplica):
                return
            case _:
                self._perform_rest(command)

    async def logs(self, key: AttemptKey, lines: int) -> tuple[str, ...]:
        """What a twin has to say of an attempt."""
        return tuple(self._logs.get(key, ())[-lines:])

    async def close(self, *, keep_work: bool) -> None:
        """Everything ends: a twin's work cannot outlive it."""
        del keep_work
        self._closed = True
        self._sink = _nobody
        for run in self._runs.values():
            for timer in run.timers:
                timer.cancel()
        for timer in (self._link_timer, self._expiry_timer):
            if timer is not None:
                timer.cancel()
