"""The runtime of a real site: slots are actors of a Ray cluster, pipelines are diffusers', results go to the artifact store.

Decides how the runtime's commands become calls of slots, what survives the agent, and what an attempt's end is when its slot
died: the committed manifest counts, not Ray's word. Ray is imported when it is started, never before.

When the site's cluster dies (its raylet, say), this process cannot join another: Ray ends drivers whose cluster is gone. The
runtime then reports one fatal error and falls silent; the agent leaves, and the next one starts a new cluster. So a dead
raylet silences exactly its own site, and what executed there is lost with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import IO, Final, assert_never

import structlog

from agents.adapter_files import AdapterFiles
from agents.core.events import (
    AttemptAdvanced,
    AttemptErrored,
    AttemptFinished,
    AttemptHalted,
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
from agents.engine.errors import EngineError, failure_of
from agents.runtime import ray_driver
from agents.runtime.attempt_files import lock_folder
from agents.runtime.base import RuntimeCommand, Sink
from agents.runtime.execution import NO_TIMES
from agents.runtime.hardware import find_devices, survey
from agents.runtime.node_adapters import NodeAdapters
from agents.runtime.node_weights import NodeWeights
from agents.runtime.open_attempts import OpenAttempts
from agents.runtime.rates import Rates
from agents.runtime.ray_config import RayConfig
from agents.runtime.ray_connection import RayConnection
from agents.runtime.ray_slots import SlotGoneError, SlotKeeper
from agents.runtime.slot_actor import LoadMeasured, Notice, SlotOptions, SlotState
from agents.runtime.stores import Stores, stores_of
from agents.weights import WeightsCache
from atoll.model.attempt import FailureKind
from atoll.model.errors import AtollError, StateError
from atoll.model.ids import AttemptKey, SlotRef
from atoll.model.report import Welcome
from atoll.model.site import PoolSpec, SiteRuntime

__all__ = ["RayConfig", "RayRuntime"]

_log = structlog.get_logger(__name__)

# The end of an attempt is on the agent's disk within milliseconds of being told; until surely then, it can be told again.
_SETTLE_S: Final = 5.0


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
        self._timers: set[asyncio.TimerHandle] = set()
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
        self._weights = NodeWeights(cache, nodes=nodes, tell=self._sink, rates=self._rates)
        self._adapters = NodeAdapters(adapters, nodes=nodes, tell=self._sink)
        self._lock = lock

    async def _start(self) -> RuntimeStarted:
        await self._ray.open()
        self._keepers = {keeper.ref: keeper for keeper in self._make_keepers()}
        names = frozenset(keeper.name for keeper in self._keepers.values())
        for name in await asyncio.to_thread(ray_driver.kill_named, self._ray.prefix, keep=names):
            _log.warning("slot_reaped", slot=name)
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
                visible_device=plan.visible_device,
                threads=config.threads,
                stuck_grace_s=config.stuck_grace_s,
            )
            keeper = SlotKeeper(
                plan=plan,
                name=f"{self._ray.prefix}{plan.ref.pool_id}-{plan.ref.node_id}-{plan.ref.index}",
                options=options,
                start_timeout_s=config.start_timeout_s,
                hear=self._hear,
                lost=self._slot_lost,
                ready=lambda keeper: self._sink(SlotReady(slot=keeper.ref)),
            )
            keepers.append(keeper)
        return keepers

    async def _recover(self, states: dict[SlotKeeper, SlotState]) -> RuntimeStarted:
        """What an earlier agent left: attempts that execute or ended since, by their slots; and those of slots that are gone."""
        loop = asyncio.get_running_loop()
        slots, finished, told = [], [], set()
        for keeper, state in states.items():
            running, end = state.running, state.ended
            match end:
                case AttemptFinished():
                    finished.append(end.manifest)
                    self._settle_later(end.key, keeper)
                case AttemptErrored() | AttemptHalted():
                    # The form of RuntimeStarted has no place for a bad end: it executes, and a moment later it ended so.
                    running = keeper.running = end.key
                    loop.call_soon(self._hear, keeper, end)
                case None:
                    pass
                case _:
                    assert_never(end)
            for model_id, digest in state.digests:
                self._weights.loaded(keeper.ref, model_id, digest)
            slots.append(RecoveredSlot(slot=keeper.ref, replicas=state.replicas, running=running))
            told |= {key for key in (running, end.key if end is not None else None) if key is not None}
        for key in self._attempts.open_keys() - told:
            # Its slot is gone: committed, or lost with it.
            result = await self._attempts.committed(key)
            if result is not None:
                finished.append(result.manifest)
            self._settle_later(key, None)
        models, adapters = await self._weights.on_disk(), await self._adapters.on_disk()
        return RuntimeStarted(slots=tuple(slots), disk_models=models, disk_adapters=adapters, finished=tuple(finished))

    def welcome(self, welcome: Welcome) -> None:
        """See the Protocol. StateError for a time scale other than 1; StoreError for a place that cannot be written to."""
        self._stores = stores_of(welcome)

    @property
    def artifacts_url(self) -> str | None:
        """Where results go; None until the orchestrator has said so."""
        return self._stores.artifacts_url if self._stores is not None else None

    async def close(self, *, keep_work: bool) -> None:
        """See the Protocol. Idempotent; also after a failed start and after a fatal error."""
        for timer in self._timers:
            timer.cancel()
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
                self._spawn(self._call(command.slot, "evict", command.model_id))
            case RunAttempt():
                self._spawn(self._run(command))
            case StopAttempt():
                self._spawn(self._call(command.slot, "stop", command.key))
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
            await self._keeper(slot).call("load", model, str(folder))
        except SlotGoneError:
            return  # its loss is told
        except (AtollError, OSError) as error:
            self._load_failed(ReplicaLoadFailed(slot=slot, model_id=model.model_id, failure=failure_of(error, FailureKind.LOAD_FAILED)))
            if isinstance(error, EngineError):
                await self._weights.drop(model.model_id)

    async def _run(self, command: RunAttempt) -> None:
        keeper, key = self._keeper(command.slot), command.key
        try:
            if self._stores is None:
                raise StateError("no orchestrator has told where results go")
            self._attempts.open(key, self._stores.artifacts_url)
            keeper.running = key
            await keeper.call("run", command, self._stores.artifacts_url)
        except SlotGoneError:
            self._settle_later(key, None)  # its loss is told
        except (AtollError, OSError) as error:
            failure = failure_of(error, FailureKind.INTERNAL)
            self._hear(keeper, AttemptErrored(key=key, failure=failure, times=NO_TIMES))

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
                self._weights.loaded(keeper.ref, notice.model_id, notice.weights_digest)
                self._rates.measured(disk=notice.disk_bytes_per_s, h2d=notice.h2d_bytes_per_s)
                return
            case ReplicaLoadFailed():
                self._load_failed(notice)
                return
            case ReplicaEvicted():
                self._weights.unloaded(keeper.ref, notice.model_id)
            case AttemptFinished() | AttemptErrored() | AttemptHalted():
                if keeper.running == notice.key:
                    keeper.running = None
                self._settle_later(notice.key, keeper)
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
        key, keeper.running = keeper.running, None
        _log.warning("slot_lost", slot=keeper.name, attempt=str(key) if key else None, reason=reason)
        result = await self._attempts.committed(key) if key is not None else None
        if key is not None:
            if result is not None:
                self._sink(AttemptFinished(key=key, manifest=result.manifest, times=result.times))
            self._settle_later(key, None)
        self._weights.unloaded(keeper.ref)
        self._sink(SlotLost(slot=keeper.ref, message=reason))

    def _settle_later(self, key: AttemptKey, keeper: SlotKeeper | None) -> None:
        """The end of an attempt was told; once the agent has surely kept it, nobody needs to remember it for him."""

        def settle() -> None:
            self._timers.discard(timer)
            self._attempts.settle(key)
            if keeper is not None:
                self._spawn(self._call(keeper.ref, "forget", key))

        timer = asyncio.get_running_loop().call_later(_SETTLE_S, settle)
        self._timers.add(timer)

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
