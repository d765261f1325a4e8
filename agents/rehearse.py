"""A rehearsal: the twins of all sites of a fleet in one process, against a running orchestrator.

Decides what the twins share: connections, one set of metrics, one hidden world; and that a site which is not declared, or no longer, costs
the rehearsal its twin and no other. Each is an agent of its own otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, Final

import structlog

from agents.app import Surroundings, fleet_of, links_of, open_shared_channels, packaged_gpus, run_program, run_site, serve_metrics
from agents.config import RehearseConfig
from agents.journal import MemoryJournal
from agents.runtime.twin import TwinRuntime
from agents.session import AgentEndedError, Dial
from agents.telemetry import Metrics
from agents.twin.peers import TwinPeers
from atoll.catalog.fleet import FleetSpec
from atoll.catalog.problems import one_of
from atoll.model.errors import FieldError
from atoll.model.ids import SiteId
from atoll.model.site import SiteSpec
from atoll.physics.hidden import HiddenWorld

_log = structlog.get_logger(__name__)

# Twins are started beside the orchestrator, and before `atoll sites apply` as often as after it. Whoever forgot it reads so at once, and
# types it within this time.
SITE_PATIENCE_S: Final = 300.0


def run_rehearsal(config: RehearseConfig) -> int:
    """Run the twins in the foreground, until SIGTERM or Ctrl-C; the exit code."""
    return run_program(config.reach, lambda stopping: rehearse(config, stop=stopping))


async def rehearse(config: RehearseConfig, *, stop: asyncio.Event) -> None:
    """Run the twins until `stop` is set. One that is refused for good ends them all, with its reason; but those whose sites the fleet does
    not have leave the others alone, as long as there are any."""
    reach, gpus = config.reach, packaged_gpus()
    fleet = fleet_of(config.fleet, gpus)
    specs = _chosen(config, fleet)
    async with AsyncExitStack() as stack:
        channels = open_shared_channels(stack, reach)
        metrics = Metrics()
        serve_metrics(stack, reach, metrics)
        dial = Dial(channels=channels, token=reach.token, give_up_after_s=reach.give_up_after_s, site_patience_s=SITE_PATIENCE_S)
        around = Surroundings(dial=dial, metrics=metrics, gpus=gpus)
        hidden = HiddenWorld(config.seed, config.sigma, noise_seed=config.noise_seed)
        peers = TwinPeers(fleet.sites, links_of(fleet), here=(spec.site_id for spec in specs))
        runtimes = [(spec, TwinRuntime(spec, gpus=gpus, hidden=hidden, peers=peers)) for spec in specs]
        slots = sum(pool.slots for spec in specs for pool in spec.pools)
        _log.info("rehearsing", sites=len(specs), gpus=slots, orchestrator=dial.where, seed=config.seed, sigma=config.sigma)
        twins = [_twin(spec.site_id, run_site(spec.site_id, runtime, MemoryJournal(), around, stop)) for spec, runtime in runtimes]
        agents = [asyncio.create_task(twin) for twin in twins]
        try:
            done, _ = await asyncio.wait(agents, return_when=asyncio.FIRST_EXCEPTION)
            unknown = [agent.result() for agent in done]
            if unknown[0] is not None and all(unknown):
                raise unknown[0]
        finally:
            for agent in agents:
                agent.cancel()
            await asyncio.gather(*agents, return_exceptions=True)


async def _twin(site_id: SiteId, running: Coroutine[Any, Any, None]) -> AgentEndedError | None:
    """Run a twin; why it ended, if that is that the fleet has no such site."""
    try:
        await running
    except AgentEndedError as error:
        if not error.unknown:
            raise
        _log.error("twin_ended", site=site_id, reason=str(error), advice="the other twins go on")
        return error
    return None


def _chosen(config: RehearseConfig, fleet: FleetSpec) -> tuple[SiteSpec, ...]:
    specs = fleet.sites
    known = {spec.site_id for spec in specs}
    for site_id in config.sites:
        if site_id not in known:
            raise FieldError("sites", site_id, one_of(site_id, known, f"site of {config.fleet}"))
    return tuple(spec for spec in specs if not config.sites or spec.site_id in config.sites)
