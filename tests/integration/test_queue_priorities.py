"""Priorities, deadlines and bounds of the queue as users meet them: a preempted twin, jobs that expire, a tenant that has too many."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from atoll.cli.app import main
from atoll.cli.exits import Exit
from atoll.model.address import Address
from atoll.v1 import types_pb2
from tests.integration.running_agent import agent, twin_of
from tests.integration.running_orchestrator import PATIENCE_S, QUICK, Running, orchestrator
from tests.integration.test_agent_fleet import quick
from tests.unit.fleet_of_machines import model, pool, site

TWIN = site("twin", pool("p", gpus=1))
LONG = types_pb2.Shape(width=1024, height=1024, frames=1, steps=1_000, cfg_passes=1, batch=1)


async def _runs(running: Running, job_id: str) -> None:
    """Wait until this job executes."""
    async with asyncio.timeout(PATIENCE_S):
        while (await running.get(job_id)).state != types_pb2.JOB_STATE_RUNNING:  # noqa: ASYNC110 - what is waited for is the site's
            await asyncio.sleep(0.02)


async def _scrape(where: str) -> str:
    def read() -> str:
        with urllib.request.urlopen(f"http://{where}/metrics", timeout=10) as response:
            text: bytes = response.read()
            return text.decode()

    return await asyncio.to_thread(read)


async def _atoll(running: Running, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = await asyncio.to_thread(main, [*arguments, "--address", str(running.address)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


async def test_batch_fills_a_twin_and_makes_room_for_an_urgent_job_at_the_end_of_a_step(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        async with orchestrator(tmp_path, metrics=Address(host="127.0.0.1", port=0), **quick()) as running:
            where = next(line["metrics"] for line in logs if line["event"] == "serving")
            await running.add_models(model("m", weights_gb=2), model("n", weights_gb=3))
            await running.apply(TWIN)
            async with agent(running.address, "twin", twin_of(TWIN)):
                batch = [
                    await running.submit(simulated=True, seed=seed, shape=LONG, priority=types_pb2.PRIORITY_BATCH) for seed in range(2)
                ]
                await _runs(running, batch[0])
                urgent = await running.submit(model_id="n", simulated=True, priority=types_pb2.PRIORITY_URGENT)
                jobs = await running.ended(urgent, *batch)
            text = await _scrape(where)
    assert {job.state for job in jobs.values()} == {types_pb2.JOB_STATE_SUCCEEDED}
    first, second = (jobs[job_id] for job_id in batch)
    assert [attempt.failure.kind for attempt in first.attempts] == [types_pb2.FAILURE_KIND_PREEMPTED, types_pb2.FAILURE_KIND_UNSPECIFIED]
    assert first.attempts[0].running_us and first.attempts[0].times.run_us > 0, "it had begun, and what it had done was thrown away"
    made_room, _, cost = first.attempts[0].failure.message.partition(", at the cost of ")
    assert made_room == f"made room for urgent job {urgent}"
    assert cost.endswith(" of work to do again"), "both models fit beside each other"
    assert jobs[urgent].ended_us < min(first.ended_us, second.ended_us)
    assert first.result.key.ordinal == 2, "its one result is that of its last attempt"
    assert first.ended_us < second.ended_us, "and it kept its place before the other"
    assert "atoll_preemptions_total 2.0" in text
    assert 'atoll_retries_total{cause="preempted"} 2.0' in text


async def test_jobs_that_wait_too_long_expire_and_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        code, out, _ = await _atoll(running, capsys, "submit", "m", "--deadline", "1h", "--start-timeout", "200ms", "--wait")
        assert code == Exit.FAILED
        assert "expired: start timeout of 200ms passed" in out
        name = out.split()[0]
        code, out, _ = await _atoll(running, capsys, "jobs", "explain", name)
        assert code == Exit.OK
        assert "expired" in out.splitlines()[0]
        assert "deadline 1h00m after acceptance; to begin within 200ms" in out
        assert "its start timeout of 200ms passed" in out
        code, out, _ = await _atoll(running, capsys, "submit", "m", "--deadline", "200ms", "--wait")
        assert (code, "expired: deadline of 200ms passed" in out) == (Exit.FAILED, True)
        code, _, err = await _atoll(running, capsys, "submit", "m", "--deadline", "30")
        assert code == Exit.USAGE and "--deadline" in err


async def test_a_tenant_with_too_many_jobs_is_told_when_to_come_back_and_another_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = replace(QUICK, queued_jobs_per_tenant_max=3)
    with structlog.testing.capture_logs() as logs:
        async with orchestrator(tmp_path, policy=policy, metrics=Address(host="127.0.0.1", port=0)) as running:
            where = next(line["metrics"] for line in logs if line["event"] == "serving")
            await running.add_models(model("m"))
            assert (await _atoll(running, capsys, "submit", "m", "--tenant", "flood", "--count", "3"))[0] == Exit.OK
            code, _, err = await _atoll(running, capsys, "submit", "m", "--tenant", "flood")
            assert code == Exit.REFUSED
            assert "tenant flood has 3 jobs under way or waiting, as many as one may have" in err
            assert "hint: try again in 5.0 s" in err, "nothing has ended yet"
            code, out, _ = await _atoll(running, capsys, "submit", "m", "--tenant", "small", "-o", "name")
            assert code == Exit.OK
            code, out, _ = await _atoll(running, capsys, "jobs", "explain", out.strip(), "-o", "json")
            explained = json.loads(out)
            assert (explained["queue_position"], explained["queue_length"]) == (1, 4), "fair: before the rest of the flood"
            assert 'atoll_submits_refused_total{bound="tenant"} 1.0' in await _scrape(where)
