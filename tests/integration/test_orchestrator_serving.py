"""How an orchestrator serves: deadlines, TLS, metrics, exit codes, and streams when it stops."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog

from atoll.model.address import Address
from atoll.v1 import job_service_pb2 as jobs_pb
from atoll.v1 import operator_service_pb2 as pb
from atoll.v1.operator_service_pb2_grpc import OperatorServiceStub
from orchestrator.api import interceptor
from orchestrator.app import serve
from orchestrator.config import ExitCode
from orchestrator.parts import Catalogue, packaged_catalogue
from orchestrator.readers import ReadModel
from tests.integration.running_orchestrator import PATIENCE_S, QUICK, Running, ScriptedAgent, config, orchestrator, trailers, until
from tests.unit.fleet_of_machines import GPUS, model, site


async def test_a_call_without_a_deadline_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptor, "DEADLINE_S", 0.2)
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a", hold=True) as agent:
            job_id = await running.submit()
            await until(lambda: bool(agent.attempts))
            # This agent never answers a question for a log.
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await running.jobs.Logs(jobs_pb.JobLogsRequest(job_id=job_id))
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_our_own_failure_is_told_as_a_reference_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("a detail of ours")

    async with orchestrator(tmp_path) as running:
        monkeypatch.setattr(ReadModel, "job", fails)
        with structlog.testing.capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as error:
            await running.get("j-1")
        monkeypatch.undo()
    assert error.value.code() is grpc.StatusCode.INTERNAL
    reference = str(trailers(error)["atoll-reference"])
    assert error.value.details() == f"internal error, reference {reference}"
    assert [line["reference"] for line in logs if line["event"] == "request_failed"] == [reference]


async def test_metrics_tell_of_decisions_commits_and_attempts(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        async with orchestrator(tmp_path, metrics=Address(host="127.0.0.1", port=0)) as running:
            where = next(line["metrics"] for line in logs if line["event"] == "serving")
            await running.add_models(model("m"))
            await running.apply(site("a"))
            async with ScriptedAgent(running, "a"):
                job_id = await running.submit()
                await running.ended(job_id)

            def scrape() -> str:
                with urllib.request.urlopen(f"http://{where}/metrics", timeout=10) as response:
                    text: bytes = response.read()
                return text.decode()

            text = await asyncio.to_thread(scrape)
    for line in (
        'atoll_decisions_total{decision="JobPlaced"} 1.0',
        'atoll_placements_total{start="cold"} 1.0',
        'atoll_attempts_total{cause="",outcome="succeeded"} 1.0',
        'atoll_job_seconds_count{state="succeeded"} 1.0',
        'atoll_call_seconds_count{code="OK",method="/atoll.v1.JobService/Submit"} 1.0',
        'atoll_residual_ratio_count{term="total"} 1.0',
        "# TYPE atoll_estimate_shifts_total counter",
        "# TYPE atoll_p90_coverage gauge",
        "# TYPE atoll_residual_median gauge",
    ):
        assert line in text, line
    assert 'atoll_commit_seconds_bucket{le="0.0002",outcome="committed"}' in text


async def test_a_metrics_port_in_use_is_an_error_that_names_it(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        async with orchestrator(tmp_path / "one", metrics=Address(host="127.0.0.1", port=0)):
            where = next(line["metrics"] for line in logs if line["event"] == "serving")
            taken = Address(host="127.0.0.1", port=int(where.rsplit(":")[-1]))
            with pytest.raises(Exception, match=where) as error:
                await serve(config(tmp_path / "two", metrics=taken))
    assert error.value.code is ExitCode.ADDRESS_IN_USE  # type: ignore[attr-defined] # a StartError; its message was matched


async def test_a_deposed_orchestrator_ends_with_its_own_code(tmp_path: Path) -> None:
    ready: asyncio.Future[Address] = asyncio.get_running_loop().create_future()
    served = asyncio.create_task(serve(config(tmp_path), policy=QUICK, catalogue=Catalogue(gpus=GPUS), ready=ready.set_result))
    address = await asyncio.wait_for(ready, PATIENCE_S)
    with sqlite3.connect(tmp_path / "atoll.sqlite") as other:
        other.execute("UPDATE fleet SET term = term + 1")
    other.close()
    async with grpc.aio.insecure_channel(str(address)) as channel:
        running = Running(address, channel)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await running.add_models(model("m"))
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await asyncio.wait_for(served, PATIENCE_S) == ExitCode.DEPOSED


async def test_streams_are_told_when_it_stops(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        await running.apply(site("a"))
        agent = ScriptedAgent(running, "a")
        await agent.connect()
        await running.submit()
        watch = running.jobs.Watch(jobs_pb.WatchJobsRequest())
        await watch.read()
        agent.talks = False
        events = running.operators.Events(pb.EventsRequest(follow=True))
        await events.read()
        running.stop()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await _read_out(watch)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in (error.value.details() or "")
        await until(lambda: agent.error is not None)
        await agent.leave()
    assert agent.error is not None
    assert agent.error.code() is grpc.StatusCode.UNAVAILABLE


async def _read_out(stream: Any) -> None:
    while True:
        await stream.read()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
async def test_tls_by_certificate_files(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = await asyncio.create_subprocess_exec(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await made.wait() == 0
    async with orchestrator(tmp_path / "data", tls_cert=cert, tls_key=key) as running:
        credentials = grpc.ssl_channel_credentials(await asyncio.to_thread(cert.read_bytes))
        async with grpc.aio.secure_channel(str(running.address), credentials) as channel:
            fleet = await OperatorServiceStub(channel).GetFleet(pb.GetFleetRequest(), timeout=PATIENCE_S)
        assert fleet.term == 1
        with pytest.raises(grpc.aio.AioRpcError):
            await running.operators.GetFleet(pb.GetFleetRequest(), timeout=5)


async def test_a_new_fleet_begins_with_the_catalogue_for_rehearsals_only(tmp_path: Path) -> None:
    catalogue = packaged_catalogue()
    async with orchestrator(tmp_path, catalogue=catalogue) as running:
        listed = (await running.operators.ListModels(pb.ListModelsRequest())).models
        assert {view.spec.model_id for view in listed} == {known.model_id for known in catalogue.models}
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await running.submit(model_id="flux.1-dev")
        assert trailers(error)["atoll-field"] == "model_id"
        assert "--simulated" in (error.value.details() or "")
        assert await running.submit(model_id="flux.1-dev", simulated=True)
        await running.operators.RemoveModel(pb.RemoveModelRequest(model_id="sd-1.5", reason="not wanted"))
    async with orchestrator(tmp_path, catalogue=catalogue) as running:
        listed = (await running.operators.ListModels(pb.ListModelsRequest())).models
        assert len(listed) == len(catalogue.models) - 1
        events = [event async for event in running.operators.Events(pb.EventsRequest())]
        assert [(event.subject, event.actor) for event in events if event.reason == "not wanted"] == [("model/sd-1.5", "local")]
