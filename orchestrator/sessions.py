"""Sessions: the streams of the agents, numbered; what waits to go down each, who waits for a log, whose credential counts.

Decides how much may queue for an agent that does not read. Which of two agents of one name speaks is the core's decision: the
session that the core sends to is the current one. Must not know gRPC.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from atoll.model.assignment import Assignment
from atoll.model.errors import AtollError
from atoll.model.ids import AttemptKey, SiteId
from atoll.model.site import SiteRecord
from orchestrator.core.events import SessionRef
from orchestrator.core.outputs import Refusal
from orchestrator.identity import digest_of
from orchestrator.refusals import RefusedError, unavailable

# Messages that may wait for one agent. Deltas come at most once per placing round; one that has not read this many is stuck,
# and is better served by a snapshot when it comes back.
OUTBOX_MAX: Final = 256
# Twice the sites of the largest fleet: each may have an old stream that nobody has noticed to be dead.
SESSIONS_MAX: Final = 20_000
LOG_REQUESTS_MAX: Final = 64
# How long a join token is still taken from an agent whose stream broke before the credential reached it. The first word of an
# agent that got its credential ends this.
_REJOIN_S: Final = 600.0


class AgentLeft(AtollError):  # noqa: N818 - the usual end of a stream, not an error
    """The agent ended its stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogWanted:
    """Ask the agent for the end of an attempt's log."""

    request: int
    key: AttemptKey
    lines: int


Down = Assignment | LogWanted


class Session:
    """One stream of one agent: what waits to go down, and why it ends."""

    __slots__ = ("_arrived", "_ended", "_outbox", "logs", "ref", "site_id")

    def __init__(self, ref: SessionRef, site_id: SiteId) -> None:
        self.ref = ref
        self.site_id = site_id
        self.logs: dict[int, asyncio.Future[tuple[str, ...]]] = {}
        self._outbox: deque[Down] = deque()
        self._arrived = asyncio.Event()
        self._ended: Exception | None = None

    def send(self, message: Down) -> None:
        """Queue a message; an agent that does not read is cut off instead."""
        if self._ended is not None:
            return
        if len(self._outbox) >= OUTBOX_MAX:
            self._outbox.clear()
            self.end(RefusedError(unavailable(f"the agent of site {self.site_id} left {OUTBOX_MAX} messages unread", 1_000)))
            return
        self._outbox.append(message)
        self._arrived.set()

    def end(self, why: Exception) -> None:
        """End the stream, after what waits."""
        if self._ended is None:
            self._ended = why
            self._arrived.set()

    async def next(self) -> Down:
        """The next message to send. Raises what it was ended with."""
        while not self._outbox:
            if self._ended is not None:
                raise self._ended
            self._arrived.clear()
            await self._arrived.wait()
        return self._outbox.popleft()


class SessionTable:
    """All streams of agents that are open now."""

    def __init__(self) -> None:
        self._refs = itertools.count(1)
        self._requests = itertools.count(1)
        self._open: dict[SessionRef, Session] = {}
        self._current: dict[SiteId, Session] = {}
        self._joins: dict[SiteId, tuple[str, float]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def open(self, site_id: SiteId) -> Session:
        """A new stream. Raises RefusedError when there are too many."""
        if len(self._open) >= SESSIONS_MAX:
            raise RefusedError(unavailable("too many agents are connected", 5_000))
        session = Session(SessionRef(next(self._refs)), site_id)
        self._open[session.ref] = session
        return session

    def closed(self, session: Session) -> None:
        """A stream ended."""
        self._open.pop(session.ref, None)
        if self._current.get(session.site_id) is session:
            del self._current[session.site_id]
        for waiting in session.logs.values():
            if not waiting.done():
                waiting.set_exception(RefusedError(unavailable(f"the agent of site {session.site_id} went away", 1_000)))

    def send(self, ref: SessionRef, message: Assignment) -> None:
        """Send down this stream, which the core takes for the site's; an older one of the same site is at its end."""
        session = self._open.get(ref)
        if session is None:
            return
        older = self._current.get(session.site_id)
        if older is not session:
            self._current[session.site_id] = session
            if older is not None:
                older.end(RefusedError(unavailable(f"a newer stream speaks as site {session.site_id}", 1_000)))
        session.send(message)

    def close(self, ref: SessionRef, refusal: Refusal) -> None:
        """End this stream."""
        session = self._open.get(ref)
        if session is not None:
            session.end(RefusedError(refusal))

    def close_all(self, refusal: Refusal) -> None:
        """End every stream."""
        for session in self._open.values():
            session.end(RefusedError(refusal))

    # --- logs ----------------------------------------------------------------------------------------------------------------

    async def logs(self, site_id: SiteId, key: AttemptKey, lines: int, timeout_s: float) -> tuple[str, ...]:
        """The end of an attempt's log, from its site. Raises RefusedError when the site does not answer in time."""
        session = self._current.get(site_id)
        if session is None:
            raise RefusedError(unavailable(f"site {site_id}, which has the log, is not connected", 5_000))
        if len(session.logs) >= LOG_REQUESTS_MAX:
            raise RefusedError(unavailable(f"too many logs of site {site_id} are being asked for", 1_000))
        request = next(self._requests)
        answer: asyncio.Future[tuple[str, ...]] = asyncio.get_running_loop().create_future()
        session.logs[request] = answer
        session.send(LogWanted(request=request, key=key, lines=lines))
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise RefusedError(unavailable(f"site {site_id} did not send the log within {timeout_s:.0f} s", 1_000)) from None
        finally:
            session.logs.pop(request, None)

    def log_arrived(self, session: Session, request: int, lines: tuple[str, ...]) -> None:
        """An agent answered; an answer to no question is dropped."""
        answer = session.logs.get(request)
        if answer is not None and not answer.done():
            answer.set_result(lines)

    # --- credentials ---------------------------------------------------------------------------------------------------------

    def admit(self, record: SiteRecord, secret: str) -> bool | None:
        """Whether `secret` lets an agent speak as this site: True by its credential, False by a join token (issue one), None not at all."""
        digest = digest_of(secret)
        site_id = record.spec.site_id
        if record.credential_sha256 and hmac.compare_digest(digest, record.credential_sha256):
            self.joined(site_id)
            return True
        if record.join_token_sha256 and hmac.compare_digest(digest, record.join_token_sha256):
            self._joins[site_id] = (digest, time.monotonic())
            return False
        used, at_s = self._joins.get(site_id, ("", 0.0))
        if used and hmac.compare_digest(digest, used) and time.monotonic() - at_s < _REJOIN_S:
            return False
        return None

    def joined(self, site_id: SiteId) -> None:
        """The agent has its credential: the join token is used up for good."""
        self._joins.pop(site_id, None)
