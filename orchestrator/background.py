"""What a leader does beside answering: gauges, and forgetting what nobody needs any more.

Decides how often. Must not know how it is stored.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from atoll.model.errors import AtollError
from orchestrator.input_sweeper import sweep_inputs
from orchestrator.parts import Parts
from orchestrator.refusals import OUT_OF_TOUCH
from orchestrator.shedding import Shedding

_log = structlog.get_logger(__name__)

_SAMPLE_S: Final = 1.0
# As often as a leader's heart beats.
_TOUCH_S: Final = 0.2
# Retention is counted in hours; each sweep takes milliseconds.
_SWEEP_S: Final = 60.0
# To list a store costs a request per thousand files.
_SWEEP_INPUTS_S: Final = 3_600.0


async def sample(parts: Parts) -> None:
    """Set the gauges, and tell the health service how things stand."""
    serving, shedding, metrics = True, Shedding(), parts.process.metrics
    while True:
        await asyncio.sleep(_SAMPLE_S)
        shedding.look(parts.store, metrics)
        clock = parts.driver.clock
        fleet = parts.driver.machine.fleet_view(clock.now_us(), clock.time_scale_milli) if parts.driver.ready else None
        metrics.sampled(jobs=parts.readers.counts, sessions=len(parts.sessions), fleet=fleet)
        if parts.driver.ready:
            metrics.calibrated(parts.driver.machine.calibration())
            metrics.counted_copies(parts.driver.machine.copy_counts())
        serves = parts.driver.ready and not parts.standing.doubtful
        if serves is not serving:
            serving = serves
            await parts.server.set_serving(serving)


async def keep_in_touch(parts: Parts) -> None:
    """While it is not known any more whether this one leads, send everybody on: an agent that stays would never hear of the next leader."""
    while True:
        await asyncio.sleep(_TOUCH_S)
        doubtful = parts.store.out_of_touch()
        if doubtful and not parts.standing.doubtful:
            _log.warning("out_of_touch", advice="calls are refused until the store is reached again, or another leads")
            parts.cut_all(OUT_OF_TOUCH)
        parts.standing.doubtful = doubtful


async def sweep(parts: Parts) -> None:
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


async def sweep_uploads(parts: Parts) -> None:
    """Forget uploaded files that nobody needs any more."""
    while True:
        await asyncio.sleep(_SWEEP_INPUTS_S)
        if parts.driver.ready:
            await sweep_inputs(parts.artifacts, parts.readers, retention_ms=parts.config.retention_ms)
