"""The session: dials the orchestrator, says hello, carries messages both ways, and dials again.

Decides how often, with which credential, and which refusals are final. What messages mean is the core's business, through the driver.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

import grpc
import grpc.aio
import structlog

from agents.channel import Channels
from agents.driver import AgentDriver, Upward
from agents.journal import Journal, JournalError
from agents.messages import ANSWERED_KEY, FIELD_KEY, last, raise_status, trailer, up
from agents.runtime.base import Runtime
from agents.telemetry import Metrics
from atoll import __version__
from atoll.model.errors import AtollError, FieldError
from atoll.model.ids import AttemptKey, SiteId
from atoll.model.limits import LOG_LINES_MAX
from atoll.model.report import PROTOCOL_VERSION, SiteHello
from atoll.v1 import site_service_pb2 as pb
from atoll.v1.site_service_pb2_grpc import SiteServiceStub
from atoll.whereabouts import LEADER_KEY, Whereabouts
from atoll.wire.assignments import assignment_from_proto
from atoll.wire.attempts import attempt_key_from_proto
from atoll.wire.bounds import part
from atoll.wire.reports import hello_to_proto, welcome_from_proto

_log = structlog.get_logger(__name__)

# The welcome comes after a commit of the orchestrator: seconds at the worst.
WELCOME_TIMEOUT_S: Final = 15.0
# A write waits for the peer's flow control only; a peer that reads nothing for this long is stuck.
WRITE_TIMEOUT_S: Final = 15.0
LOGS_TIMEOUT_S: Final = 10.0
# Messages that may wait to go up: at one a tenth of a second this is half a minute of not being read.
QUEUE_MAX: Final = 256
LOG_REQUESTS_MAX: Final = 16
# What a stream reads at its end; the type stubs lack it.
_EOF: Final[Any] = vars(grpc.aio)["EOF"]
# Retries: soon after a broken stream, patiently while nobody answers. 36 sites at 8 s are five dials a second.
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 8.0
# Another agent under this name may be our own last life, whose stream takes some seconds to die: three times silent_after.
NAME_PATIENCE_S: Final = 15.0


class ExitCode(IntEnum):
    """How an agent's process ends, for whoever supervises it."""

    OK = 0
    FAILED = 1  # our bug
    CONFIG = 2  # nothing was begun: a setting is wrong
    REFUSED = 3  # the orchestrator refuses this agent for good
    UNREACHABLE = 4  # nobody answered within the time that was allowed
    RUNTIME = 5  # what executes cannot be brought up, or cannot work as the orchestrator wants
    STATE = 6  # the state folder cannot be used


class AgentEndedError(AtollError):
    """The agent has to end; `code` says how. `unknown`: the fleet has no such site. `removed`: it had, so what still runs is nobody's."""

    def __init__(self, code: ExitCode, message: str, *, unknown: bool = False, removed: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.unknown = unknown
        self.removed = removed


@dataclass(frozen=True, slots=True, kw_only=True)
class Dial:
    """How to reach the orchestrator, of which there may be several. `give_up_after_s` bounds the time without any session; None: never.

    `name_patience_s`: how long to wait for a name that another agent holds, `site_patience_s`: for a site to be declared.
    """

    channels: Channels
    token: str = field(default="", repr=False)
    give_up_after_s: float | None = None
    name_patience_s: float = NAME_PATIENCE_S
    site_patience_s: float = 0.0

    @property
    def where(self) -> str:
        """The addresses as a person wrote them."""
        return ",".join(map(str, self.channels.orchestrators))


class Link:
    """One open stream, as the driver sees it: messages queue here, one task writes them."""

    __slots__ = ("_arrived", "_queue", "ended")

    def __init__(self) -> None:
        self._queue: deque[Upward | pb.LogChunk] = deque()
        self._arrived = asyncio.Event()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(self, message: Upward | pb.LogChunk) -> None:
        """Queue a message. What does not fit ends the stream: the next one begins with everything."""
        if self.ended.done():
            return
        if len(self._queue) >= QUEUE_MAX:
            self.end(ConnectionError(f"the orchestrator left {QUEUE_MAX} messages unread"))
            return
        self._queue.append(message)
        self._arrived.set()

    def refuse(self, message: str, *, final: bool) -> None:
        """This orchestrator has nothing to say here."""
        self.end(AgentEndedError(ExitCode.REFUSED, message) if final else ConnectionError(message))

    def end(self, why: Exception) -> None:
        """End the stream."""
        if not self.ended.done():
            self.ended.set_exception(why)

    async def next(self) -> Upward | pb.LogChunk:
        """The next message to write."""
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        return self._queue.popleft()


class AgentSession:
    """Keeps one agent connected until it is cancelled."""

    def __init__(
        self,
        *,
        site_id: SiteId,
        boot_id: str,
        dial: Dial,
        credential: str,
        driver: AgentDriver,
        runtime: Runtime,
        journal: Journal,
        metrics: Metrics,
    ) -> None:
        self._site_id = site_id
        self._boot_id = boot_id
        self._dial = dial
        self._whereabouts = Whereabouts(dial.channels.orchestrators)
        self._credential = credential
        self._driver = driver
        self._runtime = runtime
        self._journal = journal
        self._metrics = metrics
        self._log = _log.bind(site=site_id, orchestrator=dial.where)
        self._answering: set[asyncio.Task[None]] = set()
        self._welcomed = False  # in the present try
        self._heard_s = time.monotonic()
        self._name_taken_since_s: float | None = None
        self._site_unknown_since_s: float | None = None
        self._trouble = ""  # the last that was told

    async def run(self) -> None:
        """Dial, serve, dial again. Raises AgentEndedError when that is pointless."""
        pause_s = FIRST_PAUSE_S
        while True:
            self._welcomed = False
            fresh = False
            try:
                await self._serve()
            except AgentEndedError:
                self._metrics.dialled(self._site_id, "refused")
                raise
            except grpc.aio.AioRpcError as error:
                self._judge(error)
                fresh = self._turn(error)
                unknown = error.code() is grpc.StatusCode.NOT_FOUND
                self._tell_trouble(f"{error.code().name}: {error.details()}", "site_unknown" if unknown else "orchestrator_unreachable")
            except (FieldError, ConnectionError, TimeoutError) as error:
                fresh = self._whereabouts.unanswered()
                self._tell_trouble(str(error) or "no answer in time")
            if self._welcomed:
                pause_s, self._heard_s = FIRST_PAUSE_S, time.monotonic()
                self._name_taken_since_s = self._site_unknown_since_s = None
            self._check_patience()
            # Full jitter: agents that lost the same orchestrator come back spread over the pause.
            await asyncio.sleep(random.uniform(pause_s / 2, pause_s))
            # Once nobody is left who was not asked since the last pause grew.
            pause_s = pause_s if fresh else min(pause_s * 2, LONGEST_PAUSE_S)

    def _turn(self, error: grpc.aio.AioRpcError) -> bool:
        """Who is dialled next; whether that one was not asked yet, in this round."""
        leader, where = trailer(error, LEADER_KEY), self._whereabouts
        if leader:
            return where.told(leader)
        # Without a word of the orchestrator's own it is gRPC that says so.
        return where.troubled() if trailer(error, ANSWERED_KEY) else where.unanswered()

    def _tell_trouble(self, reason: str, trouble: str = "orchestrator_unreachable") -> None:
        """Once per trouble, not once per try."""
        self._metrics.dialled(self._site_id, "lost" if self._welcomed else "failed")
        if self._welcomed or trouble != self._trouble:
            self._trouble = trouble
            self._log.warning("orchestrator_lost" if self._welcomed else trouble, reason=reason, advice="dialling on")

    def _check_patience(self) -> None:
        allowed_s = self._dial.give_up_after_s
        if allowed_s is not None and time.monotonic() - self._heard_s > allowed_s:
            message = f"no orchestrator answered at {self._dial.where} for {allowed_s:.0f} s: is it running there?"
            raise AgentEndedError(ExitCode.UNREACHABLE, message)

    def _judge(self, error: grpc.aio.AioRpcError) -> None:
        """Raise AgentEndedError if dialling again cannot help."""
        code, field = error.code(), trailer(error, FIELD_KEY)
        said = f"the orchestrator at {self._dial.where} refuses site {self._site_id}: {error.details()}"
        match code:
            case grpc.StatusCode.UNAUTHENTICATED if self._credential and self._dial.token and not self._welcomed:
                # The credential is of an orchestrator that is gone; a new join token may be at hand.
                self._credential = ""
            case grpc.StatusCode.NOT_FOUND:
                self._await_site(said)
            case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
                raise AgentEndedError(ExitCode.REFUSED, said)
            case grpc.StatusCode.UNIMPLEMENTED:
                raise AgentEndedError(ExitCode.REFUSED, f"what listens at {self._dial.where} is not an Atoll orchestrator")
            case grpc.StatusCode.ALREADY_EXISTS:
                self._await_name(said)
            case grpc.StatusCode.FAILED_PRECONDITION | grpc.StatusCode.INVALID_ARGUMENT if not self._welcomed:
                if field == "site_id":
                    self._await_name(said)
                else:
                    raise AgentEndedError(ExitCode.REFUSED, said)
            case _:
                pass

    def _await_site(self, said: str) -> None:
        """After a welcome the site was known: it was removed. Before one it may be declared yet, or this be the wrong orchestrator."""
        self._heard_s = time.monotonic()
        self._site_unknown_since_s = self._site_unknown_since_s or self._heard_s
        patience_s, give_up_s = self._dial.site_patience_s, self._dial.give_up_after_s
        allowed_s = patience_s if give_up_s is None else min(patience_s, give_up_s)
        if self._welcomed or self._heard_s - self._site_unknown_since_s >= allowed_s:
            raise AgentEndedError(ExitCode.REFUSED, said, unknown=True, removed=self._welcomed)

    def _await_name(self, said: str) -> None:
        now_s = time.monotonic()
        self._name_taken_since_s = self._name_taken_since_s or now_s
        if now_s - self._name_taken_since_s > self._dial.name_patience_s:
            raise AgentEndedError(ExitCode.REFUSED, said)

    # --- one stream ----------------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """One stream, from hello to its end. Returns or raises what ended it."""
        secret = self._credential or self._dial.token
        stub: Any = SiteServiceStub(self._dial.channels.to(self._whereabouts.current))
        call = stub.Connect(metadata=(("authorization", f"Bearer {secret}"),) if secret else ())
        link = Link()
        writer: asyncio.Task[None] | None = None
        reader: asyncio.Task[None] | None = None
        try:
            hello = pb.AgentMessage(hello=hello_to_proto(self._hello()))
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await call.write(hello)
            await self._greet(call, link)
            writer = asyncio.create_task(self._write(call, link))
            reader = asyncio.create_task(self._read(call, link))
            done, _ = await asyncio.wait({writer, reader, link.ended}, return_when=asyncio.FIRST_COMPLETED)
            for ended in (link.ended, reader, writer):
                if ended in done:
                    ended.result()
        except asyncio.InvalidStateError:
            # Writing to a call that is over: its status says why.
            await raise_status(call)
        finally:
            self._driver.closed(link)
            self._metrics.connected(self._site_id, yes=False)
            call.cancel()
            tasks = [task for task in (writer, reader, *self._answering) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if link.ended.done():
                link.ended.exception()  # looked at: it may have come after another end

    def _hello(self) -> SiteHello:
        state = self._driver.machine.state
        return SiteHello(
            site_id=self._site_id,
            fleet_id=state.fleet_id,
            term=state.term,
            protocol_version=PROTOCOL_VERSION,
            agent_version=__version__,
            boot_id=self._boot_id,
            runtime=self._runtime.kind,
            pools=self._runtime.pools,
            next_event_seq=state.next_event_seq,
        )

    async def _greet(self, call: Any, link: Link) -> None:
        """Wait for the welcome; keep the credential that it brings before anything else is said."""
        async with asyncio.timeout(WELCOME_TIMEOUT_S):
            first = await call.read()
        if first is _EOF:
            await raise_status(call)
        if first.WhichOneof("message") != "welcome":
            raise FieldError("message", first.WhichOneof("message"), "a welcome, first")
        welcome = part("welcome", first.welcome, welcome_from_proto)
        if welcome.credential:
            try:
                await self._journal.keep_credential(welcome.credential)
            except JournalError as error:
                raise AgentEndedError(ExitCode.STATE, str(error)) from error
            self._credential = welcome.credential
        try:
            self._driver.opened(link, welcome)
        except AtollError as error:
            raise AgentEndedError(ExitCode.RUNTIME, str(error)) from error
        self._welcomed, self._trouble = True, ""
        self._whereabouts.answered()
        self._metrics.connected(self._site_id, yes=True)
        self._metrics.dialled(self._site_id, "welcomed")
        self._log.info(
            "connected",
            at=str(self._whereabouts.current),
            fleet=welcome.fleet_id,
            term=welcome.term,
            time_scale_milli=welcome.time_scale_milli,
        )

    async def _read(self, call: Any, link: Link) -> None:
        """Hand in what comes down. Silence is no end: the keep-alive pings of the channel find a dead peer."""
        while True:
            message = await call.read()
            if message is _EOF:
                await raise_status(call)
            match message.WhichOneof("message"):
                case "assignment":
                    self._driver.assigned(link, part("assignment", message.assignment, assignment_from_proto))
                case "log_request":
                    self._answer_logs(link, message.log_request)
                case other:
                    raise FieldError("message", other, "an assignment or a log request")

    async def _write(self, call: Any, link: Link) -> None:
        while True:
            message = up(await link.next())
            # Not `wait_for`: before Python 3.12 it can swallow a cancellation, and this task would live on.
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await call.write(message)

    def _answer_logs(self, link: Link, request: pb.LogRequest) -> None:
        if len(self._answering) >= LOG_REQUESTS_MAX:
            return  # whoever asked gives up by a deadline of their own
        key = part("log_request.key", request.key, attempt_key_from_proto)
        lines = min(max(request.lines, 1), LOG_LINES_MAX)
        task = asyncio.create_task(self._send_logs(link, request.request, key, lines))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _send_logs(self, link: Link, request: int, key: AttemptKey, lines: int) -> None:
        try:
            async with asyncio.timeout(LOGS_TIMEOUT_S):
                found = await self._runtime.logs(key, lines)
        except (AtollError, OSError, TimeoutError) as error:
            self._log.warning("logs_failed", attempt=str(key), error=str(error) or "no answer in time")
            found = ()
        link.send(pb.LogChunk(request=request, lines=last(found, lines)))
