"""What survives: kill -9, restarts, commits that nobody confirms, another process on the same store; and how each start can fail."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from atoll.model.address import Address
from atoll.model.attempt import AttemptState, PhaseTimes
from atoll.v1 import job_service_pb2 as jobs_pb
from atoll.v1 import operator_service_pb2 as pb
from atoll.v1 import types_pb2
from orchestrator.app import serve
from orchestrator.config import ExitCode, StartError, load_config
from orchestrator.core.placement.policies import POLICIES
from orchestrator.replaying import DifferentStepError, Replay
from tests.integration.running_orchestrator import (
    EOF,
    PATIENCE_S,
    QUICK,
    Running,
    ScriptedAgent,
    config,
    job,
    orchestrator,
    until,
)
from tests.unit.fleet_of_machines import model, pool, site


@asynccontextmanager
async def process(folder: Path, port: int, **environ: str) -> AsyncIterator[tuple[Running, subprocess.Popen[bytes]]]:
    """An orchestrator in a process of its own, reached once it answers; ended if it still runs."""
    settings = {
        "ATOLL_ORCHESTRATOR_LISTEN": f"127.0.0.1:{port}",
        "ATOLL_ORCHESTRATOR_DATA_DIR": str(folder),
        "ATOLL_ORCHESTRATOR_METRICS": "off",
        **environ,
    }
    with (folder.parent / "log").open("ab") as log:
        # Starting it is what takes a moment, and nothing else runs on this loop yet.
        child = subprocess.Popen([sys.executable, "-m", "orchestrator"], env={**os.environ, **settings}, stderr=log)  # noqa: ASYNC220
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            running = Running(Address(host="127.0.0.1", port=port), channel)
            await running.operators.GetFleet(pb.GetFleetRequest(), wait_for_ready=True, timeout=PATIENCE_S)
            yield running, child
    finally:
        child.kill()
        await asyncio.to_thread(child.wait)


async def test_kill_9_in_mid_flight_loses_nothing_that_was_accepted(tmp_path: Path, free_ports: Callable[[], int]) -> None:
    accepted: dict[str, str] = {}
    keys = iter(f"key-{index}" for index in range(1_000_000))

    async def submit_until_it_dies(running: Running) -> None:
        while True:
            key = next(keys)
            try:
                accepted[key] = (await running.jobs.Submit(job(key))).job_id
            except grpc.aio.AioRpcError:
                return

    for round_ in range(3):
        enough = len(accepted) + 100
        async with process(tmp_path / "data", free_ports()) as (running, child):
            if round_ == 0:
                await running.add_models(model("m"))
            submitters = [asyncio.create_task(submit_until_it_dies(running)) for _ in range(16)]
            await until(lambda: len(accepted) >= enough)  # noqa: B023 - read within the round
            child.kill()
            await asyncio.gather(*submitters)
    async with process(tmp_path / "data", free_ports()) as (running, child):
        states = {one.state for one in await asyncio.gather(*(running.get(job_id) for job_id in accepted.values()))}
        assert states == {types_pb2.JOB_STATE_QUEUED}
        for key, job_id in list(accepted.items())[:20]:
            again = await running.jobs.Submit(job(key))
            assert (again.job_id, again.existing) == (job_id, True)
        assert (await running.operators.GetFleet(pb.GetFleetRequest())).term == 4
        child.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(child.wait, PATIENCE_S) == 0


async def test_an_orderly_stop_keeps_what_came_since_the_last_checkpoint(tmp_path: Path, free_ports: Callable[[], int]) -> None:
    """Checkpoints are a minute apart: these jobs take a second in all."""
    # Of a GPU type that the program knows by itself.
    pools = (pool("big", gpu="H100-SXM"),)
    about = pb.ListResidualsRequest(component="execution", site_id="a")

    def evidence(answer: pb.ListResidualsResponse) -> dict[tuple[str, str, str], int]:
        return {(row.level, row.name, row.other): round(row.observations_milli / 1_000) for row in answer.residuals}

    async with process(tmp_path / "data", free_ports()) as (running, child):
        await running.add_models(model("m"))
        await running.apply(site("a", *pools))
        async with ScriptedAgent(running, "a", pools=pools) as agent:
            agent.times = PhaseTimes(waiting_us=0, fetch_us=10**6, load_us=10**6, run_us=9 * 10**6, upload_us=10**4)
            await running.ended(*[await running.submit() for _ in range(5)])
        learned = evidence(await running.operators.ListResiduals(about))
        assert learned["site", "a", ""] == 5
        asked = (await running.operators.WhereModel(pb.WhereModelRequest(model_id="m"))).target
        assert asked.arrivals == 5
        child.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(child.wait, PATIENCE_S) == 0
    async with process(tmp_path / "data", free_ports()) as (running, _):
        assert evidence(await running.operators.ListResiduals(about)) == learned
        target = (await running.operators.WhereModel(pb.WhereModelRequest(model_id="m"))).target
        assert (target.arrivals, target.rate_per_hour_milli) == (5, pytest.approx(asked.rate_per_hour_milli, rel=0.15))


async def test_running_work_goes_on_over_a_restart(tmp_path: Path) -> None:
    pools = (pool("big"), pool("other"))
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        await running.apply(site("a", *pools))
        async with ScriptedAgent(running, "a", pools=pools, hold=True) as agent:
            job_id = await running.submit()
            await until(lambda: bool(agent.attempts))
            term, outbox = agent.term, agent.attempts
            explained = (await running.get(job_id)).attempts[0].explanation
            assert len(explained.others) == 1
    async with orchestrator(tmp_path) as running:
        async with ScriptedAgent(running, "a", pools=pools, hold=True) as agent:
            assert (await running.get(job_id)).attempts[0].explanation == explained
            await until(lambda: agent.attempts.keys() == outbox.keys())
            assert agent.term == term + 1
            await agent.release()
            await agent.deliver()  # twice: the second changes nothing
            ended = (await running.ended(job_id))[job_id]
        assert (ended.state, len(ended.attempts)) == (types_pb2.JOB_STATE_SUCCEEDED, 1)
    async with orchestrator(tmp_path) as running:
        assert (await running.get(job_id)).state == types_pb2.JOB_STATE_SUCCEEDED


async def _two_held(running: Running) -> tuple[ScriptedAgent, str, str]:
    """An agent that holds two jobs."""
    await running.add_models(model("m"))
    await running.apply(site("a"))
    agent = ScriptedAgent(running, "a", hold=True)
    await agent.connect()
    told, silent = [(await running.jobs.Submit(job(key))).job_id for key in ("told", "silent")]
    await until(lambda: len(agent.attempts) == 2)
    return agent, told, silent


async def test_the_attempt_of_a_cancelled_job_ends_when_its_site_says_so_be_it_after_a_restart(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        agent, told, silent = await _two_held(running)
        (late,) = [key for key in agent.attempts if key.job_id == silent]
        await running.jobs.Cancel(jobs_pb.CancelJobRequest(job_id=told))
        stopped = await _stopped(running, told)
        assert stopped.state == types_pb2.JOB_STATE_CANCELLED
        assert stopped.attempts[0].ended_us >= stopped.ended_us
        await agent.leave()
        cancelled = await running.jobs.Cancel(jobs_pb.CancelJobRequest(job_id=silent))
        assert cancelled.attempts[0].state == types_pb2.ATTEMPT_STATE_STOPPING
    async with orchestrator(tmp_path) as running:
        assert (await _stopped(running, told)).attempts == stopped.attempts
        async with ScriptedAgent(running, "a", hold=True) as agent:
            await agent.end(late, AttemptState.STOPPED)
            assert (await _stopped(running, silent)).state == types_pb2.JOB_STATE_CANCELLED


async def _heard(watching: Any, state: int) -> types_pb2.Job:
    """The job as a watcher hears of it when its attempt is in this state."""
    while (response := await watching.read()) is not EOF:
        if response.HasField("job") and response.job.attempts and response.job.attempts[0].state == state:
            heard: types_pb2.Job = response.job
            return heard
    raise AssertionError("the stream ended")


async def test_watchers_hear_how_an_attempt_ended_after_its_job(tmp_path: Path) -> None:
    """Of one whose site says so, and of one that is lost with its site, which is removed only after a restart."""
    async with orchestrator(tmp_path) as running:
        agent, told, silent = await _two_held(running)
        watching = running.jobs.Watch(jobs_pb.WatchJobsRequest(job_ids=[told]), timeout=PATIENCE_S)
        await _heard(watching, types_pb2.ATTEMPT_STATE_LEASED)
        await running.jobs.Cancel(jobs_pb.CancelJobRequest(job_id=told))
        assert (await _heard(watching, types_pb2.ATTEMPT_STATE_STOPPED)).state == types_pb2.JOB_STATE_CANCELLED
        await agent.leave()
        await running.jobs.Cancel(jobs_pb.CancelJobRequest(job_id=silent))
    async with orchestrator(tmp_path) as running:
        watching = running.jobs.Watch(jobs_pb.WatchJobsRequest(job_ids=[silent]), timeout=PATIENCE_S)
        await _heard(watching, types_pb2.ATTEMPT_STATE_STOPPING)
        await running.operators.RemoveSite(pb.RemoveSiteRequest(site_id="a", force=True, reason="gone"))
        heard = await _heard(watching, types_pb2.ATTEMPT_STATE_LOST)
        assert (heard.state, heard.attempts[0].failure.message) == (types_pb2.JOB_STATE_CANCELLED, "site a was removed")
    async with orchestrator(tmp_path) as running:
        assert (await running.get(silent)).attempts == heard.attempts


async def _stopped(running: Running, job_id: str) -> types_pb2.Job:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found: types_pb2.Job = await running.get(job_id)
            if found.attempts[0].state == types_pb2.ATTEMPT_STATE_STOPPED:
                return found


def replayed(recording: Path) -> Replay:
    """A recording, played to its end."""
    found = Replay(recording)
    for _ in found.run():
        pass
    return found


async def test_a_recording_of_a_live_run_replays_to_equal_steps(tmp_path: Path) -> None:
    recording = tmp_path / "run.jsonl"
    async with orchestrator(tmp_path / "data", record=recording) as running:
        await running.add_models(model("m"), model("n"))
        await running.apply(site("a"), site("b"))
        async with ScriptedAgent(running, "a", hold=True) as a, ScriptedAgent(running, "b", hold=True) as b:
            job_ids = await asyncio.gather(*(running.submit(seed=seed, model_id="mn"[seed % 2]) for seed in range(30)))
            await running.jobs.Cancel(jobs_pb.CancelJobRequest(job_id=job_ids[0]))
            await running.operators.DrainSite(pb.DrainSiteRequest(site_id="a", reason="test", deadline_ms=10_000))
            await a.release()
            await b.release()
            await running.ended(*job_ids)
    found = replayed(recording)
    assert (found.ended, found.torn, found.cores) == ("", False, 1)
    assert found.events > 40
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes(recording.read_bytes()[:-10])
    assert replayed(torn).torn
    lines = recording.read_bytes().splitlines(keepends=True)
    changed = tmp_path / "changed.jsonl"
    changed.write_bytes(b"".join(lines[:10] + lines[11:]))
    with pytest.raises(DifferentStepError):
        replayed(changed)


async def test_a_policy_is_shown_recorded_and_audited_when_it_changed_over_a_restart(tmp_path: Path) -> None:
    recording, baseline = tmp_path / "run.jsonl", replace(POLICIES["random"], silent_after_ms=5_000, report_interval_ms=100)
    async with orchestrator(tmp_path / "data") as running:
        view = await running.operators.GetFleet(pb.GetFleetRequest())
        assert (view.policy, view.policy_digest) == (QUICK.name, QUICK.identity.digest)
    async with orchestrator(tmp_path / "data", policy=baseline, record=recording) as running:
        await running.add_models(model("m"))
        await running.apply(site("a"), site("b"))
        async with ScriptedAgent(running, "a"), ScriptedAgent(running, "b"):
            job_ids = [await running.submit(seed=seed) for seed in range(8)]
            ended = await running.ended(*job_ids)
        view = await running.operators.GetFleet(pb.GetFleetRequest())
        assert (view.policy, view.policy_digest) == ("random", baseline.identity.digest)
        assert {job.attempts[0].explanation.rule for job in ended.values()} == {"random"}
        audit = [event async for event in running.operators.Events(pb.EventsRequest())]
    (changed,) = [event for event in audit if event.verb == "policy_changed"]
    assert changed.detail == f"from default ({QUICK.identity.digest}) to random ({baseline.identity.digest})"
    found = replayed(recording)
    assert (found.ended, found.torn) == ("", False)
    assert f'"policy_digest":"{baseline.identity.digest}"'.encode() in recording.read_bytes()[:200]


async def test_a_recording_ends_at_its_size_and_the_orchestrator_goes_on(tmp_path: Path) -> None:
    recording = tmp_path / "run.jsonl"
    async with orchestrator(tmp_path / "data", record=recording, record_bytes_max=20_000) as running:
        await running.add_models(model("m"))
        for _ in range(60):
            await running.submit()
    assert recording.stat().st_size < 30_000
    assert "limit of 20000 bytes" in replayed(recording).ended


async def test_a_port_in_use_is_named_and_the_store_is_left_alone(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartError) as error:
            await serve(config(tmp_path / "data", listen=Address(host="127.0.0.1", port=port)))
    assert error.value.code is ExitCode.ADDRESS_IN_USE
    assert f"127.0.0.1:{port}" in str(error.value)
    assert not (tmp_path / "data" / "atoll.sqlite").exists()


async def test_a_second_orchestrator_on_the_store_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        with pytest.raises(StartError) as error:
            await serve(config(tmp_path))
        assert error.value.code is ExitCode.STORE_HELD
        await running.add_models(model("m"))
        assert await running.submit()


async def test_a_data_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(StartError) as error:
        await serve(config(blocker / "data"))
    assert error.value.code is ExitCode.STORE_UNUSABLE
    assert str(blocker / "data") in str(error.value)


async def test_listening_to_everybody_wants_a_credential(tmp_path: Path) -> None:
    environ = {"ATOLL_ORCHESTRATOR_LISTEN": "0.0.0.0:0", "ATOLL_ORCHESTRATOR_DATA_DIR": str(tmp_path)}
    with pytest.raises(StartError) as error:
        load_config({}, environ)
    assert error.value.code is ExitCode.CONFIG
    assert "ATOLL_ORCHESTRATOR_TOKEN" in str(error.value)
    loaded = load_config({}, {**environ, "ATOLL_ORCHESTRATOR_TOKEN": "sixteen-characters"})
    assert loaded.listen.host == "0.0.0.0"
    assert "sixteen" not in repr(loaded)
    with pytest.raises(StartError):
        await serve(replace(config(tmp_path), listen=Address(host="192.0.2.1", port=0)))


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ({"listen": "nowhere:99999"}, "listen"),
        ({"time_scale": "nan"}, "time_scale"),
        ({"time_scale": 0}, "time_scale"),
        ({"log_format": "xml"}, "log_format"),
        ({"retention_hours": -1}, "retention_hours"),
        ({"tls_cert": "/nowhere.pem"}, "tls_cert"),
        ({"tokens": "/nowhere.yaml"}, "tokens"),
        ({"colour": "blue"}, "flags"),
    ],
)
def test_settings_that_cannot_be_are_named(flags: dict[str, object], field: str) -> None:
    with pytest.raises(StartError) as error:
        load_config(flags, {})
    assert error.value.code is ExitCode.CONFIG
    assert str(error.value).startswith(f"{field} is ")
