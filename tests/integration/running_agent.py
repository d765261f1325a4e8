"""Agents of twins in this process, and an orchestrator's double that says what a test wants, for tests of the agent's programs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from agents.app import Surroundings, run_site
from agents.channel import Channels
from agents.core.machine import AgentMachine
from agents.driver import AgentDriver
from agents.journal import DiskJournal, Journal, MemoryJournal
from agents.runtime.base import Runtime
from agents.runtime.twin import TwinRuntime
from agents.session import Dial
from agents.telemetry import Metrics
from atoll.model.address import Address, parse_address
from atoll.model.assignment import Assignment
from atoll.model.ids import EventSeq, FleetId, Generation, SiteId, Term
from atoll.model.report import AttemptEvent, SiteHello, SiteReport, Welcome
from atoll.model.site import SiteSpec
from atoll.physics.hidden import HiddenWorld
from atoll.v1 import site_service_pb2 as pb
from atoll.v1.site_service_pb2_grpc import SiteServiceServicer, add_SiteServiceServicer_to_server
from atoll.wire.assignments import assignment_to_proto
from atoll.wire.reports import attempt_events_from_proto, hello_from_proto, report_from_proto, welcome_to_proto
from tests.unit.fleet_of_machines import GPUS

PATIENCE_S = 30.0


@dataclass(slots=True, kw_only=True)
class RunningAgent:
    """An agent's task; `runtime` is what it executes on."""

    task: asyncio.Task[None]
    runtime: Runtime
    stop: asyncio.Event

    async def ended(self) -> None:
        """Wait for its end. Raises what ended it."""
        await asyncio.wait_for(asyncio.shield(self.task), PATIENCE_S)

    async def die(self) -> None:
        """Nothing more is sent or kept, as far as a process can do that to a part of itself."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def twin_of(spec: SiteSpec, seed: int = 1) -> TwinRuntime:
    """The twin of a site of the test catalogue."""
    return TwinRuntime(spec, gpus=GPUS, hidden=HiddenWorld(seed))


@asynccontextmanager
async def agent(
    where: Address | Sequence[Address], site_id: str, runtime: Runtime, *, folder: Path | None = None, **dial: Any
) -> AsyncIterator[RunningAgent]:
    """Run an agent until the block ends."""
    journal: Journal = MemoryJournal() if folder is None else DiskJournal(folder, SiteId(site_id))
    stop = asyncio.Event()
    channels = Channels([where] if isinstance(where, Address) else where, None)
    around = Surroundings(dial=Dial(channels=channels, **dial), metrics=Metrics(), gpus=GPUS)
    task = asyncio.create_task(run_site(SiteId(site_id), runtime, journal, around, stop))
    try:
        yield RunningAgent(task=task, runtime=runtime, stop=stop)
    finally:
        stop.set()
        await asyncio.gather(task, return_exceptions=True)
        await journal.close()
        await channels.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that other tasks bring about."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for is other people's state
            await asyncio.sleep(0.005)


class Stream:
    """One stream of an agent, as the double sees it."""

    def __init__(self, hello: SiteHello, token: str) -> None:
        self.hello = hello
        self.token = token
        self.reports: list[SiteReport] = []
        self.events: list[AttemptEvent] = []
        self.resyncs = 0
        self.logs: list[tuple[str, ...]] = []
        self.down: asyncio.Queue[pb.OrchestratorMessage | grpc.StatusCode] = asyncio.Queue()

    def send(self, assignment: Assignment) -> None:
        """An assignment down."""
        self.down.put_nowait(pb.OrchestratorMessage(assignment=assignment_to_proto(assignment)))

    def cut(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        """End the stream."""
        self.down.put_nowait(code)


class Double(SiteServiceServicer):
    """Speaks SiteService. `refuse` is asked first; `welcome` is what agents are told."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.refuse: tuple[grpc.StatusCode, str, str] | None = None  # code, message, field
        self.credential = ""
        self.term = 1
        self.tries = 0
        self.address = Address(host="127.0.0.1")

    @property
    def welcome(self) -> Welcome:
        return Welcome(
            fleet_id=FleetId("fleet"), term=Term(self.term), time_scale_milli=1_000, report_interval_ms=50, origin_url="", artifacts_url="",
            credential=self.credential,
        )  # fmt: skip

    async def Connect(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.OrchestratorMessage]:  # noqa: N802 - the contract's name
        """One agent."""
        self.tries += 1
        first = await anext(request_iterator)
        if self.refuse is not None:
            code, reason, field = self.refuse
            await context.abort(code, reason, (("atoll-field", field),) if field else ())
        metadata = dict(context.invocation_metadata() or ())
        stream = Stream(hello_from_proto(first.hello), metadata.get("authorization", "").removeprefix("Bearer "))
        yield pb.OrchestratorMessage(welcome=welcome_to_proto(self.welcome))
        self.streams.append(stream)
        reader = asyncio.create_task(self._read(request_iterator, stream))
        try:
            while True:
                message = await stream.down.get()
                if isinstance(message, grpc.StatusCode):
                    await context.abort(message, "cut by the test")
                    return
                yield message
        finally:
            reader.cancel()

    async def _read(self, messages: Any, stream: Stream) -> None:
        async for message in messages:
            match message.WhichOneof("message"):
                case "report":
                    stream.reports.append(report_from_proto(message.report))
                case "events":
                    stream.events += attempt_events_from_proto(message.events)
                case "resync":
                    stream.resyncs += 1
                case "log":
                    stream.logs.append(tuple(message.log.lines))
                case other:
                    raise AssertionError(f"an agent sent {other}")

    def snapshot(self, *attempts: Any, models: tuple[Any, ...] = (), generation: int = 1, acked: int = 0) -> Assignment:
        """A snapshot of this double's fleet."""
        return Assignment(
            fleet_id=FleetId("fleet"), term=Term(self.term), generation=Generation(generation), attempts=attempts, models=models,
            acked_event_seq=EventSeq(acked), confirm_shrink=True,
        )  # fmt: skip

    async def stream(self, number: int) -> Stream:
        """The stream of this number, from 0, once it is there."""
        await until(lambda: len(self.streams) > number)
        return self.streams[number]


@asynccontextmanager
async def double() -> AsyncIterator[Double]:
    """Run a double on a free port."""
    served = Double()
    server = grpc.aio.server()
    add_SiteServiceServicer_to_server(served, server)
    port = server.add_insecure_port("127.0.0.1:0")
    served.address = parse_address("address", f"127.0.0.1:{port}")
    await server.start()
    try:
        yield served
    finally:
        await server.stop(None)


def machine_of(running: RunningAgent) -> AgentMachine:
    """The core of an agent whose runtime was started."""
    sink: Any = running.runtime._sink  # type: ignore[attr-defined] # the twin's way to its driver
    driver: AgentDriver = sink.__self__
    return driver.machine


def is_connected(running: RunningAgent) -> bool:
    """Whether the core has a session."""
    started = hasattr(running.runtime._sink, "__self__")  # type: ignore[attr-defined] # as above
    return started and machine_of(running).state.connected
