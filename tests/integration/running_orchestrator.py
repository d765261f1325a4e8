"""A real orchestrator in this process (own port, own SQLite file), and a small agent that speaks the protocol, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from atoll.model.address import Address
from atoll.model.attempt import Artifact, AttemptState, Failure, FailureKind, PhaseTimes, ResultManifest
from atoll.model.ids import AttemptKey, EventSeq, FleetId, Generation, NodeId, PoolId, SiteId, Term
from atoll.model.modelspec import ModelSpec
from atoll.model.replica import ReplicaFact
from atoll.model.report import PROTOCOL_VERSION, AttemptEvent, AttemptProgress, NodeFacts, RateFacts, SiteHello, SiteReport, SlotFacts
from atoll.model.site import LinkSpec, PoolSpec, SiteRuntime, SiteSpec
from atoll.v1 import job_service_pb2 as jobs_pb
from atoll.v1 import operator_service_pb2 as operators_pb
from atoll.v1 import site_service_pb2 as sites_pb
from atoll.v1 import types_pb2
from atoll.v1.job_service_pb2_grpc import JobServiceStub
from atoll.v1.operator_service_pb2_grpc import OperatorServiceStub
from atoll.v1.site_service_pb2_grpc import SiteServiceStub
from atoll.wire.attempts import attempt_key_from_proto
from atoll.wire.models import model_spec_to_proto
from atoll.wire.reports import attempt_events_to_proto, hello_to_proto, report_to_proto
from atoll.wire.sites import link_spec_to_proto, site_spec_to_proto
from orchestrator.app import serve
from orchestrator.config import OrchestratorConfig
from orchestrator.core.placement.policy import Policy
from orchestrator.parts import Catalogue
from tests.unit.fleet_of_machines import GB, GPUS, pool

# Longer than anything here takes on a busy machine, shorter than the test's own limit.
PATIENCE_S = 30.0

# What a stream reads at its end; the stubs lack it.
EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]

# Silence is noticed soon, so that tests of it do not wait.
QUICK = Policy(silent_after_ms=700, report_interval_ms=100)


def config(folder: Path, **changes: Any) -> OrchestratorConfig:
    """Any free port, no metrics."""
    fields: dict[str, Any] = {"listen": Address(host="127.0.0.1", port=0), "data_dir": folder, "metrics": None, **changes}
    return OrchestratorConfig(**fields)


@dataclass(slots=True)
class Running:
    """An orchestrator that answers, and stubs to ask it."""

    address: Address
    channel: Any
    metadata: tuple[tuple[str, str], ...] = ()
    stop: Callable[[], None] = lambda: None
    jobs: Any = field(init=False)
    operators: Any = field(init=False)
    sites: Any = field(init=False)

    def __post_init__(self) -> None:
        self.jobs = JobServiceStub(self.channel)
        self.operators = OperatorServiceStub(self.channel)
        self.sites = SiteServiceStub(self.channel)

    async def add_models(self, *models: ModelSpec) -> None:
        """Models with weights."""
        await self.operators.AddModels(
            operators_pb.AddModelsRequest(models=[model_spec_to_proto(one) for one in models]), metadata=self.metadata
        )

    async def apply(self, *sites: SiteSpec, links: tuple[LinkSpec, ...] = ()) -> operators_pb.ApplySitesResponse:
        """Declare sites, and what is between them."""
        request = operators_pb.ApplySitesRequest(
            sites=[site_spec_to_proto(one) for one in sites], links=[link_spec_to_proto(link) for link in links]
        )
        response: operators_pb.ApplySitesResponse = await self.operators.ApplySites(request, metadata=self.metadata)
        return response

    async def submit(self, key: str = "", **spec: Any) -> str:
        """Submit one job; its id."""
        response = await self.jobs.Submit(job(key, **spec), metadata=self.metadata)
        job_id: str = response.job_id
        return job_id

    async def get(self, job_id: str) -> types_pb2.Job:
        """A job as it is."""
        found: types_pb2.Job = await self.jobs.Get(jobs_pb.GetJobRequest(job_id=job_id), metadata=self.metadata)
        return found

    async def ended(self, *job_ids: str) -> dict[str, types_pb2.Job]:
        """Wait until these jobs are terminal."""
        last: dict[str, types_pb2.Job] = {}
        request = jobs_pb.WatchJobsRequest(job_ids=job_ids, until_terminal=True)
        async for response in self.jobs.Watch(request, metadata=self.metadata, timeout=PATIENCE_S):
            if response.HasField("job"):
                last[response.job.job_id] = response.job
        return last


def trailers(error: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> dict[str, str | bytes]:
    """Trailing metadata of a refusal."""
    metadata: Any = error.value.trailing_metadata()
    return dict(metadata)


def job(key: str = "", **spec: Any) -> jobs_pb.SubmitRequest:
    """A job for model `m`, unless the fields say otherwise."""
    fields = {"model_id": "m", "prompt": "a lighthouse", **spec}
    return jobs_pb.SubmitRequest(spec=types_pb2.JobSpec(**fields), idempotency_key=key)


@asynccontextmanager
async def orchestrator(
    folder: Path, *, policy: Policy = QUICK, token: str = "", catalogue: Catalogue | None = None, **changes: Any
) -> AsyncIterator[Running]:
    """Run one until the block ends; with `token` calls carry it. It must end well."""
    ready: asyncio.Future[Address] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    known = catalogue or Catalogue(gpus=GPUS)
    task = asyncio.create_task(serve(config(folder, **changes), policy=policy, catalogue=known, ready=ready.set_result, stop=stop))
    first: set[asyncio.Future[Any]] = {task, ready}
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE_S)
    if task.done():
        task.result()
    address = ready.result()
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    async with grpc.aio.insecure_channel(str(address)) as channel:
        try:
            yield Running(address, channel, metadata, stop.set)
        finally:
            stop.set()
            code = await asyncio.wait_for(task, PATIENCE_S)
    assert code == 0


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that other tasks bring about."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for is other people's state
            await asyncio.sleep(0.005)


class ScriptedAgent:
    """An agent without a runtime: it reports all slots ready, and ends attempts as it is told to.

    `hold`: attempts stay until `release`; else each succeeds as soon as it arrives.
    """

    def __init__(
        self, running: Running, site_id: str, *, pools: tuple[PoolSpec, ...] | None = None, hold: bool = False, **hello: Any
    ) -> None:
        self.running = running
        self.site_id = SiteId(site_id)
        self.pools = pools or (pool("big"),)
        self.hold = hold
        self.talks = True
        self.replicas: tuple[ReplicaFact, ...] = ()  # what every slot holds
        self.hello = hello
        self.token = hello.pop("token", "")
        self.welcome: sites_pb.Welcome | None = None
        self.generation = 0
        self.term = 0
        self.attempts: dict[AttemptKey, sites_pb.AssignedAttempt] = {}
        self.outbox: dict[int, AttemptEvent] = {}
        self.error: grpc.aio.AioRpcError | None = None
        self.log: tuple[str, ...] = ()
        self.times = PhaseTimes()
        self.rates = RateFacts()  # what it has measured
        self._saying = asyncio.Lock()
        self._next_seq = 1
        self._report_seq = 0
        self._call: Any = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> ScriptedAgent:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def connect(self) -> None:
        """Say hello and wait for the welcome. Raises AioRpcError when refused."""
        token = self.token
        metadata = (("authorization", f"Bearer {token}"),) if token else self.running.metadata
        self._call = self.running.sites.Connect(metadata=metadata)
        fields: dict[str, Any] = {
            "site_id": self.site_id, "fleet_id": FleetId(""), "term": Term(0), "protocol_version": PROTOCOL_VERSION,
            "agent_version": "0", "boot_id": f"boot-{self.site_id}", "runtime": SiteRuntime.RAY, "pools": self.pools,
            "next_event_seq": EventSeq(self._next_seq), **self.hello,
        }  # fmt: skip
        await self.say(sites_pb.AgentMessage(hello=hello_to_proto(SiteHello(**fields))))
        first = await asyncio.wait_for(self._call.read(), PATIENCE_S)
        if first is EOF:
            await self._raise()
        self.welcome = first.welcome
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._report())]

    async def _report(self) -> None:
        while self.talks:
            await self.report()
            await asyncio.sleep(0.1)

    async def leave(self) -> None:
        """Go away without a word."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._call is not None:
            self._call.cancel()

    async def say(self, message: sites_pb.AgentMessage) -> None:
        """One message up; a stream takes one at a time."""
        async with self._saying:
            await self._call.write(message)

    async def _raise(self) -> None:
        call = self._call
        raise grpc.aio.AioRpcError(
            await call.code(), await call.initial_metadata(), await call.trailing_metadata(), await call.details(), None
        )

    async def report(self) -> None:
        """All slots ready, everything held on disk and warm."""
        self._report_seq += 1
        nodes = tuple(
            NodeFacts(
                pool_id=PoolId(one.pool_id), node_id=NodeId(one.node_id(index)), host_free_bytes=256 * GB,
                disk_free_bytes=1_000 * GB,
                slots=tuple(
                    SlotFacts(index=slot, memory_free_bytes=79 * GB, replicas=self.replicas) for slot in range(one.gpus_per_node)
                ),
            )
            for one in self.pools for index in range(one.nodes)
        )  # fmt: skip
        progress = tuple(AttemptProgress(key=key, state=AttemptState.RUNNING, steps_done=3) for key in self.attempts)
        generation = Generation(self.generation)
        report = SiteReport(seq=self._report_seq, full=True, generation=generation, nodes=nodes, progress=progress, rates=self.rates)
        await self.say(sites_pb.AgentMessage(report=report_to_proto(report)))

    async def _listen(self) -> None:
        try:
            while (message := await self._call.read()) is not EOF:
                match message.WhichOneof("message"):
                    case "assignment":
                        await self._assigned(message.assignment)
                    case "log_request" if self.log:
                        chunk = sites_pb.LogChunk(request=message.log_request.request, lines=self.log)
                        await self.say(sites_pb.AgentMessage(log=chunk))
            await self._raise()
        except grpc.aio.AioRpcError as error:
            self.error = error

    async def _assigned(self, assignment: sites_pb.Assignment) -> None:
        self.generation, self.term = assignment.generation, assignment.term
        if assignment.base_generation == 0:
            self.attempts = {}
        for attempt in assignment.attempts:
            self.attempts[attempt_key_from_proto(attempt.key)] = attempt
        for removed in assignment.removed:
            self.attempts.pop(attempt_key_from_proto(removed), None)
        for seq in [seq for seq in self.outbox if seq <= assignment.acked_event_seq]:
            del self.outbox[seq]
        for key, attempt in list(self.attempts.items()):
            if attempt.stop:
                await self.end(key, AttemptState.STOPPED)
            elif not self.hold:
                await self.end(key, AttemptState.SUCCEEDED)

    async def release(self) -> None:
        """Let what is held succeed, and all that comes."""
        self.hold = False
        for key in list(self.attempts):
            await self.end(key, AttemptState.SUCCEEDED)

    async def end(self, key: AttemptKey, state: AttemptState, artifacts: tuple[Artifact, ...] = ()) -> None:
        """Tell the end of an attempt, and keep telling it until it is acknowledged."""
        self.attempts.pop(key, None)
        succeeded = state is AttemptState.SUCCEEDED
        event = AttemptEvent(
            seq=EventSeq(self._next_seq), key=key, state=state,
            manifest=ResultManifest(key=key, artifacts=artifacts, seed=7, simulated=False) if succeeded else None,
            failure=Failure(kind=FailureKind.EXECUTION_FAILED, message="no") if state is AttemptState.FAILED else None,
            times=self.times,
        )  # fmt: skip
        self.outbox[self._next_seq] = event
        self._next_seq += 1
        await self.deliver()

    async def deliver(self) -> None:
        """Send everything that is not acknowledged, again."""
        events = attempt_events_to_proto(tuple(self.outbox[seq] for seq in sorted(self.outbox)))
        await self.say(sites_pb.AgentMessage(events=events))
