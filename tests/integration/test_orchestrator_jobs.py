"""Jobs through a real orchestrator: gRPC in, SQLite below, an agent of the protocol beside it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from atoll.model.attempt import AttemptState
from atoll.v1 import job_service_pb2 as pb
from atoll.v1 import operator_service_pb2 as operators_pb
from atoll.v1 import types_pb2
from orchestrator.api import listing
from tests.integration.running_orchestrator import Running, ScriptedAgent, job, orchestrator, trailers, until
from tests.unit.fleet_of_machines import model, site

QUEUED, SUCCEEDED, CANCELLED = types_pb2.JOB_STATE_QUEUED, types_pb2.JOB_STATE_SUCCEEDED, types_pb2.JOB_STATE_CANCELLED


async def test_a_job_is_placed_runs_and_is_shown_with_its_explanation(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a"):
            job_id = await running.submit(seed=7)
            ended = (await running.ended(job_id))[job_id]
        assert ended.state == SUCCEEDED
        assert ended.result.seed == 7
        (attempt,) = ended.attempts
        assert (attempt.site_id, attempt.state) == ("a", types_pb2.ATTEMPT_STATE_SUCCEEDED)
        explained = await running.jobs.Explain(pb.ExplainJobRequest(job_id=job_id))
        chosen = explained.job.attempts[0].explanation
        assert chosen.chosen.site_id == "a"
        assert sum(chosen.chosen.terms_us) == chosen.chosen.total_us
        assert len(chosen.term_names) == len(chosen.chosen.terms_us)


async def test_the_same_key_is_the_same_job_and_another_payload_is_refused(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        first = await running.jobs.Submit(job("k"))
        again = await running.jobs.Submit(job("k"))
        assert (again.job_id, first.existing, again.existing) == (first.job_id, False, True)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.jobs.Submit(job("k", prompt="another"))
        assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
        unkeyed = {await running.submit() for _ in range(3)}
        assert len(unkeyed) == 3
        assert sorted(unkeyed) == sorted(unkeyed, key=str)


async def test_a_batch_accepts_and_refuses_each_on_its_own(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        request = pb.SubmitBatchRequest(jobs=[job("a"), job(model_id="mm"), job("a"), job("a", seed=1), job("b")])
        outcomes = (await running.jobs.SubmitBatch(request)).outcomes
        assert outcomes[0].job_id
        assert (outcomes[1].refusal.code, outcomes[1].refusal.field) == (3, "model_id")
        assert "did you mean 'm'" in outcomes[1].refusal.message
        assert (outcomes[2].job_id, outcomes[2].existing) == (outcomes[0].job_id, True)
        assert outcomes[3].refusal.code == grpc.StatusCode.ALREADY_EXISTS.value[0]
        assert outcomes[4].job_id != outcomes[0].job_id


BAD_JOBS: list[tuple[dict[str, Any], str]] = [
    ({"model_id": "tiny"}, "model_id"),
    ({"model_id": "../m"}, "model_id"),
    ({"model_id": "m\n"}, "model_id"),
    ({"prompt": "x" * 1_000_000}, "prompt"),
    ({"prompt": "\x00"}, "prompt"),
    ({"shape": types_pb2.Shape(width=-8)}, "shape.width"),
    ({"shape": types_pb2.Shape(steps=10**9)}, "shape.steps"),
    ({"seed": -1}, "seed"),
    ({"deadline_ms": -1}, "deadline_ms"),
    ({"priority": 99}, "priority"),
    ({"adapters": [types_pb2.AdapterUse(adapter_id="a")]}, "adapters[0].adapter_id"),
    ({"gang_size": 3}, "gang_size"),
    ({"inputs": [types_pb2.InputRef(name="a", digest="sha256:" + "0" * 64, bytes=1)]}, "inputs[0].name"),
    ({"inputs": [types_pb2.InputRef(name="image", digest="sha256:" + "0" * 64, bytes=1)]}, "strength_milli"),
    ({"strength_milli": 500}, "strength_milli"),
    ({"strength_milli": 1_001}, "strength_milli"),
    ({"constraints": types_pb2.Constraints(sites=["nowhere"])}, "constraints.sites"),
    ({"constraints": types_pb2.Constraints(gpu_types=["H1000"])}, "constraints.gpu_types"),
    ({"constraints": types_pb2.Constraints(regions=["mars"])}, "constraints.regions"),
    ({"origin_site": "nowhere"}, "origin_site"),
    ({"tenant": "a/b"}, "tenant"),
]


async def test_bad_jobs_are_refused_naming_the_field_and_nothing_is_kept(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        await running.apply(site("a"))
        for fields, field in BAD_JOBS:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await running.jobs.Submit(job(**fields))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, fields
            assert trailers(refused)["atoll-field"] == field
            assert len(refused.value.details() or "") < 600
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.jobs.Submit(job("a key with spaces"))
        assert trailers(refused)["atoll-field"] == "idempotency_key"
        assert not (await running.jobs.List(pb.ListJobsRequest())).jobs


async def test_bytes_that_are_no_message_are_bad_input_and_say_nothing_of_us(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        call = running.channel.unary_unary("/atoll.v1.JobService/Submit")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"\xff\xff\xff")
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "Traceback" not in (refused.value.details() or "")
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await running.channel.unary_unary("/atoll.v1.JobService/Nothing")(b"")
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_request_id_is_taken_or_made_and_reaches_the_job_and_the_agent(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a", hold=True) as agent:
            call = running.jobs.Submit(job(), metadata=(("x-request-id", "trace-1"),))
            response = await call
            assert dict(await call.trailing_metadata())["x-request-id"] == "trace-1"
            await until(lambda: bool(agent.attempts))
            assert [attempt.request_id for attempt in agent.attempts.values()] == ["trace-1"]
            assert (await running.get(response.job_id)).request_id == "trace-1"
            made = running.jobs.Submit(job(), metadata=(("x-request-id", "not a legal id"),))
            await made
            assert len(dict(await made.trailing_metadata())["x-request-id"]) == 32


async def test_cancelling_waiting_running_and_ended_jobs(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        waiting = await running.submit()
        cancelled = await running.jobs.Cancel(pb.CancelJobRequest(job_id=waiting, reason="changed my mind"))
        assert (cancelled.state, cancelled.cancel_reason) == (CANCELLED, "changed my mind")
        assert (await running.jobs.Cancel(pb.CancelJobRequest(job_id=waiting))).state == CANCELLED
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a", hold=True) as agent:
            job_id = await running.submit()
            await until(lambda: bool(agent.attempts))
            assert (await running.jobs.Cancel(pb.CancelJobRequest(job_id=job_id))).state == CANCELLED
            await until(lambda: not agent.attempts and not agent.outbox)
            assert (await running.operators.GetSite(operators_pb.GetSiteRequest(site_id="a"))).live_attempts == 0
            assert (await running.get(job_id)).state == CANCELLED
            await agent.release()
            done = await running.submit()
            await running.ended(done)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.jobs.Cancel(pb.CancelJobRequest(job_id=done))
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def _pages(running: Running, size: int, **filters: Any) -> list[list[str]]:
    pages: list[list[str]] = []
    token = ""
    while True:
        response = await running.jobs.List(pb.ListJobsRequest(page_size=size, page_token=token, **filters))
        pages.append([one.job_id for one in response.jobs])
        token = response.next_page_token
        if not token:
            return pages


async def test_listing_pages_over_live_and_ended_jobs_newest_first(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"), model("n"))
        submitted = [await running.submit(tenant="t" if index % 2 else "u") for index in range(12)]
        for job_id in submitted[3:6]:
            await running.jobs.Cancel(pb.CancelJobRequest(job_id=job_id))
        live = [job_id for job_id in submitted if job_id not in submitted[3:6]]
        for size in (1, 4, 5, 100):
            pages = await _pages(running, size)
            assert [job_id for page in pages for job_id in page] == live[::-1] + submitted[3:6][::-1]
            assert all(len(page) <= size for page in pages)
        assert await _pages(running, 100, tenant="t") == [[one for one in live[::-1] + submitted[3:6][::-1] if one in submitted[1::2]]]
        assert await _pages(running, 2, states=[CANCELLED]) == [submitted[3:6][:0:-1], submitted[3:4]]


async def test_jobs_of_one_model_are_listed_and_an_unknown_name_says_what_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So few are looked at for one page that its jobs lie on several.
    monkeypatch.setattr(listing, "_READ_AT_ONCE", 2)
    monkeypatch.setattr(listing, "_READ_MAX", 4)
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"), *(model(f"other-{number}") for number in range(6)))
        submitted = [await running.submit(model_id="m" if index in (0, 9, 11) else "other-1") for index in range(12)]
        for job_id in submitted[:10]:
            await running.jobs.Cancel(pb.CancelJobRequest(job_id=job_id))
        mine = [submitted[11], submitted[9], submitted[0]]
        for size in (1, 2, 100):
            pages = await _pages(running, size, model_id="m")
            assert [job_id for page in pages for job_id in page] == mine
            assert all(len(page) <= size for page in pages)
        assert len(await _pages(running, 100, model_id="m")) == 3, "ten that have ended are looked at four by four"
        assert await _pages(running, 100, model_id="m", states=[CANCELLED]) == [[submitted[9]], [], [submitted[0]]]
        assert await _pages(running, 100, model_id="other-2") == [[], [], []], "it is known: nobody asked for it"
        token = (await running.jobs.List(pb.ListJobsRequest(page_size=1, model_id="m"))).next_page_token
        for request, field, meant in (
            (pb.ListJobsRequest(page_token=token, model_id="other-1"), "page_token", ""),
            (pb.ListJobsRequest(model_id="othr-1"), "model_id", "did you mean 'other-1'"),
            (pb.ListJobsRequest(model_id="nope"), "model_id", "none of the 7 is like it"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await running.jobs.List(request)
            assert trailers(refused)["atoll-field"] == field and meant in (refused.value.details() or "")


async def test_page_tokens_from_elsewhere_are_refused(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        for _ in range(3):
            await running.submit()
        token = (await running.jobs.List(pb.ListJobsRequest(page_size=1))).next_page_token
        hostile = ["x", "=" * 50, "A" * 10_000, token[:-3], "WyJsaXZlIiwgWzEsIDFdLCAiIl0", "\u20ac"]
        requests = [pb.ListJobsRequest(page_token=one) for one in hostile]
        requests.append(pb.ListJobsRequest(page_token=token, states=[QUEUED]))
        for request in requests:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await running.jobs.List(request)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert trailers(refused)["atoll-field"] == "page_token"


async def test_watching_from_the_present_and_resuming_from_a_number(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a", hold=True) as agent:
            first = await running.submit()
            await until(lambda: len(agent.attempts) == 1)
            watch = running.jobs.Watch(pb.WatchJobsRequest())
            present = await watch.read()
            assert (present.job.job_id, present.job.state) == (first, types_pb2.JOB_STATE_PLACED)
            watch.cancel()
            second = await running.submit()
            await agent.release()
            await running.ended(first, second)
            seen: dict[str, list[int]] = {}
            last = present.seq
            async for response in running.jobs.Watch(pb.WatchJobsRequest(after_seq=present.seq)):
                assert response.seq > last
                assert not response.resync
                last = response.seq
                seen.setdefault(response.job.job_id, []).append(response.job.state)
                if all(states[-1:] == [SUCCEEDED] for states in seen.values()) and len(seen) == 2:
                    break
            assert seen[first][-1] == SUCCEEDED
            assert seen[second][0] in (QUEUED, types_pb2.JOB_STATE_PLACED)


async def test_a_watcher_with_a_number_of_another_life_gets_the_present_and_is_told(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        job_id = await running.submit()
        last = (await running.jobs.Watch(pb.WatchJobsRequest()).read()).seq
    async with orchestrator(tmp_path) as running:
        watch = running.jobs.Watch(pb.WatchJobsRequest(after_seq=last))
        told = await watch.read()
        assert told.resync
        assert told.seq > last
        assert (await watch.read()).job.job_id == job_id
        watch.cancel()
        named = running.jobs.Watch(pb.WatchJobsRequest(job_ids=["j-nobody"]))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await named.read()
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_failed_attempt_is_tried_again_and_the_job_says_both(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        await running.apply(site("a"), site("b"))
        async with ScriptedAgent(running, "a", hold=True) as a, ScriptedAgent(running, "b", hold=True) as b:
            job_id = await running.submit()
            await until(lambda: bool(a.attempts or b.attempts))
            first, second = (a, b) if a.attempts else (b, a)
            await first.end(next(iter(first.attempts)), AttemptState.FAILED)
            await until(lambda: bool(second.attempts))
            await second.release()
            ended = (await running.ended(job_id))[job_id]
        assert [attempt.state for attempt in ended.attempts] == [
            types_pb2.ATTEMPT_STATE_FAILED,
            types_pb2.ATTEMPT_STATE_SUCCEEDED,
        ]


async def test_many_submits_share_commits(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        job_ids = await asyncio.gather(*(running.submit() for _ in range(200)))
        assert len(set(job_ids)) == 200
        assert (await running.get(job_ids[0])).state == QUEUED
