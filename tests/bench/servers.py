"""Durable submits and the overhead of a job, through real processes: an orchestrator with its SQLite store, a site with the protocol.

The orchestrator runs in a process of its own, the clients in this one: both share the machine's cores, as the printed line says.
The site for the overhead executes jobs of zero duration: it answers an assignment at once with the end of the attempt, so that what
is measured is Atoll alone: submit, commit, place, send, hear, commit, tell.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc.aio

from atoll.model.attempt import AttemptState, ResultManifest
from atoll.model.ids import EventSeq, FleetId, Generation, GpuTypeId, ModelId, NodeId, PoolId, SiteId, Term
from atoll.model.modelspec import DenoiserKind, Modality, ModelPhysics, ModelSpec
from atoll.model.report import PROTOCOL_VERSION, AttemptEvent, NodeFacts, SiteHello, SiteReport, SlotFacts
from atoll.model.shape import Shape
from atoll.model.site import NodeSpec, PoolSpec, SiteRuntime, SiteSpec
from atoll.v1 import job_service_pb2 as jobs_pb
from atoll.v1 import operator_service_pb2 as operators_pb
from atoll.v1 import site_service_pb2 as sites_pb
from atoll.v1 import types_pb2
from atoll.v1.job_service_pb2_grpc import JobServiceStub
from atoll.v1.operator_service_pb2_grpc import OperatorServiceStub
from atoll.v1.site_service_pb2_grpc import SiteServiceStub
from atoll.wire.assignments import assignment_from_proto
from atoll.wire.models import model_spec_to_proto
from atoll.wire.reports import attempt_events_to_proto, hello_to_proto, report_to_proto
from atoll.wire.sites import site_spec_to_proto
from tests.bench.machine import quantile

_GB = 10**9
_IN_FLIGHT = 64
_UNARY_JOBS = 6_000
_BATCHES = 200
_BATCH_JOBS = 100
_OVERHEAD_JOBS = 1_000
_START_S = 60.0
_SITE = SiteId("bench")


def _model() -> ModelSpec:
    shape = Shape(width=64, height=64, steps=1)
    physics = ModelPhysics(
        kind=DenoiserKind.TRANSFORMER, denoiser_params=1, tokenwise_params=1, text_params=1, vae_params=1, layers=1, hidden=1,
        text_tokens=1, reference=shape, reference_tokens=1,
        reference_forward_flops=1, reference_attention_flops=1, reference_decode_flops=1,
    )  # fmt: skip
    return ModelSpec(
        model_id=ModelId("bench"), title="bench", family="bench", modality=Modality.IMAGE, pipeline_class="FluxPipeline",
        weights_bytes=1_000, resident_bytes=1_000, activation_bytes=0, default_shape=shape, physics=physics,
    )  # fmt: skip


def _site() -> SiteSpec:
    node = NodeSpec(host_memory_bytes=64 * _GB, disk_cache_bytes=100 * _GB, disk_bytes_per_s=_GB)
    pool = PoolSpec(pool_id=PoolId("p"), gpu_type=GpuTypeId("H100-SXM"), nodes=1, gpus_per_node=8, node=node)
    return SiteSpec(site_id=_SITE, region="bench", pools=(pool,), wan_bytes_per_s=_GB, origin_bytes_per_s=_GB)


def _request(number: int) -> Any:
    spec = types_pb2.JobSpec(model_id="bench", prompt="a lighthouse at dusk, oil on canvas", seed=number, simulated=True)
    return jobs_pb.SubmitRequest(spec=spec, idempotency_key=f"bench-{number}")


async def _unary(stub: Any, numbers: Any) -> tuple[float, list[float]]:
    """(seconds in all, seconds of each) of unary submits, some in flight at a time."""
    took: list[float] = []
    todo = itertools.islice(numbers, _UNARY_JOBS)

    async def work() -> None:
        for number in todo:
            begun = time.perf_counter()
            await stub.Submit(_request(number), timeout=60)
            took.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(_IN_FLIGHT)))
    return time.perf_counter() - begun, took


async def _batched(stub: Any, numbers: Any) -> float:
    """Seconds for all batches, four in flight."""
    batches = iter([jobs_pb.SubmitBatchRequest(jobs=[_request(next(numbers)) for _ in range(_BATCH_JOBS)]) for _ in range(_BATCHES)])

    async def work() -> None:
        for batch in batches:
            response = await stub.SubmitBatch(batch, timeout=60)
            refused = [outcome for outcome in response.outcomes if outcome.HasField("refusal")]
            if refused:
                raise RuntimeError(f"a job was refused: {refused[0].refusal.message}")

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(4)))
    return time.perf_counter() - begun


async def _answer_at_once(stub: Any) -> None:
    """A site whose jobs take no time."""
    spec = _site()
    outbox: asyncio.Queue[Any] = asyncio.Queue()
    hello = SiteHello(
        site_id=_SITE, fleet_id=FleetId(""), term=Term(0), protocol_version=PROTOCOL_VERSION, agent_version="bench", boot_id="bench",
        runtime=SiteRuntime.TWIN, pools=spec.pools, next_event_seq=EventSeq(1),
    )  # fmt: skip
    await outbox.put(sites_pb.AgentMessage(hello=hello_to_proto(hello)))
    slots = tuple(SlotFacts(index=index, memory_free_bytes=0) for index in range(spec.pools[0].gpus_per_node))
    node = NodeFacts(
        pool_id=spec.pools[0].pool_id, node_id=NodeId(spec.pools[0].node_id(0)), host_free_bytes=_GB, disk_free_bytes=_GB, slots=slots
    )
    reports, seq = itertools.count(1), itertools.count(1)

    def report(generation: int) -> Any:
        number = next(reports)
        told = SiteReport(seq=number, full=number == 1, generation=Generation(generation), nodes=(node,) if number == 1 else ())
        return sites_pb.AgentMessage(report=report_to_proto(told))

    call = stub.Connect()

    async def send() -> None:
        while True:
            await call.write(await outbox.get())

    sender = asyncio.create_task(send())
    generation = 0
    try:
        while True:
            message = await asyncio.wait_for(call.read(), 1.0) if generation else await call.read()
            if message.HasField("welcome"):
                await outbox.put(report(0))
                continue
            assignment = assignment_from_proto(message.assignment)
            generation = assignment.generation
            ended = tuple(
                AttemptEvent(
                    seq=EventSeq(next(seq)), key=one.key, state=AttemptState.SUCCEEDED,
                    manifest=ResultManifest(key=one.key, artifacts=(), seed=one.spec.seed, simulated=True),
                )
                for one in assignment.attempts
            )  # fmt: skip
            if ended:
                await outbox.put(sites_pb.AgentMessage(events=attempt_events_to_proto(ended)))
            else:
                await outbox.put(report(generation))
    finally:
        sender.cancel()
        call.cancel()


async def _overhead(stub: Any, numbers: Any) -> list[float]:
    """Seconds from submitting a job to hearing that it succeeded, one at a time, on one watch of all jobs."""
    ends: dict[str, asyncio.Future[None]] = {}

    async def watch() -> None:
        async for response in stub.Watch(jobs_pb.WatchJobsRequest(), timeout=600):
            if response.HasField("job") and response.job.state == types_pb2.JOB_STATE_SUCCEEDED:
                ends.setdefault(response.job.job_id, asyncio.get_running_loop().create_future()).set_result(None)

    watching = asyncio.create_task(watch())
    took: list[float] = []
    for number in itertools.islice(numbers, _OVERHEAD_JOBS):
        begun = time.perf_counter()
        job_id = (await stub.Submit(_request(number), timeout=60)).job_id
        await asyncio.wait_for(ends.setdefault(job_id, asyncio.get_running_loop().create_future()), 30)
        took.append(time.perf_counter() - begun)
    watching.cancel()
    return took


async def _measure(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), _START_S)
        jobs, operators = JobServiceStub(channel), OperatorServiceStub(channel)
        await operators.AddModels(operators_pb.AddModelsRequest(models=[model_spec_to_proto(_model())]))
        await operators.ApplySites(operators_pb.ApplySitesRequest(sites=[site_spec_to_proto(_site())], reason="bench"))
        numbers = itertools.count()
        async with grpc.aio.insecure_channel(address) as site_channel:
            agent = asyncio.create_task(_answer_at_once(SiteServiceStub(site_channel)))
            took = await _overhead(jobs, numbers)
            print(
                f"submit to result, a job of no duration, {len(took)} one by one: "
                f"p50 {quantile(took, 0.5) * 1e3:.1f} ms, p99 {quantile(took, 0.99) * 1e3:.1f} ms",
                flush=True,
            )
            agent.cancel()
            await asyncio.gather(agent, return_exceptions=True)
        seconds, took = await _unary(jobs, numbers)
        print(
            f"durable submits, unary, {_IN_FLIGHT} in flight: {len(took) / seconds:,.0f}/s, "
            f"p50 {quantile(took, 0.5) * 1e3:.1f} ms, p99 {quantile(took, 0.99) * 1e3:.1f} ms",
            flush=True,
        )
        seconds = await _batched(jobs, numbers)
        print(f"durable submits, batches of {_BATCH_JOBS}, 4 in flight: {_BATCHES * _BATCH_JOBS / seconds:,.0f}/s", flush=True)


def main() -> None:
    """Run the orchestrator, measure, end it."""
    with tempfile.TemporaryDirectory(prefix="atoll-bench-") as folder:
        port_file = Path(folder) / "log"
        environment = {**os.environ, "ATOLL_ORCHESTRATOR_LOG_LEVEL": "warning", "ATOLL_ORCHESTRATOR_METRICS": "off"}
        address = f"127.0.0.1:{_free_port()}"
        environment |= {"ATOLL_ORCHESTRATOR_LISTEN": address, "ATOLL_ORCHESTRATOR_DATA_DIR": folder}
        with port_file.open("wb") as log:
            program = subprocess.Popen([sys.executable, "-m", "orchestrator"], env=environment, stdout=log, stderr=log)
            try:
                asyncio.run(_measure(address))
            finally:
                program.terminate()
                program.wait(30)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number
