"""The process of one slot: a warm interpreter that loads and unloads pipelines and executes one attempt at a time.

Decides how an attempt is executed, told and ended where it runs, also when no agent watches: its right to run is counted
here, on this process's clock. What happens is kept as numbered notices until the agent has heard of them. Must not know
Ray (Ray makes an actor of it), why anything is wanted, or who else is in the cluster.

The agent listens by asking `poll` again and again; each answer comes as soon as there is something to say. A stream would
be as quick, but its consumer's death would leave it running here, and its position would be lost; a question that carries
the last number heard can be asked by a restarted agent, and an unanswered one shows a process that hangs.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import structlog

from agents.compiled_files import CodeFiles
from agents.core.events import (
    AttemptAdvanced,
    AttemptErrored,
    AttemptHalted,
    ReplicaAdapted,
    ReplicaAdaptFailed,
    ReplicaEvicted,
    ReplicaLoaded,
    ReplicaLoadFailed,
)
from agents.core.outputs import AdaptReplica, RunAttempt
from agents.core.state import ReplicaKey
from agents.engine.compiled import check_compiler, environment_of
from agents.engine.errors import BadWeightsError, failure_of
from agents.engine.gang import GangPlace
from agents.engine.pipeline import Engine, LoadedPipeline
from agents.engine.request import AdapterFile, LoadReport
from agents.runtime.execution import NO_TIMES, Execution, Halt, MemberEnd, refusal_of
from agents.runtime.slot_code import SlotCode
from agents.runtime.slot_state import ACTOR_VERSION, CodeHeld, LoadMeasured, Notice, SlotOptions, SlotState
from atoll.model.attempt import AttemptState, Failure, FailureKind
from atoll.model.errors import StateError
from atoll.model.ids import AttemptKey, ModelId, SlotRef
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import ReplicaFact, ReplicaState

P = ParamSpec("P")
T = TypeVar("T")

_log = structlog.get_logger(__name__)
_EXIT_STUCK: Final = 70
_STOPPED_EARLY_MAX: Final = 64


@dataclass(slots=True, kw_only=True)
class _Running:
    """The attempt that executes. `deadline_s` is of this process's monotonic clock."""

    order: RunAttempt
    deadline_s: float
    halt: Halt = field(default_factory=Halt)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def key(self) -> AttemptKey:
        return self.order.key

    @property
    def replica(self) -> ReplicaKey:
        return ReplicaKey(model_id=self.order.model.model_id, gang_size=self.order.spec.gang_size)

    def renew(self) -> None:
        self.deadline_s = time.monotonic() + self.order.stop_after_ms / 1000


class SlotActor:
    """All methods are called on one event loop; torch works in one thread beside it."""

    def __init__(self, options: SlotOptions) -> None:
        """Imports torch and diffusers: seconds, once, so that no job waits for them."""
        self._options = options
        # By position CUDA would count what Ray and the driver hide; the UUID is the same for all.
        os.environ["CUDA_VISIBLE_DEVICES"] = options.visible_device
        self._device = "cuda:0" if options.visible_device else "cpu"
        self._engine = Engine(threads=options.threads)
        import diffusers
        import transformers

        self._warm = (diffusers.DiffusionPipeline, transformers.PreTrainedModel)  # both packages import lazily: touch them
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="slot")
        files = CodeFiles(options.cache_dir, cache_bytes=options.cache_bytes)
        self._code = SlotCode(files, environment_of(self._device), shared=options.share_compiled)
        self._replicas: dict[ReplicaKey, LoadedPipeline] = {}
        self._loading: set[ReplicaKey] = set()
        self._running: _Running | None = None
        self._ended: MemberEnd | None = None
        self._gang_size = 1  # of the attempt that runs, or ended
        self._fresh = True  # nothing was generated yet
        self._seq = 0
        self._notices: list[tuple[int, Notice]] = []
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()  # one thing at a time, in the order of the calls
        self._tasks: set[asyncio.Task[None]] = set()
        # Calls of one agent may overtake each other: what is to be stopped before it came must not begin.
        self._stopped_early: deque[AttemptKey] = deque(maxlen=_STOPPED_EARLY_MAX)

    async def attach(self) -> SlotState:
        """An agent comes: what is here. Earlier notices are in it."""
        self._notices.clear()
        busy = self._running.replica if self._running is not None else None
        replicas = tuple(
            ReplicaFact(
                model_id=key.model_id,
                state=ReplicaState.BUSY if key == busy else ReplicaState.WARM,
                memory_bytes=loaded.resident_bytes,
                adapters=loaded.adapters,
                gang_size=key.gang_size,
            )
            for key, loaded in sorted(self._replicas.items())
        )
        return SlotState(
            version=ACTOR_VERSION,
            pid=os.getpid(),
            seq=self._seq,
            replicas=replicas,
            digests=tuple((key.model_id, key.gang_size, loaded.manifest.digest) for key, loaded in sorted(self._replicas.items())),
            running=self._running.key if self._running is not None else None,
            ended=self._ended,
            gang_size=self._gang_size,
            forms=self._code.forms,
            fresh=self._fresh,
        )

    async def poll(self, after: int, wait_s: float) -> tuple[int, tuple[Notice, ...]]:
        """Notices after that number, as soon as there are any or `wait_s` passed; those up to it are forgotten."""
        self._notices = [notice for notice in self._notices if notice[0] > after]
        if not self._notices:
            self._changed.clear()
            await _is_set_within(self._changed, wait_s)  # nothing to say is an answer too: the process lives
        return self._seq, tuple(notice for _, notice in self._notices)

    async def load(self, model: ModelSpec, folder: str, gang_size: int = 1) -> None:
        """Make a model resident, for gangs of that size; told by ReplicaLoaded or ReplicaLoadFailed."""
        key = ReplicaKey(model_id=model.model_id, gang_size=gang_size)
        if key in self._loading:
            return
        self._loading.add(key)
        self._spawn(self._in_turn(self._load(key, model, Path(folder))))

    async def adapt(self, order: AdaptReplica, files: tuple[AdapterFile, ...]) -> None:
        """Take adapters off a resident replica and put others on; told by ReplicaAdapted or ReplicaAdaptFailed."""
        self._spawn(self._in_turn(self._adapt(order, files)))

    async def evict(self, model_id: ModelId, gang_size: int = 1) -> None:
        """Free a replica's memory; told by ReplicaEvicted."""
        self._spawn(self._in_turn(self._evict(ReplicaKey(model_id=model_id, gang_size=gang_size))))

    async def run(self, order: RunAttempt, artifacts_url: str, meeting: str = "") -> None:
        """Execute an attempt; told by AttemptAdvanced and its end. The same order twice is one. StateError while another runs.

        Of a gang, each member is given the same order and the same file to meet by; the lead is the slot of the order. The others
        tell only how their share ended.
        """
        running = self._running
        if running is not None and running.key == order.key:
            return
        if self._ended is not None and self._ended.key == order.key:
            self._note(self._ended)
            return
        if order.key in self._stopped_early:
            return
        if running is not None:
            raise StateError(f"slot {order.slot.index} of {order.slot.node_id} executes {running.key}: {order.key} must wait")
        self._ended = None
        self._running = _Running(order=order, deadline_s=0)
        self._gang_size = order.spec.gang_size
        self._running.renew()
        self._spawn(self._in_turn(self._execute(self._running, artifacts_url, self._place(order, meeting))))
        self._spawn(self._guard(self._running))

    async def stop(self, key: AttemptKey) -> None:
        """Stop an attempt at its next step; told by AttemptHalted, or by its end if that came first."""
        if self._running is not None and self._running.key == key:
            self._running.halt.now(AttemptHalted(key=key))
        elif self._ended is None or self._ended.key != key:
            self._stopped_early.append(key)
            self._note(AttemptHalted(key=key))

    async def give_up(self, key: AttemptKey, wait_s: float) -> bool:
        """Stop an attempt; whether nothing of it executes here any more, at the latest after `wait_s`."""
        running = self._running
        if running is None or running.key != key:
            return True
        running.halt.now(AttemptHalted(key=key))
        return await _is_set_within(running.over, wait_s)

    async def renew(self, keys: tuple[AttemptKey, ...]) -> None:
        """These attempts may go on for another stop_after, from now."""
        if self._running is not None and self._running.key in keys:
            self._running.renew()

    async def forget(self, key: AttemptKey) -> None:
        """The end of an attempt was taken over."""
        if self._ended is not None and self._ended.key == key:
            self._ended = None

    async def _in_turn(self, work: Coroutine[None, None, None]) -> None:
        async with self._turn:
            await work

    # --- the work -----------------------------------------------------------------------------------------------------------

    async def _load(self, key: ReplicaKey, model: ModelSpec, folder: Path) -> None:
        slot, model_id, gang_size = self._options.slot, key.model_id, key.gang_size
        held = self._replicas.get(key)
        try:
            if held is not None and held.manifest.digest != model.weights_digest:
                await self._in_thread(held.unload)
                del self._replicas[key]
                held = None
            if held is not None:
                self._note(_loaded(slot, key, held.report, 0))
                return
            start_s = time.monotonic()
            loaded = await self._in_thread(self._load_now, model, folder)
        except Exception as error:  # noqa: BLE001 - whoever asked for the load must hear how it ended
            failure = failure_of(error, FailureKind.LOAD_FAILED)
            self._note(ReplicaLoadFailed(slot=slot, model_id=model_id, failure=failure, gang_size=gang_size))
            return
        finally:
            self._loading.discard(key)
        self._replicas[key] = loaded
        report = loaded.report
        self._note(
            LoadMeasured(
                model_id=model_id,
                weights_digest=model.weights_digest,
                disk_bytes_per_s=report.disk_bytes_per_s,
                h2d_bytes_per_s=report.h2d_bytes_per_s,
                gang_size=gang_size,
            )
        )
        self._note(_loaded(slot, key, report, int((time.monotonic() - start_s) * 1e6)))

    def _load_now(self, model: ModelSpec, folder: Path) -> LoadedPipeline:
        """In the slot's thread."""
        if model.compiled:
            check_compiler(self._device)
        loaded = self._engine.load(folder, device=self._device, precision=model.precision)
        if loaded.manifest.digest != model.weights_digest:
            loaded.unload()
            raise BadWeightsError(str(folder), f"digest {loaded.manifest.digest}", model.weights_digest)
        return loaded

    async def _adapt(self, order: AdaptReplica, files: tuple[AdapterFile, ...]) -> None:
        slot, model_id = self._options.slot, order.model_id
        loaded = self._replicas.get(ReplicaKey(model_id=model_id, gang_size=order.gang_size))
        start_s = time.monotonic()
        failure: Failure | None = None
        if loaded is None:
            failure = Failure(kind=FailureKind.LOAD_FAILED, message=f"{model_id} is not resident in this slot: nothing to adapt")
        else:
            try:
                await self._in_thread(loaded.adapt, files, order.unload)
            except Exception as error:  # noqa: BLE001 - whoever asked must hear how it ended
                failure = failure_of(error, FailureKind.LOAD_FAILED)
        held = loaded.adapters if loaded is not None else ()
        size = loaded.resident_bytes if loaded is not None else 0
        if failure is not None:
            self._note(
                ReplicaAdaptFailed(
                    slot=slot, model_id=model_id, adapters=held, memory_bytes=size, failure=failure, gang_size=order.gang_size
                )
            )
            return
        elapsed_us = int((time.monotonic() - start_s) * 1e6)
        self._note(
            ReplicaAdapted(slot=slot, model_id=model_id, adapters=held, memory_bytes=size, elapsed_us=elapsed_us, gang_size=order.gang_size)
        )

    async def _evict(self, key: ReplicaKey) -> None:
        loaded = self._replicas.get(key)
        if loaded is not None:
            await self._in_thread(loaded.unload)
            self._replicas.pop(key, None)
        self._note(ReplicaEvicted(slot=self._options.slot, model_id=key.model_id, gang_size=key.gang_size))

    def _place(self, order: RunAttempt, meeting: str) -> GangPlace | None:
        """This slot's place in a gang; None for a job of its own."""
        size = order.spec.gang_size
        return GangPlace(meeting=Path(meeting), rank=self._options.slot.index - order.slot.index, size=size) if size > 1 else None

    async def _execute(self, running: _Running, artifacts_url: str, place: GangPlace | None) -> None:
        order = running.order
        loop = asyncio.get_running_loop()

        def advanced(state: AttemptState, steps_done: int) -> None:
            loop.call_soon_threadsafe(self._note, AttemptAdvanced(key=order.key, state=state, steps_done=steps_done))

        loaded = self._replicas.get(running.replica)
        stale = loaded is not None and loaded.manifest.digest != order.model.weights_digest
        end: MemberEnd
        failure = refusal_of(order)
        if loaded is None or stale:
            held = "other weights of it are" if stale else "it is not"
            failure = Failure(kind=FailureKind.LOAD_FAILED, message=f"{order.model.model_id} cannot run: {held} resident in this slot")
        if failure is not None or loaded is None:
            assert failure is not None, "no replica is a failure"
            end = AttemptErrored(key=order.key, failure=failure, times=NO_TIMES)
        else:
            execution = Execution(
                order=order,
                artifacts_url=artifacts_url,
                logs_dir=self._options.work_dir / "logs",
                halt=running.halt,
                advanced=advanced,
                place=place,
                code=self._code,
                code_held=lambda forms: loop.call_soon_threadsafe(self._note, CodeHeld(forms=forms)),
            )
            end = await self._in_thread(execution.run, loaded)
            self._fresh = self._fresh and isinstance(end, AttemptErrored | AttemptHalted)
        running.over.set()
        self._running = None
        self._ended = end
        self._note(end)
        if stale:
            await self._evict(running.replica)
        if trouble := await self._in_thread(self._code.share, artifacts_url):
            _log.warning("code_not_shared", slot=self._options.slot.index, trouble=trouble)

    async def _guard(self, running: _Running) -> None:
        """Ends an attempt whose right to run was not renewed in time; and the process, if that does not help."""
        while (left_s := running.deadline_s - time.monotonic()) > 0:
            if await _is_set_within(running.over, left_s):
                return
        message = f"nobody renewed {running.key} for {running.order.stop_after_ms / 1000:g} s"
        failure = Failure(kind=FailureKind.LOST, message=message)
        running.halt.now(AttemptErrored(key=running.key, failure=failure, times=NO_TIMES))
        if not await _is_set_within(running.over, self._options.stuck_grace_s):
            os._exit(_EXIT_STUCK)

    # --- how it is told -----------------------------------------------------------------------------------------------------

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(call, *args, **kwargs))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks only weakly
        task.add_done_callback(self._tasks.discard)

    def _note(self, notice: Notice) -> None:
        """Number a notice. Progress replaces unheard progress of the same attempt: what waits stays small."""
        self._seq += 1
        last = self._notices[-1][1] if self._notices else None
        if isinstance(notice, AttemptAdvanced) and isinstance(last, AttemptAdvanced) and last.key == notice.key:
            self._notices.pop()
        self._notices.append((self._seq, notice))
        self._changed.set()


def _loaded(slot: SlotRef, key: ReplicaKey, report: LoadReport, elapsed_us: int) -> ReplicaLoaded:
    return ReplicaLoaded(
        slot=slot, model_id=key.model_id, memory_bytes=report.resident_bytes, elapsed_us=elapsed_us, gang_size=key.gang_size
    )


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
