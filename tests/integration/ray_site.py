"""A real site without its agent: a RayRuntime, the events it tells, and commands as the agent's core would give them.

Also a program (`python -m tests.integration.ray_site CONFIG.json`): an agent that can be killed. It prints one JSON line for each
event, obeys lines of its standard input (`load`, `run JOB STEPS STOP_AFTER_MS`, `leave`), and exits 3 when its runtime is at an end.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from agents.core.events import AgentEvent, AttemptAdvanced, ReplicaLoaded, RuntimeStarted, WeightsFetched
from agents.core.outputs import FetchWeights, LoadReplica, RunAttempt, StopAttempt
from agents.engine.starters import build_starters
from agents.runtime.cluster import PORT_BLOCK
from agents.runtime.ray import RayConfig, RayRuntime
from agents.runtime.ray_processes import ClusterProcesses
from atoll.model.errors import AtollError
from atoll.model.ids import AttemptKey, FleetId, JobId, ModelId, Ordinal, SiteId, SlotRef, TenantId, Term
from atoll.model.job import JobSpec
from atoll.model.modelspec import ModelSpec
from atoll.model.report import Welcome
from atoll.model.shape import Shape

E = TypeVar("E", bound=AgentEvent)
# Bounds a wait for something that must come; how soon is never asserted with it.
WAIT_S = 60.0
EXIT_FATAL = 3


# Below the ports that other tests draw from, a block for each cluster.
_BLOCKS = range(10_000, 20_000, PORT_BLOCK)
_drawn: set[int] = set()


def free_port_block() -> int:
    """The first of a block's ports, of which the first ten, which are taken when a cluster starts, are free now."""
    for step in range(len(_BLOCKS)):
        base = _BLOCKS[(os.getpid() * 7 + step) % len(_BLOCKS)]
        if base not in _drawn and all(_is_free(base + index) for index in range(10)):
            _drawn.add(base)
            return base
    raise RuntimeError("no free block of ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True


def processes_of(config: RayConfig) -> ClusterProcesses:
    """The site's cluster, as its record says."""
    processes = ClusterProcesses.read(config.work_dir / "ray-head.json")
    assert processes is not None
    return processes


def key_of(job: str, ordinal: int = 1) -> AttemptKey:
    return AttemptKey(job_id=JobId(job), ordinal=Ordinal(ordinal))


def config_of(folder: Path, temp_dir: Path, *, site: str, host: int, port_base: int, cache_dir: Path | None = None) -> RayConfig:
    return RayConfig(
        site_id=SiteId(site),
        work_dir=folder / site,
        cache_dir=cache_dir if cache_dir is not None else folder / f"{site}-cache",
        cache_bytes=10**9,
        node_ip=f"127.0.1.{host}",
        port_base=port_base,
        temp_dir=temp_dir,
        use_gpus=False,
        stuck_grace_s=5.0,
    )


def welcome_of(folder: Path, *, time_scale_milli: int = 1000) -> Welcome:
    return Welcome(
        fleet_id=FleetId("fleet"),
        term=Term(1),
        time_scale_milli=time_scale_milli,
        report_interval_ms=1000,
        origin_url=(folder / "origin").as_uri(),
        artifacts_url=(folder / "artifacts").as_uri(),
    )


def build_origin(folder: Path) -> dict[str, ModelSpec]:
    return {str(starter.spec.model_id): starter.spec for starter in build_starters(folder / "origin")}


def order_of(slot: SlotRef, key: AttemptKey, model: ModelSpec, *, shape: Shape, stop_after_ms: int = 60_000, **spec: Any) -> RunAttempt:
    job = JobSpec(tenant=TenantId("t"), model_id=model.model_id, prompt="a lighthouse", seed=7, shape=shape, **spec)
    return RunAttempt(slot=slot, key=key, spec=job, model=model, stop_after_ms=stop_after_ms, request_id="req-1")


class Site:
    """The runtime and everything it told."""

    def __init__(self, config: RayConfig, *, on_event: Callable[[AgentEvent], None] | None = None) -> None:
        self.events: list[AgentEvent] = []
        self.times_s: list[float] = []
        self.fatal: asyncio.Future[AtollError] = asyncio.get_running_loop().create_future()
        self.runtime = RayRuntime(config, on_fatal=self.fatal.set_result)
        (pool,) = self.runtime.pools
        self.slot = SlotRef(pool_id=pool.pool_id, node_id=pool.node_id(0), index=0)
        self._news = asyncio.Event()
        self._on_event = on_event
        self.started: RuntimeStarted | None = None

    def hear(self, event: AgentEvent) -> None:
        self.events.append(event)
        self.times_s.append(time.monotonic())
        self._news.set()
        if self._on_event is not None:
            self._on_event(event)

    async def start(self, welcome: Welcome) -> RuntimeStarted:
        self.started = await self.runtime.start(self.hear)
        self.runtime.welcome(welcome)
        return self.started

    async def heard(self, kind: type[E], wanted: Callable[[E], bool] = lambda _: True) -> E:
        """The first event of the kind that is wanted; waits for it."""
        async with asyncio.timeout(WAIT_S):
            while True:
                self._news.clear()
                for event in self.events:
                    if isinstance(event, kind) and wanted(event):
                        return event
                await self._news.wait()

    async def load(self, model: ModelSpec) -> ReplicaLoaded:
        """Fetch and load as the core would."""
        self.runtime.perform(FetchWeights(node_id=self.slot.node_id, model=model))
        await self.heard(WeightsFetched, lambda event: event.model_id == model.model_id)
        self.runtime.perform(LoadReplica(slot=self.slot, model=model))
        return await self.heard(ReplicaLoaded, lambda event: event.model_id == model.model_id)

    def run(self, key: AttemptKey, model: ModelSpec, **order: Any) -> None:
        self.runtime.perform(order_of(self.slot, key, model, **order))

    def stop(self, key: AttemptKey) -> None:
        self.runtime.perform(StopAttempt(slot=self.slot, key=key))

    async def progressed(self, key: AttemptKey, steps: int) -> AttemptAdvanced:
        return await self.heard(AttemptAdvanced, lambda event: event.key == key and event.steps_done >= steps)


def square(px: int, steps: int, frames: int = 1) -> Shape:
    return Shape(width=px, height=px, frames=frames, steps=steps)


# --- the program --------------------------------------------------------------------------------------------------------------


def _say(what: str, **facts: object) -> None:
    print(json.dumps({"what": what, **facts}, default=str), flush=True)


async def _main(options: dict[str, Any]) -> int:
    folder = Path(options["folder"])
    models = build_origin(folder)
    config = config_of(folder, Path(options["temp_dir"]), site=options["site"], host=options["host"], port_base=options["port_base"])
    site = Site(config, on_event=lambda event: _say(type(event).__name__, key=str(getattr(event, "key", ""))))
    started = await site.start(welcome_of(folder))
    running = [str(slot.running) for slot in started.slots if slot.running is not None]
    _say("started", running=running, finished=[str(manifest.key) for manifest in started.finished])
    orders = _orders()
    fatal: asyncio.Future[Any] = site.fatal
    while True:
        order: asyncio.Future[Any] = asyncio.ensure_future(orders.get())
        await asyncio.wait({order, fatal}, return_when=asyncio.FIRST_COMPLETED)
        if site.fatal.done():
            _say("fatal", message=str(site.fatal.result()))
            await site.runtime.close(keep_work=False)
            return EXIT_FATAL
        match (await order).split():
            case ["load"]:
                await site.load(models["tiny-image"])
                _say("loaded")
            case ["run", job, steps, stop_after_ms]:
                site.run(key_of(job), models[ModelId("tiny-image")], shape=square(64, int(steps)), stop_after_ms=int(stop_after_ms))
            case _:
                await site.runtime.close(keep_work=False)
                _say("left")
                return 0


def _orders() -> asyncio.Queue[str]:
    """Lines of the standard input, read by a thread that dies with the process."""
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line)

    threading.Thread(target=read, daemon=True).start()
    return lines


if __name__ == "__main__":
    sys.exit(asyncio.run(_main(json.loads(Path(sys.argv[1]).read_text()))))
