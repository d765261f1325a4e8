"""Attempts that execute at a site: each in one slot's process, or in those of a gang, which work on it together.

Decides when an attempt is over and what its end is. It is over when no member works on it any more, not before: the slots are free then.
The lead's committed result counts before anything else, then what failed in a member, then that it was stopped; that members lost each
other is told only where nothing else explains it.

Members of a gang meet by themselves (`agents.engine.gang`), each given its order and the name of a file in a folder that only this user
may read. Whoever fails, halts or dies breaks the others' connections; besides they are told to stop, and a process that has not done so
after a grace is ended, so that no member holds its slot for a gang that can come to nothing. An agent that comes back finds a gang where
each member still works on it or has ended; if a member is missing the others are stopped, and what is told is that the gang is not whole.

Must not know why anything is wanted, nor how members share the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from agents.core.events import AttemptErrored, AttemptFinished, AttemptHalted
from agents.core.gangs import block, lead_of
from agents.core.outputs import RunAttempt
from agents.engine.errors import failure_of
from agents.runtime.attempt_files import file_name
from agents.runtime.base import Sink
from agents.runtime.execution import NO_TIMES, MemberEnd, ShareEnded
from agents.runtime.open_attempts import OpenAttempts
from agents.runtime.ray_slots import SlotGoneError, SlotKeeper
from agents.runtime.slot_state import SlotState
from atoll.model.attempt import FailureKind, ResultManifest
from atoll.model.errors import AtollError, StateError
from atoll.model.ids import AttemptKey, SlotRef

_log = structlog.get_logger(__name__)

# The end of an attempt is on the agent's disk within milliseconds of being told; until surely then, it can be told again.
_SETTLE_S: Final = 5.0
# A member is told to stop when another ended badly, and connections that broke wake it: one that still works after this hangs. Its
# steps may be long, but without the others it cannot finish the one it is in.
STRAGGLER_S: Final = 30.0


@dataclass(slots=True, kw_only=True, eq=False)
class _Run:
    """One attempt and its members, the lead first. `ends`: of those that work on it no more; None: the process died."""

    key: AttemptKey
    members: tuple[SlotKeeper, ...]
    ends: dict[SlotRef, MemberEnd | None] = field(default_factory=dict)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: bool = False
    told: bool = False
    straggling: asyncio.TimerHandle | None = None

    def end(self) -> AttemptFinished | AttemptErrored | AttemptHalted | None:
        """What is told once it is over; None where the loss of a slot tells it."""
        ends = [self.ends[keeper.ref] for keeper in self.members]
        finished = [end for end in ends if isinstance(end, AttemptFinished)]
        errors = [end for end in ends if isinstance(end, AttemptErrored)]
        telling = [end for end in errors if end.failure.kind is not FailureKind.RUNTIME_LOST]
        if finished or telling:
            return finished[0] if finished else telling[0]
        if None in ends:
            return None
        return AttemptHalted(key=self.key) if self.stopped or not errors else errors[0]


class Runs:
    """All attempts of a site that are not over. Methods are called on the agent's event loop."""

    def __init__(self, *, attempts: OpenAttempts, meetings: Path, tell: Sink, spawn: Callable[[Coroutine[None, None, None]], None]) -> None:
        """`meetings`: a folder of this user alone, for the files by which the members of a gang meet."""
        self._attempts = attempts
        self._meetings = meetings
        self._tell = tell
        self._spawn = spawn
        self._runs: dict[AttemptKey, _Run] = {}
        self._timers: set[asyncio.TimerHandle] = set()

    # --- commands -------------------------------------------------------------------------------------------------------------

    def begin(self, command: RunAttempt, members: tuple[SlotKeeper, ...], artifacts_url: str | None) -> None:
        """Order an attempt from its slots, as soon as none of them is at the end of another that broke."""
        earlier = [run for run in self._runs.values() if not set(run.members).isdisjoint(members)]
        run = self._runs[command.key] = _Run(key=command.key, members=members)
        self._spawn(self._begin(run, command, artifacts_url, earlier))

    async def _begin(self, run: _Run, command: RunAttempt, artifacts_url: str | None, earlier: Iterable[_Run]) -> None:
        for other in earlier:
            await other.over.wait()
        if run.over.is_set():
            return  # stopped while it waited
        try:
            if artifacts_url is None:
                raise StateError("no orchestrator has told where results go")
            self._attempts.open(run.key, artifacts_url)
            meeting = self._meeting(run) if len(run.members) > 1 else ""
        except (AtollError, OSError) as error:
            for keeper in run.members:
                self._member_ended(run, keeper, _failed(run.key, error))
            return
        for keeper in run.members:
            keeper.running = run.key
        orders = (keeper.call("run", command, artifacts_url, meeting) for keeper in run.members)
        for keeper, problem in zip(run.members, await asyncio.gather(*orders, return_exceptions=True), strict=True):
            if isinstance(problem, SlotGoneError):
                self._member_ended(run, keeper, None)  # its loss is told
            elif isinstance(problem, AtollError | OSError):
                self._member_ended(run, keeper, _failed(run.key, problem))
            elif problem is not None:
                raise problem

    def _meeting(self, run: _Run) -> str:
        """A file that is not there yet."""
        self._meetings.mkdir(mode=0o700, exist_ok=True)
        path = self._meetings / file_name(run.key)
        path.unlink(missing_ok=True)
        return str(path)

    def stop(self, key: AttemptKey, keeper: SlotKeeper) -> None:
        """Stop an attempt in all its slots; one that is not known, in the slot of `keeper`."""
        run = self._runs.get(key)
        if run is None:
            self._spawn(_call(keeper, "stop", key))
            return
        run.stopped = True
        for member in run.members:
            self._spawn(_call(member, "stop", key))

    # --- what members say -----------------------------------------------------------------------------------------------------

    def ended(self, keeper: SlotKeeper, end: MemberEnd) -> None:
        """A slot works on an attempt no more."""
        run = self._runs.get(end.key)
        if run is not None:
            self._member_ended(run, keeper, end)
        elif not isinstance(end, ShareEnded):
            self._tell(end)
            self._settle_later(end.key, (keeper,))

    async def lost(self, keeper: SlotKeeper) -> None:
        """A slot's process died. Returns when no member works any more on the attempt that it executed, and its result, if it
        committed one, is told."""
        key = keeper.running
        run = self._runs.get(key) if key is not None else None
        if key is None or run is None:
            keeper.running = None
            return
        # One that had done its share leaves the others alone: they need it no more.
        self._member_ended(run, keeper, None)
        await run.over.wait()
        result = await self._attempts.committed(key) if not run.told else None
        if result is not None and not run.told:
            run.told = True
            self._tell(AttemptFinished(key=key, manifest=result.manifest, times=result.times))
        self._settle_later(key, ())

    def _member_ended(self, run: _Run, keeper: SlotKeeper, end: MemberEnd | None) -> None:
        run.ends.setdefault(keeper.ref, end)
        if len(run.ends) == len(run.members):
            self._over(run)
        elif not isinstance(run.ends[keeper.ref], ShareEnded) and run.straggling is None:
            rest = [member for member in run.members if member.ref not in run.ends]
            for member in rest:
                self._spawn(_call(member, "stop", run.key))
            run.straggling = asyncio.get_running_loop().call_later(STRAGGLER_S, self._end_stragglers, run)

    def _end_stragglers(self, run: _Run) -> None:
        for keeper in run.members:
            if keeper.ref not in run.ends:
                _log.warning("gang_straggler_killed", slot=keeper.name, attempt=str(run.key))
                self._spawn(keeper.kill())

    def _over(self, run: _Run) -> None:
        if run.over.is_set():
            return
        if run.straggling is not None:
            run.straggling.cancel()
        self._runs.pop(run.key, None)
        for keeper in run.members:
            if keeper.running == run.key:
                keeper.running = None
        end = run.end()
        if end is not None:
            run.told = True
            self._tell(end)
        self._settle_later(run.key, run.members)
        run.over.set()

    # --- an agent that comes back -----------------------------------------------------------------------------------------------

    async def recover(self, states: dict[SlotKeeper, SlotState]) -> Recovered:
        """What an earlier agent left: attempts that execute or ended since, and those whose slots are gone."""
        found = Recovered()
        by_slot = {keeper.ref: keeper for keeper in states}
        keys = {state.key: state.gang_size for state in states.values() if state.key is not None}
        for key, gang_size in keys.items():
            there = {keeper: state for keeper, state in states.items() if state.key == key}
            lead = lead_of(next(iter(there)).ref, gang_size)
            members = tuple(by_slot[ref] for ref in block(lead, gang_size) if ref in by_slot and by_slot[ref] in there)
            await self._recover(key, members, gang_size, there, found)
        for key in self._attempts.open_keys() - keys.keys():
            # Its slot is gone: committed, or lost with it.
            result = await self._attempts.committed(key)
            if result is not None:
                found.finished.append(result.manifest)
            self._settle_later(key, ())
        return found

    async def _recover(
        self, key: AttemptKey, members: tuple[SlotKeeper, ...], gang_size: int, states: dict[SlotKeeper, SlotState], found: Recovered
    ) -> None:
        for keeper in members:
            keeper.running = None
        ends = {keeper: end for keeper in members if (end := states[keeper].ended) is not None}
        if len(members) < gang_size:
            # Not whole: nobody goes on with it.
            for keeper in members:
                if keeper not in ends:
                    await keeper.give_up(key, STRAGGLER_S)
        finished = [end.manifest for end in ends.values() if isinstance(end, AttemptFinished)]
        if len(members) < gang_size and not finished and (result := await self._attempts.committed(key)) is not None:
            finished.append(result.manifest)
        if finished and (len(members) < gang_size or len(ends) == gang_size):
            found.finished.extend(finished[:1])
            self._settle_later(key, members)
            return
        found.running |= {keeper.ref: (key, gang_size) for keeper in members}
        if len(members) < gang_size:
            self._settle_later(key, members)
            return
        # RuntimeStarted has no place for a bad end: it executes, and a moment later it ended so.
        run = self._runs[key] = _Run(key=key, members=members)
        for keeper in members:
            keeper.running = key
        found.later.extend((run, keeper, end) for keeper, end in ends.items())

    def resume(self, found: Recovered) -> None:
        """Go on with what was recovered, once the agent's next turn has come."""
        loop = asyncio.get_running_loop()
        for run, keeper, end in found.later:
            loop.call_soon(self._member_ended, run, keeper, end)

    # --- ends that were told ----------------------------------------------------------------------------------------------------

    def _settle_later(self, key: AttemptKey, members: tuple[SlotKeeper, ...]) -> None:
        """The end of an attempt was told; once the agent has surely kept it, nobody needs to remember it for him."""

        def settle() -> None:
            self._timers.discard(timer)
            self._attempts.settle(key)
            for keeper in members:
                self._spawn(_call(keeper, "forget", key))

        timer = asyncio.get_running_loop().call_later(_SETTLE_S, settle)
        self._timers.add(timer)

    def close(self) -> None:
        """Leave everything as it is."""
        for timer in self._timers:
            timer.cancel()
        for run in self._runs.values():
            if run.straggling is not None:
                run.straggling.cancel()


@dataclass(slots=True, kw_only=True)
class Recovered:
    """Attempts that an earlier agent left: by slot, with their gang sizes; results; and ends that are told once the agent goes on."""

    running: dict[SlotRef, tuple[AttemptKey, int]] = field(default_factory=dict)
    finished: list[ResultManifest] = field(default_factory=list)
    later: list[tuple[_Run, SlotKeeper, MemberEnd]] = field(default_factory=list)


def _failed(key: AttemptKey, error: AtollError | OSError) -> AttemptErrored:
    return AttemptErrored(key=key, failure=failure_of(error, FailureKind.INTERNAL), times=NO_TIMES)


async def _call(keeper: SlotKeeper, method: str, *arguments: object) -> None:
    try:
        await keeper.call(method, *arguments)
    except SlotGoneError as error:
        _log.info("slot_call_dropped", method=method, error=str(error))
