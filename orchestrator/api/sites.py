"""SiteService: the one stream of each agent, which dialled out.

Decides who may speak as a site; turns messages into events, and what the core wants said into messages. Whether a hello is
accepted is the core's decision; the welcome is sent once that is durable, because it may carry the agent's only credential.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, assert_never, cast

import structlog

from atoll.model.assignment import Assignment
from atoll.model.errors import FieldError, StateError
from atoll.model.ids import FleetId, Term
from atoll.model.report import PROTOCOL_VERSION, SiteHello, Welcome
from atoll.v1 import site_service_pb2 as pb
from atoll.v1.site_service_pb2_grpc import SiteServiceServicer
from atoll.wire.assignments import assignment_to_proto
from atoll.wire.attempts import attempt_key_to_proto
from atoll.wire.bounds import part
from atoll.wire.reports import (
    attempt_events_from_proto,
    hello_from_proto,
    log_lines,
    report_from_proto,
    welcome_to_proto,
)
from orchestrator.api.auth import Authenticator, bearer
from orchestrator.api.interceptor import Context
from orchestrator.api.status import ForbiddenError, UnauthenticatedError
from orchestrator.core.events import (
    AttemptsEnded,
    Event,
    ResyncRequested,
    SiteConnected,
    SiteDisconnected,
    SiteReported,
)
from orchestrator.driver import Driver
from orchestrator.identity import digest_of, new_secret
from orchestrator.sessions import AgentLeft, Down, LogWanted, Session, SessionTable

_log = structlog.get_logger(__name__)

# An agent has its hello ready when it dials: what takes longer is no agent.
HELLO_TIMEOUT_S: Final = 10.0
_CREDENTIAL_PREFIX: Final = "atoll-site"


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What every agent is told."""

    report_interval_ms: int
    origin_url: str
    artifacts_url: str


class SiteService(SiteServiceServicer):
    """The servicer. Errors are raised; the interceptor maps them."""

    def __init__(self, *, driver: Driver, sessions: SessionTable, authenticator: Authenticator, greeting: Greeting) -> None:
        self._driver = driver
        self._sessions = sessions
        self._authenticator = authenticator
        self._greeting = greeting
        self._farewells: set[asyncio.Task[None]] = set()

    async def Connect(self, request_iterator: Any, context: Context) -> AsyncIterator[pb.OrchestratorMessage]:
        """One agent, from its hello to its end."""
        messages = cast("AsyncIterator[pb.AgentMessage]", request_iterator)
        hello = await _hello(messages)
        credential = self._authenticate(hello, context)
        session = self._sessions.open(hello.site_id)
        reader: asyncio.Task[None] | None = None
        try:
            await self._driver.tell(
                SiteConnected(
                    site_id=hello.site_id,
                    session=session.ref,
                    hello=hello,
                    credential_sha256=digest_of(credential) if credential else "",
                )
            )
            # The core's first word to a stream that it accepts is a snapshot; it comes once the credential is durable.
            first = await session.next()
            assert isinstance(first, Assignment)
            _log.info("site_connected", site=hello.site_id, boot_id=hello.boot_id, agent_version=hello.agent_version)
            yield pb.OrchestratorMessage(welcome=welcome_to_proto(self._welcome(first.fleet_id, first.term, credential)))
            reader = asyncio.create_task(self._read(messages, session))
            yield _message(first)
            while True:
                yield _message(await session.next())
        except AgentLeft:
            return
        finally:
            if reader is not None:
                reader.cancel()
            self._sessions.closed(session)
            # On a task of its own: this one may be on its way out for good.
            self._tell_later(SiteDisconnected(site_id=hello.site_id, session=session.ref))

    def _authenticate(self, hello: SiteHello, context: Context) -> str:
        """A credential to issue, "" for none. Raises UnauthenticatedError or ForbiddenError."""
        if not self._authenticator.required:
            return ""
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        secret = bearer(metadata.get("authorization"))
        if not secret:
            raise UnauthenticatedError("a join token or a site's credential is needed: send the metadata 'authorization: Bearer TOKEN'")
        record = self._driver.machine.site_credential(hello.site_id)
        admitted = self._sessions.admit(record, secret) if record is not None else None
        if admitted is None:
            if not self._authenticator.knows(secret):
                raise UnauthenticatedError(f"the token is not one of site {hello.site_id}: a join token is good for one site, and once")
            # Who rehearses a fleet speaks for all its sites.
            if not self._authenticator.caller(f"Bearer {secret}").operator:
                raise ForbiddenError(f"only an operator may speak as site {hello.site_id} without its token")
            return ""
        return "" if admitted else new_secret(_CREDENTIAL_PREFIX)

    def _welcome(self, fleet_id: FleetId, term: Term, credential: str) -> Welcome:
        return Welcome(
            fleet_id=fleet_id,
            term=term,
            time_scale_milli=self._driver.clock.time_scale_milli,
            report_interval_ms=self._greeting.report_interval_ms,
            origin_url=self._greeting.origin_url,
            artifacts_url=self._greeting.artifacts_url,
            credential=credential,
        )

    async def _read(self, messages: AsyncIterator[pb.AgentMessage], session: Session) -> None:
        """Hand in what the agent says, until it ends."""
        try:
            async for message in messages:
                self._sessions.joined(session.site_id)
                await self._take(message, session)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the stream with its own status
            session.end(error)
        else:
            session.end(AgentLeft("the agent ended its stream"))

    async def _take(self, message: pb.AgentMessage, session: Session) -> None:
        site_id, ref = session.site_id, session.ref
        match message.WhichOneof("message"):
            case "report":
                report = part("report", message.report, report_from_proto)
                await self._driver.tell(SiteReported(site_id=site_id, session=ref, report=report))
            case "events":
                events = part("events", message.events, attempt_events_from_proto)
                await self._driver.tell(AttemptsEnded(site_id=site_id, session=ref, events=events))
            case "resync":
                await self._driver.tell(ResyncRequested(site_id=site_id, session=ref))
            case "log":
                self._sessions.log_arrived(session, message.log.request, log_lines(list(message.log.lines)))
            case "hello":
                raise FieldError("message", "hello", "one hello, first")
            case _:
                raise FieldError("message", "(nothing)", "a report, events, a resync request or a log")

    def _tell_later(self, event: Event) -> None:
        task = asyncio.create_task(self._driver.tell(event))
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)


async def _hello(messages: AsyncIterator[pb.AgentMessage]) -> SiteHello:
    """The first message. Raises FieldError or StateError."""
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            first = await anext(messages, None)
    except TimeoutError:
        raise StateError(f"no hello came within {HELLO_TIMEOUT_S:.0f} s") from None
    if first is None or first.WhichOneof("message") != "hello":
        raise FieldError("message", first and first.WhichOneof("message"), "a hello, first")
    # Before anything else of it is read: another version may mean other things by the same fields.
    if first.hello.protocol_version != PROTOCOL_VERSION:
        raise StateError(
            f"the agent speaks protocol {first.hello.protocol_version}, this orchestrator {PROTOCOL_VERSION}: install the same version"
        )
    return part("hello", first.hello, hello_from_proto)


def _message(down: Down) -> pb.OrchestratorMessage:
    match down:
        case Assignment():
            return pb.OrchestratorMessage(assignment=assignment_to_proto(down))
        case LogWanted(request=request, key=key, lines=lines):
            return pb.OrchestratorMessage(log_request=pb.LogRequest(request=request, key=attempt_key_to_proto(key), lines=lines))
        case _:
            assert_never(down)
