"""The composition root: one orchestrator, from its configuration to its end.

Decides the order in which parts begin and stop, what follows when another takes over, and which exit code says why the process ended.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import structlog

from atoll.model.address import Address
from atoll.model.errors import StateError
from orchestrator.background import keep_in_touch, sample, sweep, sweep_uploads
from orchestrator.config import ExitCode, OrchestratorConfig, StartError, load_config
from orchestrator.core.durable import Stored
from orchestrator.core.events import ModelsAdded
from orchestrator.core.outputs import Refusal
from orchestrator.core.placement.policy import Policy
from orchestrator.driver import CoreBrokenError
from orchestrator.garbage import look_less_often
from orchestrator.inbox import Lane
from orchestrator.leadership import DeposedError, succeed
from orchestrator.parts import Catalogue, Parts, Process, begin_to_answer, make_parts, make_process, packaged_catalogue
from orchestrator.refusals import DEPOSED, SHUTTING_DOWN, CoreFailedError
from orchestrator.sizes import with_sizes
from orchestrator.store.base import HeldError, StoreError
from orchestrator.store.opening import STORE_FILE
from orchestrator.store.wall import wall_ms
from orchestrator.telemetry.logs import configure
from orchestrator.telemetry.metrics import MetricsServer
from orchestrator.warming import warm_up

_log = structlog.get_logger(__name__)

# Calls that run when the signal comes may take this long to end; streams are told at once.
_GRACE_S: Final = 5.0
# What was admitted becomes durable within one or two commits; a store that needs longer is not going to.
_FLUSH_S: Final = 10.0


async def serve(
    config: OrchestratorConfig,
    *,
    policy: Policy | None = None,
    catalogue: Catalogue | None = None,
    ready: Callable[[Address], None] | None = None,
    stop: asyncio.Event | None = None,
) -> int:
    """Run one orchestrator until `stop` is set; its exit code. Logging and signals are the caller's.

    `catalogue` None: the packaged one. `ready` hears the address once this one leads and answers. One that may stand by begins anew, as
    one that stands by, when another has taken over. Raises StartError when it cannot begin.
    """
    config.check()
    stop = stop or asyncio.Event()
    process = make_process(config, (policy or config.policy).at_scale(config.time_scale_milli), catalogue or packaged_catalogue())
    listening: MetricsServer | None = None
    try:
        while True:
            # Bound before the store is taken over: a second start on the same port must not depose the first.
            parts = make_parts(process)
            process = replace(process, config=replace(config, listen=parts.address))
            try:
                listening = listening or _serve_metrics(process)
                code = await _serve(parts, stop, ready, scraped=str(listening.address) if listening is not None else "off")
            finally:
                await _end(parts)
            if code is not ExitCode.DEPOSED or not config.stands_by:
                return code
            if stop.is_set():
                return ExitCode.OK
            ready = None  # it has been heard
    finally:
        if process.recorder is not None:
            await asyncio.to_thread(process.recorder.close)
        if listening is not None:
            await asyncio.to_thread(listening.close)
        _log.info("stopped")


async def _serve(parts: Parts, stop: asyncio.Event, ready: Callable[[Address], None] | None, *, scraped: str) -> ExitCode:
    """Lead, as soon as nobody else does, until that is over. `scraped`: where metrics are, for the log."""
    config, driver = parts.config, parts.driver
    running: asyncio.Task[None] | None = None
    try:
        await _prepare(parts)
        stored = await _lead(parts, stop)
        if stored is None:
            return ExitCode.OK
        driver.begin(stored)
        running = asyncio.create_task(driver.run())
        await _complete_models(parts, running)
        if not parts.server.answers:
            await begin_to_answer(parts)
        parts.standing.lead(wall_ms())
        parts.process.metrics.leads(True)
        await parts.server.set_serving(True)
        _say_serving(parts, scraped)
        if ready is not None:
            ready(parts.address)
        await _until_stopped(parts, running, stop)
        return ExitCode.OK
    except DeposedError as error:
        parts.standing.leading = False
        parts.cut_all(DEPOSED)
        _log.error("deposed", error=str(error), advice="it stands by from now on" if config.stands_by else "")
        return ExitCode.DEPOSED
    except (CoreBrokenError, CoreFailedError) as error:
        _log.error("gave_up", error=str(error))
        return ExitCode.FAILED
    finally:
        parts.process.metrics.leads(False)
        await _finish(parts, running)


async def _prepare(parts: Parts) -> None:
    """All that takes long, before anybody is kept waiting by it."""
    try:
        await asyncio.to_thread(parts.artifacts.prepare)
    except OSError as error:
        message = f"the artifact store {parts.config.artifacts} cannot be used: {error.strerror}"
        raise StartError(ExitCode.STORE_UNUSABLE, message) from error
    await asyncio.to_thread(warm_up, parts.process.policy)


async def _lead(parts: Parts, stop: asyncio.Event) -> Stored | None:
    """Everything that the store holds, once this process leads; None when stopped before. Whoever calls meanwhile is told who leads."""
    try:
        try:
            return await parts.store.take_over()
        except HeldError as error:
            if not parts.config.stands_by:
                raise
            _log.info("standing_by", address=str(parts.address), reason=str(error))
            if not (parts.config.artifacts_url and parts.config.origin_url):
                _log.warning("folders_not_shared", advice="give --artifacts-url and --origin-url: the other one has its own else")
        await parts.server.set_serving(False)
        await begin_to_answer(parts)
        return await succeed(parts.store, stop)
    except StateError as error:
        raise StartError(ExitCode.STORE_HELD, str(error)) from error
    except (StoreError, OSError) as error:
        raise StartError(ExitCode.STORE_UNUSABLE, f"the store cannot be used: {error}") from error


async def _complete_models(parts: Parts, running: asyncio.Task[None]) -> None:
    """First start of a fleet: the catalogue's models; later ones: what an older version did not store of them."""
    known = parts.readers.models
    catalogue = parts.process.catalogue.models
    models = with_sizes(known.values(), catalogue) if known else catalogue
    if not models:
        return
    asked = asyncio.create_task(parts.driver.ask(Lane.OPERATORS, lambda ref: ModelsAdded(request=ref, actor="atoll", models=models)))
    await asyncio.wait({asked, running}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        asked.cancel()
        running.result()
    reply = await asked
    if isinstance(reply, Refusal):
        _log.warning("catalogue_not_added", reason=reply.message)


def _say_serving(parts: Parts, scraped: str) -> None:
    config, policy = parts.config, parts.process.policy
    _log.info(
        "serving",
        address=str(parts.address),
        term=parts.driver.term,
        data_dir=str(config.data_dir),
        store=str(config.store or config.data_dir / STORE_FILE),
        policy=f"{policy.name} ({policy.identity.digest})",
        credentials=bool(config.tokens),
        tls=config.tls_cert is not None,
        metrics=scraped,
    )
    if config.tokens and config.tls_cert is None:
        _log.warning("tokens_without_tls", advice="give --tls-cert and --tls-key, or let a proxy on this machine do TLS")


def _serve_metrics(process: Process) -> MetricsServer | None:
    where = process.config.metrics
    if where is None:
        return None
    try:
        return process.metrics.serve(where.host, where.port)
    except OSError as error:
        message = f"cannot serve metrics on {where}: {error.strerror} (set another with --metrics, or 'off')"
        raise StartError(ExitCode.ADDRESS_IN_USE, message) from error


async def _until_stopped(parts: Parts, running: asyncio.Task[None], stop: asyncio.Event) -> None:
    """Serve until told to stop. Raises what the driver ends with, and DeposedError when another one took over."""
    stopping = asyncio.create_task(stop.wait())
    deposed = asyncio.create_task(parts.store.deposed())
    background = [asyncio.create_task(each(parts)) for each in (sample, keep_in_touch, sweep, sweep_uploads)]
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


async def _finish(parts: Parts, running: asyncio.Task[None] | None) -> None:
    """What was admitted becomes durable; nothing else is."""
    _log.info("stopping")
    parts.driver.stop()
    await parts.server.set_serving(False)
    if running is not None:
        await asyncio.wait({running}, timeout=_FLUSH_S)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _end(parts: Parts) -> None:
    """Streams end, calls do, the store closes."""
    parts.cut_all(SHUTTING_DOWN)
    await parts.server.stop(_GRACE_S)
    await parts.store.close()


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
