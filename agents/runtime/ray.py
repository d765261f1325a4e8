"""The runtime of a real site: slots are actors of a Ray cluster, pipelines are diffusers', results go to the artifact store.

Decides how the runtime's commands become calls of slots, what survives the agent, and what an attempt's end is when its slot
died: the committed manifest counts, not Ray's word. Ray is imported when it is started, never before.

When the site's cluster dies (its raylet, say), this process cannot join another: Ray ends drivers whose cluster is gone. The
runtime then reports one fatal error and falls silent; the agent leaves, and the next one starts a new cluster. So a dead
raylet silences exactly its own site, and what executed there is lost with it.

The slots of a node sit in one placement group, packed strictly onto this host, a bundle each: so any block of them is packed by
construction, whichever gang takes it, and the processes stay warm between gangs of different sizes. Groups made for each gang would
have to be waited for while singles hold the GPUs, and would hold parts of a node for a gang that waits for the rest; which slots are
free is decided before, by the orchestrator. A gang is the processes of a block, joined by a process group of torch for one attempt
(`ray_runs`, `agents.engine.gang`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import IO, assert_never

import structlog

from agents.adapter_files import AdapterFiles
from agents.core.commands import RuntimeCommand
from agents.core.events import (
    AttemptAdvanced,
    AttemptErrored,
    AttemptFinished,
    AttemptHalted,
    CodeChanged,
    RecoveredSlot,
    ReplicaAdapted,
    ReplicaAdaptFailed,
    ReplicaEvicted,
    ReplicaLoaded,
    ReplicaLoadFailed,
    RuntimeStarted,
    SlotLost,
    SlotReady,
)
from agents.core.gangs import block
from agents.core.outputs import (
    AdaptReplica,
    EvictReplica,
    FetchAdapter,
    FetchWeights,
    LoadReplica,
    RenewAttempts,
    RunAttempt,
    StopAttempt,
)
from agents.core.rates import Rates
from agents.engine.errors import EngineError, failure_of
from agents.runtime import ray_driver
from agents.runtime.attempt_files import lock_folder
from agents.runtime.base import Sink
from agents.runtime.execution import ShareEnded
from agents.runtime.hardware import find_devices, survey
from agents.runtime.node_adapters import NodeAdapters
from agents.runtime.node_weights import NodeWeights
from agents.runtime.open_attempts import OpenAttempts
from agents.runtime.ray_config import RayConfig
from agents.runtime.ray_connection import RayConnection
from agents.runtime.ray_runs import Runs
from agents.runtime.ray_slots import SlotGoneError, SlotKeeper
from agents.runtime.slot_state import CodeHeld, LoadMeasured, Notice, SlotOptions, SlotState
from agents.runtime.stores import Stores, stores_of
from agents.weights import WeightsCache
from atoll.model.attempt import FailureKind
from atoll.model.errors import AtollError, StateError
from atoll.model.ids import AttemptKey, SlotRef
from atoll.model.report import Welcome
from atoll.model.site import PoolSpec, SiteRuntime

__all__ = ["RayConfig", "RayRuntime"]

_log = structlog.get_logger(__name__)


class RayRuntime:
    """Implements `agents.runtime.base.Runtime`."""

    kind = SiteRuntime.RAY

    def __init__(self, config: RayConfig, *, on_fatal: Callable[[AtollError], None]) -> None:
        """Looks at the host's devices: HardwareError for one that is of no known type. FieldError for a wrong config.

        `on_fatal` is called on the event loop, once, when this runtime can do nothing any more: the agent must leave.
        """
        self._config = config.check()
        self._on_fatal = on_fatal
        self._hardware = survey(
            find_devices() if config.use_gpus else (),
            cpu_slots=config.cpu_slots,
            slot_memory_bytes=config.slot_memory_bytes,
            cache_bytes=config.cache_bytes,
            usd_micros_per_gpu_hour=config.usd_micros_per_gpu_hour,
        )
        self._stores: Stores | None = None
        self._ray = RayConnection(config)
        self._lock: IO[bytes] | None = None
        self._keepers: dict[SlotRef, SlotKeeper] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = False

    @property
    def pools(self) -> tuple[PoolSpec, ...]:
        """Known from the beginning, and fixed."""
        return self._hardware.pools

    # --- life -----------------------------------------------------------------------------------------------------------------

    async def start(self, sink: Sink) -> RuntimeStarted:
        """See the Protocol. The sink hears nothing before the caller's next await after this returned."""
        self._sink = sink
        self._rates = Rates(sink)
        try:
            await asyncio.to_thread(self._prepare)
            return await self._start()
        except OSError as error:
            await self.close(keep_work=self._ray.found)
            raise StateError(f"site {self._config.site_id} cannot work in {self._config.work_dir}: {error}") from error
        except BaseException:
            await self.close(keep_work=self._ray.found)
            raise

    def _prepare(self) -> None:
        """Take the folders. Blocks."""
        config = self._config
        config.work_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = lock_folder(config.work_dir)
        try:
            self._attempts = OpenAttempts(config.work_dir)
            cache = WeightsCache(config.cache_dir, quota_bytes=config.cache_bytes)
            adapters = AdapterFiles(config.cache_dir, cache_bytes=config.cache_bytes)
        except OSError:
            lock.close()
            raise
        nodes = tuple(pool.node_id(0) for pool in self.pools)
        self._weights = NodeWeights(cache, nodes=nodes, tell=self._sink, rates=self._rates, peer_token=config.peer_token)
        self._adapters = NodeAdapters(adapters, nodes=nodes, tell=self._sink, peer_token=config.peer_token)
        self._runs = Runs(attempts=self._attempts, meetings=config.work_dir / "gangs", tell=self._sink, spawn=self._spawn)
        self._lock = lock

    async def _start(self) -> RuntimeStarted:
        await self._ray.open()
        self._keepers = {keeper.ref: keeper for keeper in self._make_keepers()}
        names = frozenset(keeper.name for keeper in self._keepers.values())
        for name in await asyncio.to_thread(ray_driver.kill_named, self._ray.prefix, keep=names):
            _log.warning("slot_reaped", slot=name)
        for pool in self.pools:
            group, timeout_s = self._ray.group_of(pool.node_id(0)), self._config.start_timeout_s
            await asyncio.to_thread(ray_driver.reserve_seats, group, pool.gpus_per_node, timeout_s)
        begun = await asyncio.gather(*(keeper.begin() for keeper in self._keepers.values()), return_exceptions=True)
        states = {}
        for keeper, state in zip(self._keepers.values(), begun, strict=True):
            if isinstance(state, BaseException):
                raise state
            states[keeper] = state
        started = await self._recover(states)
        for keeper in self._keepers.values():
            self._spawn(keeper.keep())
        self._spawn(self._watch())
        return started

    def _make_keepers(self) -> list[SlotKeeper]:
        config = self._config
        keepers = []
        for plan in self._hardware.slots:
            options = SlotOptions(
                slot=plan.ref,
                work_dir=config.work_dir,
                cache_dir=config.cache_dir,
                cache_bytes=config.cache_bytes,
                share_compiled=config.share_compiled,
                visible_device=plan.visible_device,
                threads=config.threads,
                stuck_grace_s=config.stuck_grace_s,
            )
            keeper = SlotKeeper(
                plan=plan,
                name=f"{self._ray.prefix}{plan.ref.pool_id}-{plan.ref.node_id}-{plan.ref.index}",
                options=options,
                seat=ray_driver.Seat(group=self._ray.group_of(plan.ref.node_id), bundle=plan.ref.index),
                start_timeout_s=config.start_timeout_s,
                hear=self._hear,
                lost=self._slot_lost,
                ready=lambda keeper: self._sink(SlotReady(slot=keeper.ref)),
            )
            keepers.append(keeper)
        return keepers

    async def _recover(self, states: dict[SlotKeeper, SlotState]) -> RuntimeStarted:
        """What an earlier agent left. Nothing is awaited between the last thing that it told and the end of the start."""
        found = await self._runs.recover(states)
        slots = []
        for keeper, state in states.items():
            for model_id, gang_size, digest in state.digests:
                self._weights.loaded(keeper.ref, model_id, digest, gang_size)
            key, gang_size = found.running.get(keeper.ref, (None, 1))
            slots.append(RecoveredSlot(slot=keeper.ref, replicas=state.replicas, running=key, gang_size=gang_size, fresh=state.fresh))
        models, adapters = await self._weights.on_disk(), await self._adapters.on_disk()
        compiled = dict.fromkeys((keeper.ref.node_id, form) for keeper, state in states.items() for form in state.forms)
        self._runs.resume(found)
        return RuntimeStarted(
            slots=tuple(slots), disk_models=models, disk_adapters=adapters, finished=tuple(found.finished),
            compiled=tuple(compiled), shares_compiled=self._config.share_compiled,
        )  # fmt: skip

    def welcome(self, welcome: Welcome) -> None:
        """See the Protocol. StateError for a time scale other than 1; StoreError for a place that cannot be written to."""
        self._stores = stores_of(welcome)

    @property
    def artifacts_url(self) -> str | None:
        """Where results go; None until the orchestrator has said so."""
        return self._stores.artifacts_url if self._stores is not None else None

    async def close(self, *, keep_work: bool) -> None:
        """See the Protocol. Idempotent; also after a failed start and after a fatal error."""
        if self._lock is not None:
            self._runs.close()
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._lock is not None:
            await asyncio.gather(self._weights.close(), self._adapters.close())
        await self._ray.close(keep_work=keep_work)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    async def _watch(self) -> None:
        self._fail(await self._ray.died())

    def _fail(self, error: AtollError) -> None:
        if self._failed:
            return
        self._failed = True
        _log.error("ray_fatal", error=str(error))
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._on_fatal(error)

    # --- commands -------------------------------------------------------------------------------------------------------------

    def perform(self, command: RuntimeCommand) -> None:
        """See the Protocol."""
        if self._failed:
            return
        match command:
            case FetchWeights():
                self._spawn(self._weights.fetch(command, self._origin_url))
            case FetchAdapter():
                self._spawn(self._adapters.fetch(command, self._origin_url))
            case AdaptReplica():
                self._spawn(self._adapt(command))
            case LoadReplica():
                self._spawn(self._load(command))
            case EvictReplica():
                self._spawn(self._call(command.slot, "evict", command.model_id, command.gang_size))
            case RunAttempt():
                self._run(command)
            case StopAttempt():
                self._runs.stop(command.key, self._keeper(command.slot))
            case RenewAttempts():
                for keeper in self._keepers.values():
                    if keeper.running in command.keys:
                        self._spawn(self._call(keeper.ref, "renew", command.keys))
            case _:
                self._spawn(self._weights.perform(command))

    @property
    def _origin_url(self) -> str | None:
        return self._stores.origin_url if self._stores is not None else None

    async def _adapt(self, command: AdaptReplica) -> None:
        with suppress(SlotGoneError):  # its loss is told
            await self._adapters.adapt(command, self._keeper(command.slot).call)

    async def _load(self, command: LoadReplica) -> None:
        model, slot = command.model, command.slot
        try:
            folder = await self._weights.folder_of(model)
            if folder is None:
                raise EngineError(FailureKind.LOAD_FAILED, f"{model.model_id} {model.weights_digest} is not on this disk (any more)")
            await self._keeper(slot).call("load", model, str(folder), command.gang_size)
        except SlotGoneError:
            return  # its loss is told
        except (AtollError, OSError) as error:
            failure = failure_of(error, FailureKind.LOAD_FAILED)
            self._load_failed(ReplicaLoadFailed(slot=slot, model_id=model.model_id, failure=failure, gang_size=command.gang_size))
            if isinstance(error, EngineError):
                await self._weights.drop(model.model_id)

    def _run(self, command: RunAttempt) -> None:
        members = tuple(self._keeper(ref) for ref in block(command.slot, command.spec.gang_size))
        self._runs.begin(command, members, self.artifacts_url)

    async def _call(self, slot: SlotRef, method: str, *arguments: object) -> None:
        try:
            await self._keeper(slot).call(method, *arguments)
        except SlotGoneError as error:
            _log.info("slot_call_dropped", method=method, error=str(error))

    def _keeper(self, slot: SlotRef) -> SlotKeeper:
        keeper = self._keepers.get(slot)
        if keeper is None:
            raise StateError(f"this site has no slot {slot.index} on node {slot.node_id} of pool {slot.pool_id}")
        return keeper

    async def logs(self, key: AttemptKey, lines: int) -> tuple[str, ...]:
        """See the Protocol. FieldError for a key that is none, or more lines than `attempt_files.LINES_MAX`."""
        return await asyncio.to_thread(self._attempts.files.tail, key, lines)

    # --- what slots say -------------------------------------------------------------------------------------------------------

    def _hear(self, keeper: SlotKeeper, notice: Notice) -> None:
        match notice:
            case LoadMeasured():
                self._weights.loaded(keeper.ref, notice.model_id, notice.weights_digest, notice.gang_size)
                self._rates.measured(disk=notice.disk_bytes_per_s, h2d=notice.h2d_bytes_per_s)
                return
            case CodeHeld():
                self._sink(CodeChanged(node_id=keeper.ref.node_id, forms=notice.forms))
                return
            case ReplicaLoadFailed():
                self._load_failed(notice)
                return
            case ReplicaEvicted():
                self._weights.unloaded(keeper.ref, notice.model_id, notice.gang_size)
            case AttemptFinished() | AttemptErrored() | AttemptHalted() | ShareEnded():
                self._runs.ended(keeper, notice)
                return
            case ReplicaAdaptFailed():
                self._spawn(self._adapters.adapt_failed(notice))
                return
            case ReplicaAdapted():
                self._adapters.adapted(keeper.ref)
            case ReplicaLoaded() | AttemptAdvanced():
                pass
            case _:
                assert_never(notice)
        self._sink(notice)

    def _load_failed(self, event: ReplicaLoadFailed) -> None:
        self._weights.load_failed(event.model_id)
        self._sink(event)
        if event.failure.kind is FailureKind.BAD_WEIGHTS:
            # Verified when it was fetched, damaged since: the next fetch brings it anew.
            self._spawn(self._weights.drop(event.model_id))

    async def _slot_lost(self, keeper: SlotKeeper, reason: str) -> None:
        if not self._ray.lives():
            await asyncio.Event().wait()  # the watch says it for all slots at once, and ends this task
        _log.warning("slot_lost", slot=keeper.name, attempt=str(keeper.running) if keeper.running else None, reason=reason)
        await self._runs.lost(keeper)
        self._weights.unloaded(keeper.ref)
        self._sink(SlotLost(slot=keeper.ref, message=reason))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("ray_runtime_bug", exc_info=error)
            self._fail(StateError(f"the Ray runtime failed: {type(error).__name__}: {error}"))
