"""The composition root: one orchestrator, from its configuration to its end.

Decides the order in which parts begin and stop, and which exit code says why the process ended. Nothing else makes these parts.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import structlog

from atoll.model.address import Address
from atoll.model.errors import AtollError, StateError
from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId
from atoll.model.modelspec import ModelSpec
from atoll.packaged import load_packaged
from orchestrator.api.auth import Authenticator
from orchestrator.api.following import Follower
from orchestrator.api.interceptor import Gate
from orchestrator.api.jobs import JobService
from orchestrator.api.listing import Lister
from orchestrator.api.operators import OperatorService
from orchestrator.api.quotes import Quoter
from orchestrator.api.server import AddressInUseError, ApiServer
from orchestrator.api.shown import Shown
from orchestrator.api.sites import Greeting, SiteService
from orchestrator.api.submit import Submitter
from orchestrator.api.transfers import Transfers
from orchestrator.artifacts import ArtifactStore
from orchestrator.clock import REAL_TIME_MILLI, FleetClock
from orchestrator.config import ExitCode, OrchestratorConfig, StartError, load_config
from orchestrator.core.durable import Stored
from orchestrator.core.events import ModelsAdded
from orchestrator.core.machine import Machine, new_machine
from orchestrator.core.outputs import Refusal
from orchestrator.core.placement.policy import Policy
from orchestrator.driver import CoreBrokenError, Driver
from orchestrator.effects import Surrounding
from orchestrator.garbage import look_less_often
from orchestrator.inbox import Lane
from orchestrator.input_sweeper import sweep_inputs
from orchestrator.leadership import DeposedError
from orchestrator.readers import ReadModel
from orchestrator.recorder import Recorder
from orchestrator.refusals import SHUTTING_DOWN, CoreFailedError
from orchestrator.sessions import SessionTable
from orchestrator.shedding import Shedding
from orchestrator.sizes import with_sizes
from orchestrator.store.base import Store, StoreError
from orchestrator.store.opening import STORE_FILE, open_store
from orchestrator.telemetry.logs import configure
from orchestrator.telemetry.metrics import Metrics, MetricsServer
from orchestrator.warming import warm_up
from orchestrator.watchers import AuditWatchers, JobWatchers

_log = structlog.get_logger(__name__)

# Calls that run when the signal comes may take this long to end; streams are told at once.
_GRACE_S: Final = 5.0
# What was admitted becomes durable within one or two commits; a store that needs longer is not going to.
_FLUSH_S: Final = 10.0
_SAMPLE_S: Final = 1.0
# Retention is counted in hours; each sweep takes milliseconds.
_SWEEP_S: Final = 60.0
# To list a store costs a request per thousand files.
_SWEEP_INPUTS_S: Final = 3_600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """GPU types that sites may have, and the models that a new fleet begins with: known by their figures, for rehearsals."""

    gpus: Mapping[GpuTypeId, GpuType]
    models: tuple[ModelSpec, ...] = ()


@dataclass(slots=True, kw_only=True)
class _Parts:
    """Everything that is made once and outlives a core."""

    config: OrchestratorConfig
    policy: Policy
    catalogue: Catalogue
    store: Store
    metrics: Metrics
    readers: ReadModel
    watchers: JobWatchers
    audit: AuditWatchers
    sessions: SessionTable
    authenticator: Authenticator
    artifacts: ArtifactStore
    server: ApiServer
    driver: Driver
    recorder: Recorder | None


def packaged_catalogue() -> Catalogue:
    """What comes with the program."""
    packaged = load_packaged()
    return Catalogue(gpus=packaged.gpus, models=packaged.models)


def _build(config: OrchestratorConfig, policy: Policy, catalogue: Catalogue) -> _Parts:
    gpus = catalogue.gpus
    store = open_store(config.data_dir, config.store, quota_bytes=config.store_quota_bytes)
    metrics = Metrics()
    readers, watchers, audit, sessions = ReadModel(), JobWatchers(), AuditWatchers(), SessionTable()
    authenticator = Authenticator(config.tokens)
    recorder = None
    if config.record is not None:
        try:
            recorder = Recorder(config.record, policy=policy, gpus=dict(gpus), bytes_max=config.record_bytes_max)
        except OSError as error:
            expected = f"expected a new file in a folder that can be written ({error.strerror})"
            raise StartError(ExitCode.CONFIG, f"record is {config.record}: {expected}") from error

    def build(stored: Stored) -> Machine:
        # Demand is forgotten at the pace of the fleet's time, also while nobody ran it.
        age_us = stored.demand_age_us * config.time_scale_milli // REAL_TIME_MILLI
        return new_machine(replace(stored, demand_age_us=age_us), policy, gpus)

    surroundings = Surrounding(readers=readers, watchers=watchers, audit=audit, sessions=sessions, metrics=metrics)
    driver = Driver(
        store=store,
        clock=FleetClock(time_scale_milli=config.time_scale_milli),
        build=build,
        surroundings=surroundings,
        metrics=metrics,
        recorder=recorder,
    )
    return _Parts(
        config=config,
        policy=policy,
        catalogue=catalogue,
        store=store,
        metrics=metrics,
        readers=readers,
        watchers=watchers,
        audit=audit,
        sessions=sessions,
        authenticator=authenticator,
        artifacts=ArtifactStore(config.artifacts),
        server=ApiServer(Gate(authenticator, metrics)),
        driver=driver,
        recorder=recorder,
    )


async def serve(
    config: OrchestratorConfig,
    *,
    policy: Policy | None = None,
    catalogue: Catalogue | None = None,
    ready: Callable[[Address], None] | None = None,
    stop: asyncio.Event | None = None,
) -> int:
    """Run one orchestrator until `stop` is set; its exit code. Logging and signals are the caller's.

    `catalogue` None: the packaged one. `ready` hears the address once calls are answered. Raises StartError when it cannot begin.
    """
    config.check()
    stop = stop or asyncio.Event()
    parts = _build(config, (policy or config.policy).at_scale(config.time_scale_milli), catalogue or packaged_catalogue())
    listening: MetricsServer | None = None
    running: asyncio.Task[None] | None = None
    try:
        # Bound before the store is taken over: a second start on the same port must not depose the first.
        address = _bind(parts)
        listening = _serve_metrics(parts)
        await asyncio.to_thread(warm_up, parts.policy)
        parts.driver.begin(await _take_over(parts.store))
        running = asyncio.create_task(parts.driver.run())
        await _begin(parts, running)
        _log.info(
            "serving",
            address=str(address),
            data_dir=str(config.data_dir),
            store=str(config.store or config.data_dir / STORE_FILE),
            policy=f"{parts.policy.name} ({parts.policy.identity.digest})",
            credentials=bool(config.tokens),
            tls=config.tls_cert is not None,
            metrics=str(listening.address) if listening is not None else "off",
        )
        if config.tokens and config.tls_cert is None:
            _log.warning("tokens_without_tls", advice="give --tls-cert and --tls-key, or let a proxy on this machine do TLS")
        if ready is not None:
            ready(address)
        await _until_stopped(parts, running, stop)
        return ExitCode.OK
    except DeposedError as error:
        _log.error("deposed", error=str(error))
        return ExitCode.DEPOSED
    except (CoreBrokenError, CoreFailedError) as error:
        _log.error("gave_up", error=str(error))
        return ExitCode.FAILED
    finally:
        await _end(parts, running)
        if listening is not None:
            await asyncio.to_thread(listening.close)


def _bind(parts: _Parts) -> Address:
    config = parts.config
    try:
        return parts.server.bind(config.listen, config.tls_cert, config.tls_key)
    except AddressInUseError as error:
        raise StartError(ExitCode.ADDRESS_IN_USE, str(error)) from error
    except OSError as error:
        raise StartError(ExitCode.CONFIG, f"the TLS files cannot be read: {error}") from error


def _serve_metrics(parts: _Parts) -> MetricsServer | None:
    where = parts.config.metrics
    if where is None:
        return None
    try:
        return parts.metrics.serve(where.host, where.port)
    except OSError as error:
        message = f"cannot serve metrics on {where}: {error.strerror} (set another with --metrics, or 'off')"
        raise StartError(ExitCode.ADDRESS_IN_USE, message) from error


async def _take_over(store: Store) -> Stored:
    try:
        return await store.take_over()
    except StateError as error:
        raise StartError(ExitCode.STORE_HELD, str(error)) from error
    except (StoreError, OSError) as error:
        raise StartError(ExitCode.STORE_UNUSABLE, f"the store cannot be used: {error}") from error


async def _begin(parts: _Parts, running: asyncio.Task[None]) -> None:
    """First start of a fleet: the catalogue's models; later ones: what an older version did not store of them. Then answer calls."""
    try:
        await asyncio.to_thread(parts.artifacts.prepare)
    except OSError as error:
        message = f"the artifact store {parts.config.artifacts} cannot be used: {error.strerror}"
        raise StartError(ExitCode.STORE_UNUSABLE, message) from error
    known = parts.readers.models
    models = with_sizes(known.values(), parts.catalogue.models) if known else parts.catalogue.models
    if models:
        asked = asyncio.create_task(parts.driver.ask(Lane.OPERATORS, lambda ref: ModelsAdded(request=ref, actor="atoll", models=models)))
        await asyncio.wait({asked, running}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            asked.cancel()
            running.result()
        reply = await asked
        if isinstance(reply, Refusal):
            _log.warning("catalogue_not_added", reason=reply.message)
    driver, readers, store = parts.driver, parts.readers, parts.store
    shown = Shown(driver)
    submitter = Submitter(driver=driver, readers=readers, store=store, gpus=parts.catalogue.gpus)
    await parts.server.start(
        JobService(
            driver=driver,
            readers=readers,
            store=store,
            sessions=parts.sessions,
            submitter=submitter,
            quoter=Quoter(driver=driver, readers=readers, submitter=submitter, shown=shown),
            shown=shown,
            lister=Lister(readers=readers, store=store, shown=shown),
            follower=Follower(readers=readers, watchers=parts.watchers, store=store, shown=shown),
            transfers=Transfers(parts.artifacts),
        ),
        OperatorService(
            driver=driver,
            readers=readers,
            store=store,
            audit=parts.audit,
            gpus=parts.catalogue.gpus,
            credentials=parts.authenticator.required,
        ),
        SiteService(
            driver=driver,
            sessions=parts.sessions,
            authenticator=parts.authenticator,
            greeting=Greeting(
                report_interval_ms=parts.policy.report_interval_ms,
                origin_url=parts.config.origin,
                artifacts_url=parts.config.artifacts,
            ),
        ),
    )
    await parts.server.set_serving(True)


async def _until_stopped(parts: _Parts, running: asyncio.Task[None], stop: asyncio.Event) -> None:
    """Serve until told to stop. Raises what the driver ends with, and DeposedError when another one took over."""
    stopping = asyncio.create_task(stop.wait())
    deposed = asyncio.create_task(parts.store.deposed())
    background = [asyncio.create_task(each(parts)) for each in (_sample, _sweep, _sweep_inputs)]
    try:
        await asyncio.wait({stopping, running, deposed}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        if deposed.done() and not stopping.done():
            raise DeposedError("another orchestrator took over")
    finally:
        for task in (stopping, deposed, *background):
            task.cancel()
        await asyncio.gather(stopping, deposed, *background, return_exceptions=True)


async def _end(parts: _Parts, running: asyncio.Task[None] | None) -> None:
    """Stop in order: no new calls, what was admitted becomes durable, streams end, the store closes."""
    _log.info("stopping")
    parts.driver.stop()
    await parts.server.set_serving(False)
    if running is not None:
        await asyncio.wait({running}, timeout=_FLUSH_S)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    parts.sessions.close_all(SHUTTING_DOWN)
    parts.watchers.cut_all(SHUTTING_DOWN)
    parts.audit.cut_all(SHUTTING_DOWN)
    await parts.server.stop(_GRACE_S)
    await parts.store.close()
    if parts.recorder is not None:
        await asyncio.to_thread(parts.recorder.close)
    _log.info("stopped")


async def _sample(parts: _Parts) -> None:
    """Set the gauges, and tell the health service how things stand."""
    serving, shedding = True, Shedding()
    while True:
        await asyncio.sleep(_SAMPLE_S)
        shedding.look(parts.store, parts.metrics)
        clock = parts.driver.clock
        fleet = parts.driver.machine.fleet_view(clock.now_us(), clock.time_scale_milli) if parts.driver.ready else None
        parts.metrics.sampled(jobs=parts.readers.counts, sessions=len(parts.sessions), fleet=fleet)
        if parts.driver.ready:
            parts.metrics.calibrated(parts.driver.machine.calibration())
            parts.metrics.counted_copies(parts.driver.machine.copy_counts())
        if parts.driver.ready is not serving:
            serving = parts.driver.ready
            await parts.server.set_serving(serving)


async def _sweep(parts: _Parts) -> None:
    """Forget ended jobs that are older than the retention, or too many."""
    while True:
        await asyncio.sleep(_SWEEP_S)
        try:
            went = await parts.store.sweep(
                now_us=parts.driver.clock.now_us(),
                retention_ms=parts.config.retention_ms,
                max_ended=parts.config.ended_jobs_max,
            )
        except AtollError as error:
            _log.warning("sweep_failed", error=str(error))
            continue
        if went:
            parts.readers.forgot(went)
            _log.info("swept", jobs=went)


async def _sweep_inputs(parts: _Parts) -> None:
    """Forget uploaded files that nobody needs any more."""
    while True:
        await asyncio.sleep(_SWEEP_INPUTS_S)
        if parts.driver.ready:
            await sweep_inputs(parts.artifacts, parts.readers, retention_ms=parts.config.retention_ms)


async def _serve_until_signal(config: OrchestratorConfig) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return await serve(config, stop=stop)


def run_orchestrator(config: OrchestratorConfig) -> int:
    """Run until SIGTERM or SIGINT; the exit code. What cannot start says why on standard error."""
    import uvloop

    configure(config.log_format, config.log_level)
    look_less_often()
    try:
        return uvloop.run(_serve_until_signal(config))
    except StartError as error:
        _log.error("cannot_start", error=str(error))
        return error.code


def main(flags: Mapping[str, object | None], environ: Mapping[str, str]) -> int:
    """Configure from flags and environment, then run; the exit code."""
    try:
        config = load_config(flags, environ)
    except StartError as error:
        structlog.get_logger(__name__).error("cannot_start", error=str(error))
        return error.code
    return run_orchestrator(config)
