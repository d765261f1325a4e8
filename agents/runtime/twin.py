"""Runtime `twin`: a rehearsal of a site. Its plant takes the time that physics and the hidden truth of its world give, and makes nothing.

Decides how long fleet time is on this process's loop, and keeps what attempts said. Every result is marked `simulated` and says so in its
one artifact, a JSON text: never a picture. Nothing survives the process. Must not know the orchestrator.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

from agents.clock import AgentClock
from agents.core.commands import RuntimeCommand
from agents.core.events import AgentEvent, RuntimeStarted
from agents.runtime.base import Sink
from agents.twin.peers import TwinPeers
from agents.twin.plant import Plant
from atoll.model.gpu import GpuType
from atoll.model.ids import AttemptKey, GpuTypeId
from atoll.model.report import Welcome
from atoll.model.site import PoolSpec, SiteRuntime, SiteSpec
from atoll.physics.hidden import HiddenWorld

# Attempts whose log can still be asked for.
_LOGS_MAX: Final = 1_000
# Progress is told once in this real time, however fast fleet time runs: it is this process that would drown in it.
_PACE_S: Final = 1


class _LoopTimers:
    """Fleet time on the running loop. Nothing is called once it is closed."""

    def __init__(self) -> None:
        self.clock = AgentClock()
        self.closed = False

    def now_us(self) -> int:
        return self.clock.now_us()

    def after(self, delay_us: int, act: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self.clock.real_s(delay_us), self._act, act)

    def _act(self, act: Callable[[], None]) -> None:
        if not self.closed:
            act()


class TwinRuntime:
    """The twin of one site."""

    kind = SiteRuntime.TWIN

    def __init__(self, spec: SiteSpec, *, gpus: Mapping[GpuTypeId, GpuType], hidden: HiddenWorld, peers: TwinPeers | None = None) -> None:
        """FieldError when a pool's GPU type is not in the catalogue. `peers`: the twins beside it, and the ways to others."""
        self._timers = _LoopTimers()
        self._sink: Sink = _nobody
        self._logs: OrderedDict[AttemptKey, list[str]] = OrderedDict()
        self.plant = Plant(spec, gpus=gpus, truth=hidden, timers=self._timers, tell=self._tell, peers=peers, note=self._note)

    @property
    def pools(self) -> tuple[PoolSpec, ...]:
        """The declared pools."""
        return self.plant.pools

    async def start(self, sink: Sink) -> RuntimeStarted:
        """Empty slots, empty disks."""
        self._sink = sink
        return self.plant.started()

    def welcome(self, welcome: Welcome) -> None:
        """From now on waits are as long as this scale says."""
        self._timers.clock.set_scale(welcome.time_scale_milli)
        self.plant.pace_us = _PACE_S * welcome.time_scale_milli * 1_000

    def perform(self, command: RuntimeCommand) -> None:
        """Begin a command."""
        if not self._timers.closed:
            self.plant.perform(command)

    async def logs(self, key: AttemptKey, lines: int) -> tuple[str, ...]:
        """What a twin has to say of an attempt."""
        return tuple(self._logs.get(key, [])[-lines:])

    async def close(self, *, keep_work: bool) -> None:
        """Everything ends: the work of a twin cannot outlive it."""
        del keep_work
        self._timers.closed = True
        self._sink = _nobody
        self.plant.close()

    def _tell(self, event: AgentEvent) -> None:
        self._sink(event)

    def _note(self, key: AttemptKey, text: str) -> None:
        self._logs.setdefault(key, []).append(text)
        while len(self._logs) > _LOGS_MAX:
            self._logs.popitem(last=False)


def _nobody(event: AgentEvent) -> None:
    """Hears nothing: before the start and after the end."""
