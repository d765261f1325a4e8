"""One slot as the runtime sees it: its actor found or made, heard, called, and made again when it died.

Decides when a slot's process counts as dead and how soon the next one is tried. Must not know what notices mean.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog

from agents.runtime import ray_driver
from agents.runtime.cluster import ClusterError
from agents.runtime.hardware import SlotPlan
from agents.runtime.slot_state import ACTOR_VERSION, Notice, SlotOptions, SlotState
from atoll.model.errors import AtollError
from atoll.model.ids import AttemptKey, SlotRef

_log = structlog.get_logger(__name__)

# How long a slot's process waits for something to say; between two answers it must come round this often.
_POLL_S: Final = 10.0
# Importing and loading can hold the interpreter for tens of seconds; a process silent for longer than this hangs.
_SILENCE_S: Final = 120.0
# Ray says "unavailable" while it finds out whether a process died; it needs a few seconds for that.
_UNAVAILABLE_S: Final = 15.0
_UNAVAILABLE_PAUSE_S: Final = 0.2
# A slot that dies again and again (a broken driver, no memory) must not keep the host busy with imports.
_BACKOFF_S: Final = (0.5, 1.0, 2.0, 5.0, 15.0, 30.0)
# A process that lived this long has no part in the trouble of the one before it.
_STEADY_S: Final = 60.0
# The name of a dead actor is free again within about a second.
_NAME_TRIES: Final = 50
_NAME_PAUSE_S: Final = 0.2


class SlotGoneError(AtollError):
    """The slot's process died or is being made."""


class SlotKeeper:
    """Keeps one slot's process. `hear` gets its notices, `lost` and `ready` the ends and beginnings of processes."""

    def __init__(
        self,
        *,
        plan: SlotPlan,
        name: str,
        options: SlotOptions,
        seat: ray_driver.Seat,
        start_timeout_s: float,
        hear: Callable[[SlotKeeper, Notice], None],
        lost: Callable[[SlotKeeper, str], Awaitable[None]],
        ready: Callable[[SlotKeeper], None],
    ) -> None:
        self.ref: SlotRef = plan.ref
        self.name = name
        self.running: AttemptKey | None = None
        self.pid = 0  # of the process, for people who read logs
        self._options = options
        self._seat = seat
        self._start_timeout_s = start_timeout_s
        self._hear = hear
        self._lost = lost
        self._ready = ready
        self._actor: Any | None = None
        self._seq = 0
        self._since_s = 0.0
        self._deaths = 0

    async def begin(self) -> SlotState:
        """Find the process that an earlier agent left, or make one. ClusterError if neither works in time."""
        actor = await asyncio.to_thread(ray_driver.find_actor, self.name)
        if actor is not None:
            try:
                state = await self._attach(actor)
                if state.version == ACTOR_VERSION:
                    return state
                _log.warning("slot_outdated", slot=self.name, version=state.version, expected=ACTOR_VERSION)
            except ClusterError as error:
                _log.warning("slot_not_adopted", slot=self.name, error=str(error))
            await asyncio.to_thread(ray_driver.kill_actor, actor)
        return await self._make()

    async def keep(self) -> None:
        """Hear the process; when it dies, say so and make another. Until cancelled."""
        while True:
            reason = await self._listen()
            self._actor = None
            if time.monotonic() - self._since_s > _STEADY_S:
                self._deaths = 0
            await self._lost(self, reason)
            await self._revive()
            self._ready(self)

    async def kill(self) -> None:
        """End the process; `keep` says that it died."""
        if self._actor is not None:
            await asyncio.to_thread(ray_driver.kill_actor, self._actor)

    async def give_up(self, key: AttemptKey, wait_s: float) -> None:
        """Have nothing of an attempt execute here any more, by an end of the process if need be. Before `keep`."""
        from ray.exceptions import RayError

        assert self._actor is not None, "a process was attached"
        try:
            async with asyncio.timeout(wait_s + _UNAVAILABLE_S):
                over = await self._actor.give_up.remote(key, wait_s)
        except (TimeoutError, RayError) as error:
            _log.warning("slot_gives_nothing_up", slot=self.name, error=_one_line(error))
            over = False
        if not over:
            await self.kill()

    async def call(self, method: str, *arguments: object) -> None:
        """Call a method of the process. SlotGoneError if there is none any more; else what the method raises."""
        actor = self._actor
        if actor is None:
            raise SlotGoneError(f"slot {self.name} has no process just now")
        from ray.exceptions import RayActorError

        try:
            await getattr(actor, method).remote(*arguments)
        except RayActorError as error:
            raise SlotGoneError(f"slot {self.name} lost its process: {_one_line(error)}") from error

    async def _make(self) -> SlotState:
        for _ in range(_NAME_TRIES):
            try:
                actor = await asyncio.to_thread(ray_driver.make_actor, self.name, self._options, self._seat)
            except ValueError:
                await asyncio.sleep(_NAME_PAUSE_S)
                continue
            try:
                return await self._attach(actor)
            except ClusterError:
                await asyncio.to_thread(ray_driver.kill_actor, actor)
                raise
        raise ClusterError(f"the name {self.name} stays taken in the Ray cluster")

    async def _attach(self, actor: Any) -> SlotState:
        from ray.exceptions import RayError

        try:
            async with asyncio.timeout(self._start_timeout_s):
                state: SlotState = await actor.attach.remote()
        except TimeoutError:
            raise ClusterError(f"slot {self.name} did not start within {self._start_timeout_s:g} s") from None
        except RayError as error:
            raise ClusterError(f"slot {self.name} did not start: {_one_line(error)}") from error
        self._actor, self._seq, self.running, self.pid = actor, state.seq, state.running, state.pid
        self._since_s = time.monotonic()
        _log.info("slot_up", slot=self.name, pid=self.pid)
        return state

    async def _listen(self) -> str:
        """Hear the process until it dies; why it did."""
        from ray.exceptions import ActorUnavailableError, RayError

        actor = self._actor
        assert actor is not None, "a process was attached"
        unavailable_since_s: float | None = None
        while True:
            try:
                async with asyncio.timeout(_POLL_S + _SILENCE_S):
                    seq, notices = await actor.poll.remote(self._seq, _POLL_S)
            except ActorUnavailableError as error:
                now_s = time.monotonic()
                unavailable_since_s = unavailable_since_s or now_s
                if now_s - unavailable_since_s < _UNAVAILABLE_S:
                    await asyncio.sleep(_UNAVAILABLE_PAUSE_S)
                    continue
                await asyncio.to_thread(ray_driver.kill_actor, actor)
                return _one_line(error)
            except TimeoutError:
                await asyncio.to_thread(ray_driver.kill_actor, actor)
                return f"the process did not answer for {_SILENCE_S:g} s"
            except RayError as error:
                return _one_line(error)
            unavailable_since_s = None
            self._seq = seq
            for notice in notices:
                self._hear(self, notice)

    async def _revive(self) -> None:
        while True:
            await asyncio.sleep(_BACKOFF_S[min(self._deaths, len(_BACKOFF_S) - 1)])
            self._deaths += 1
            try:
                await self._make()
            except ClusterError as error:
                _log.warning("slot_not_revived", slot=self.name, error=str(error))
            else:
                return


def _one_line(error: Exception) -> str:
    """Ray's messages are pages; the last sentence of the first ones says what happened."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:150]} ... {text[-145:]}"
