"""The composition root of an agent: one site, from its configuration to its end.

Decides the order in which parts begin and stop, and which exit code says why the process ended. Ray is loaded only for a real site.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import uuid
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, assert_never

import structlog

import agents
import atoll
from agents.channel import Channels
from agents.clock import AgentClock
from agents.config import AgentConfig, ConfigError, RaySettings, Reach, TwinSettings
from agents.core.machine import AgentMachine
from agents.driver import AgentDriver
from agents.journal import DiskJournal, Journal, JournalError, MemoryJournal
from agents.probes.prober import ProbedNode, Prober
from agents.results import Retention
from agents.runtime.base import Runtime
from agents.runtime.twin import TwinRuntime
from agents.session import AgentEndedError, AgentSession, Dial, ExitCode
from agents.sweeper import ResultSweeper
from agents.telemetry import Metrics, configure_logs
from agents.twin.peers import TwinPeers
from agents.weights import WeightsCache
from agents.weights_server import WeightsServer
from atoll.model.errors import AtollError, FieldError
from atoll.model.gpu import CPU, GpuType
from atoll.model.ids import GpuTypeId, SiteId
from atoll.model.site import LinkSpec, SiteSpec
from atoll.physics.hidden import HiddenWorld

if TYPE_CHECKING:
    from agents.runtime.ray import RayRuntime
    from atoll.catalog.fleet import FleetSpec

_log = structlog.get_logger(__name__)

# A fleet file of thousands of sites has a few megabytes.
_FLEET_BYTES_MAX: Final = 64 * 1024 * 1024
_US_PER_HOUR: Final = 3_600_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What several agents of one process share."""

    dial: Dial
    metrics: Metrics
    gpus: Mapping[GpuTypeId, GpuType]


def _nowhere() -> str | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What runs beside a runtime: measuring its host, and forgetting results where they go. A twin has neither."""

    prober: Prober | None = None
    retention: Retention | None = None
    store_url: Callable[[], str | None] = _nowhere


def refuse_foreign_package() -> None:
    """Raise ConfigError when `agents` is another package of that name than the one beside `atoll`."""
    found, beside = Path(agents.__file__ or "").resolve().parent.parent, Path(atoll.__file__).resolve().parent.parent
    if found != beside:
        raise ConfigError(
            f"the package 'agents' is found in {found}, not beside 'atoll' in {beside}: another package of that name is installed; "
            "run Atoll from an environment of its own"
        )


def run_agent(config: AgentConfig) -> int:
    """Run the agent of one site in the foreground, until SIGTERM or Ctrl-C; its exit code."""
    return run_program(config.reach, lambda stopping: serve(config, stop=stopping))


def run_program(reach: Reach, main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> int:
    """Run a coroutine that ends when its event is set by a signal. Every error becomes one line and an exit code."""
    configure_logs(reach.log_format, reach.log_level)
    try:
        refuse_foreign_package()
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_until_signalled(main))
    except AgentEndedError as error:
        _say(error)
        return error.code
    except JournalError as error:
        _say(error)
        return ExitCode.STATE
    except (ConfigError, FieldError) as error:
        _say(error)
        return ExitCode.CONFIG
    except AtollError as error:
        _say(error)
        return ExitCode.RUNTIME
    except Exception:  # noqa: BLE001 - logged whole; the exit code is what a supervisor reads
        _log.exception("agent_failed")
        return ExitCode.FAILED
    return ExitCode.OK


def _say(error: AtollError) -> None:
    sys.stderr.write(f"error: {error}\n")


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _until_signalled(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await main(stop)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


# --- one agent ----------------------------------------------------------------------------------------------------------------


async def serve(config: AgentConfig, *, stop: asyncio.Event) -> None:
    """Run one agent until `stop` is set. Raises AgentEndedError or another AtollError saying why it ended before."""
    reach = config.reach
    fatal: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    async with AsyncExitStack() as stack:
        channels = open_shared_channels(stack, reach)
        metrics = Metrics()
        serve_metrics(stack, reach, metrics)
        dial = Dial(channels=channels, token=reach.token, give_up_after_s=reach.give_up_after_s)
        journal: Journal = MemoryJournal()
        if config.state_dir is not None:
            journal = DiskJournal(config.state_dir, config.site_id)
        stack.push_async_callback(journal.close)
        surroundings = Surroundings(dial=dial, metrics=metrics, gpus=packaged_gpus())
        runtime, beside = _executing(stack, config, surroundings, fatal)
        await run_site(config.site_id, runtime, journal, surroundings, stop, fatal=fatal, beside=beside, keep_work=not config.end_work)


def _executing(stack: AsyncExitStack, config: AgentConfig, around: Surroundings, fatal: asyncio.Future[None]) -> tuple[Runtime, Beside]:
    """What executes, and what runs beside it."""
    match config.runtime:
        case RaySettings() as settings:
            real = _ray_runtime(config, settings, fatal)
            prober = Prober(
                nodes=_nodes_of_this_host(real),
                cache_dir=settings.cache_dir,
                cache_quota_bytes=settings.cache_bytes,
                metrics=around.metrics,
            )
            stack.callback(prober.close)
            _serve_weights(stack, settings)
            retention = Retention(max_age_us=settings.results_hours * _US_PER_HOUR, max_bytes=settings.results_bytes)
            return real, Beside(prober=prober, retention=retention, store_url=lambda: real.artifacts_url)
        case TwinSettings() as settings:
            fleet = fleet_of(settings.fleet, around.gpus)
            spec = _site_of(fleet, settings.fleet, config.site_id)
            peers = TwinPeers(fleet.sites, links_of(fleet), here=(spec.site_id,))
            return TwinRuntime(spec, gpus=around.gpus, hidden=HiddenWorld(settings.seed, settings.sigma), peers=peers), Beside()
        case _:
            assert_never(config.runtime)


async def run_site(
    site_id: SiteId,
    runtime: Runtime,
    journal: Journal,
    around: Surroundings,
    stop: asyncio.Event,
    *,
    fatal: asyncio.Future[None] | None = None,
    beside: Beside | None = None,
    keep_work: bool = False,
) -> None:
    """Run the agent of one site on parts that are made, until `stop`, or `fatal` or a refusal raises."""
    kept = journal.load()
    machine = AgentMachine(
        site_id=site_id,
        pools=runtime.pools,
        runtime=runtime.kind,
        gpus=around.gpus,
        fleet_id=kept.fleet_id,
        term=kept.term,
        outbox=kept.outbox,
        next_event_seq=kept.next_event_seq,
    )
    driver = AgentDriver(machine=machine, journal=journal, runtime=runtime, clock=AgentClock(), metrics=around.metrics)
    session = AgentSession(
        site_id=site_id,
        boot_id=uuid.uuid4().hex,
        dial=around.dial,
        credential=kept.credential,
        driver=driver,
        runtime=runtime,
        journal=journal,
        metrics=around.metrics,
    )
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(stop.wait()), driver.failure]
    if fatal is not None:
        tasks.append(fatal)
    try:
        await driver.start()
        tasks.append(asyncio.ensure_future(session.run()))
        if beside is not None and beside.prober is not None:
            tasks.append(asyncio.ensure_future(beside.prober.run(driver.feed)))
        if beside is not None and beside.retention is not None:
            sweeper = ResultSweeper(
                retention=beside.retention,
                store_url=beside.store_url,
                unacknowledged=lambda: frozenset(event.key for event in machine.state.outbox.values()),
            )
            tasks.append(asyncio.ensure_future(sweeper.run()))
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for ended in done:
            ended.result()
    except AgentEndedError as error:
        keep_work = keep_work and not error.removed
        raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await driver.close()
        await runtime.close(keep_work=keep_work)


def _ray_runtime(config: AgentConfig, settings: RaySettings, fatal: asyncio.Future[None]) -> RayRuntime:
    from agents.runtime.ray import RayConfig, RayRuntime

    if config.state_dir is None:
        raise FieldError("state_dir", None, "a folder: a real site keeps its events and its cluster's secret there")

    def end(error: AtollError) -> None:
        if not fatal.done():
            fatal.set_exception(AgentEndedError(ExitCode.RUNTIME, str(error)))

    return RayRuntime(
        RayConfig(
            site_id=config.site_id,
            work_dir=config.state_dir / "ray",
            cache_dir=settings.cache_dir,
            cache_bytes=settings.cache_bytes,
            address=settings.address,
            node_ip=settings.node_ip,
            port_base=settings.port_base,
            use_gpus=settings.use_gpus,
            cpu_slots=settings.slots,
            slot_memory_bytes=settings.slot_memory_bytes,
            threads=settings.threads,
            usd_micros_per_gpu_hour=settings.usd_micros_per_gpu_hour,
            share_compiled=settings.share_compiled,
            peer_token=settings.peer_token,
        ),
        on_fatal=end,
    )


def _serve_weights(stack: AsyncExitStack, settings: RaySettings) -> None:
    """Other sites may read the weights in the cache, if the configuration says so."""
    if settings.weights_listen is None:
        return
    try:
        cache = WeightsCache(settings.cache_dir, quota_bytes=settings.cache_bytes)
        server = WeightsServer(cache, settings.weights_listen, token=settings.peer_token)
    except OSError as error:
        raise FieldError("weights_listen", str(settings.weights_listen), f"an address that is free ({error.strerror}), or 'off'") from error
    stack.callback(server.close)
    _log.info("weights_served", host=settings.weights_listen.host, port=server.port, token=bool(settings.peer_token))


def _nodes_of_this_host(runtime: Runtime) -> tuple[ProbedNode, ...]:
    """The first node of each pool, with its GPUs in the order in which the runtime numbered them: NVML's."""
    from agents.runtime.hardware import find_devices, gpu_type_of

    pools = runtime.pools
    devices = find_devices() if any(pool.gpu_type != CPU for pool in pools) else ()
    return tuple(
        ProbedNode(
            node_id=pool.node_id(0),
            devices=tuple(device.uuid for device in devices if gpu_type_of(device.name) == pool.gpu_type),
        )
        for pool in pools
    )


# --- what programs share ------------------------------------------------------------------------------------------------------


def open_shared_channels(stack: AsyncExitStack, reach: Reach) -> Channels:
    try:
        channels = Channels(reach.orchestrators, reach.ca_file)
    except OSError as error:
        raise FieldError("ca_file", str(reach.ca_file), f"a file that can be read ({error.strerror})") from error
    stack.push_async_callback(channels.close)
    return channels


def serve_metrics(stack: AsyncExitStack, reach: Reach, metrics: Metrics) -> None:
    if reach.metrics is None:
        return
    try:
        server, thread = metrics.serve(reach.metrics)
    except OSError as error:
        raise FieldError("metrics", str(reach.metrics), f"an address that is free ({error.strerror}), or 'off'") from error
    stack.callback(thread.join)
    stack.callback(server.server_close)
    stack.callback(server.shutdown)


def packaged_gpus() -> dict[GpuTypeId, GpuType]:
    """GPU types of the catalogue that comes with the program."""
    from atoll.catalog.gpus import parse_gpus
    from atoll.data import gpus_csv

    return parse_gpus(gpus_csv(), "gpus.csv")


def fleet_of(fleet: Path, gpus: Mapping[GpuTypeId, GpuType]) -> FleetSpec:
    """The sites and links that a fleet file declares, or a fleet with this name has. Raises AtollError naming file and line."""
    from atoll.catalog.fleet import parse_fleet
    from atoll.catalog.problems import SourceErrors
    from atoll.data import fleet_wan_csv
    from atoll.packaged import named_fleet

    named = named_fleet(str(fleet), gpus)
    if named is not None:
        return named
    try:
        if fleet.stat().st_size > _FLEET_BYTES_MAX:
            raise FieldError("fleet", str(fleet), f"a file of at most {_FLEET_BYTES_MAX} bytes")
        text = fleet.read_text(encoding="utf-8")
    except OSError as error:
        raise FieldError("fleet", str(fleet), f"a file that can be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise FieldError("fleet", str(fleet), "UTF-8 text") from None
    try:
        return parse_fleet(text, str(fleet), gpus, fleet_wan_csv())
    except SourceErrors as errors:
        raise ConfigError(str(errors)) from None


def links_of(fleet: FleetSpec) -> dict[tuple[SiteId, SiteId], LinkSpec]:
    """The links of a fleet file, by their ends."""
    return {(link.src, link.dst): link for link in fleet.links}


def _site_of(fleet: FleetSpec, path: Path, site_id: SiteId) -> SiteSpec:
    for spec in fleet.sites:
        if spec.site_id == site_id:
            return spec
    raise FieldError("site", site_id, f"a site of {path}: {', '.join(spec.site_id for spec in fleet.sites[:8])}, ...")
