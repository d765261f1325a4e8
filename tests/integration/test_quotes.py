"""Quotes and explanations through a real orchestrator: gRPC in, SQLite below, agents of the protocol beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from atoll.client import AsyncClient, InputError
from atoll.model.attempt import AttemptState, PhaseTimes
from atoll.model.errors import LimitError
from atoll.model.ids import ModelId, TenantId
from atoll.model.job import Job, JobState
from atoll.model.placement import PRICE_TERMS, Reason
from atoll.model.quote import Verdict
from atoll.model.replica import ReplicaFact, ReplicaState
from atoll.v1 import job_service_pb2 as pb
from orchestrator.api import quotes
from orchestrator.core.placement.policy import Policy
from tests.integration.running_orchestrator import PATIENCE_S, QUICK, ScriptedAgent, job, orchestrator, trailers, until
from tests.integration.test_orchestrator_jobs import BAD_JOBS
from tests.unit.fleet_of_machines import GB, model, pool, site

ONE_SLOT = (pool("p", gpus=1),)


async def _until(client: AsyncClient, job_id: str, condition: Callable[[Job], bool]) -> Job:
    async with asyncio.timeout(PATIENCE_S):
        async for change in client.watch([job_id]):
            if condition(change.job):
                return change.job
    raise AssertionError("the stream ended")


async def test_in_a_quiet_fleet_a_submit_does_what_was_quoted_and_the_quote_leaves_no_trace(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running, AsyncClient(str(running.address)) as client:
        await running.add_models(model("m"), model("n", weights_gb=40))
        await running.apply(site("a"), site("b", pool("s", "small"), origin_gbs=2), site("c", origin_gbs=3))
        async with ScriptedAgent(running, "a"), ScriptedAgent(running, "b", pools=(pool("s", "small"),)), ScriptedAgent(running, "c"):
            for before, name in enumerate(("m", "n")):
                quote = await client.quote(name, "a lighthouse", seed=7, steps=30)
                assert quote.verdict is Verdict.NOW and quote.chosen is not None and quote.eta is not None
                assert len([one async for one in client.list()]) == before, "a quote is no job"
                assert quote.gpu_usd_micros > 0 and quote.refusal == "" and quote.ahead == 0
                assert quote.at_us < quote.eta.end_p50_us < quote.eta.end_p90_us
                done = await client.result(await client.submit(name, "a lighthouse", seed=7, steps=30), timeout_s=PATIENCE_S)
                (attempt,) = done.attempts
                told = attempt.explanation
                assert told is not None
                assert (told.chosen, told.others, told.rejections) == (quote.chosen, quote.others, quote.rejections)
                assert (attempt.predicted_us, told.weights_bytes) == (quote.predicted_us, quote.weights_bytes)
                passes = zip(quote.term_names, quote.chosen.terms_us, strict=True)
                assert sum(us for term, us in passes if term not in PRICE_TERMS) == quote.predicted_us


async def test_explanations_of_a_job_that_waits_runs_and_is_done(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running, AsyncClient(str(running.address)) as client:
        await running.add_models(model("m", weights_gb=60))
        await running.apply(site("a", *ONE_SLOT))
        async with ScriptedAgent(running, "a", pools=ONE_SLOT, hold=True) as agent:
            first = await client.submit("m")
            second = await client.submit("m")
            third = await client.submit("m")
            await _until(client, first, lambda one: one.state is JobState.RUNNING)
            explained = await client.explain(first)
            assert explained.eta is not None and explained.eta.begin_p50_us == 0 and explained.eta.end_p50_us > explained.now_us
            assert (explained.queue_position, explained.quote, explained.places) == (0, None, ())
            got = await client.get(first)
            listed = {one.job_id: one async for one in client.list()}
            assert got.eta is not None and got.as_of_us >= explained.now_us and got == listed[first]
            assert listed[first].eta is not None and listed[third].eta is None
            queued = [one.job_id async for one in client.list(states=[JobState.QUEUED])]
            assert set(queued) < {second, third}, "one is bound behind the first, the other waits"
            (waiting,) = queued
            explained = await client.explain(waiting)
            assert explained.queue_position >= 1 and explained.queue_length >= 1
            offered = explained.quote
            assert offered is not None and offered.chosen is not None and explained.eta == offered.eta is not None
            assert offered.verdict is Verdict.WAITS and offered.chosen.wait_us > 0
            assert {one.reason: one.pools for one in offered.rejections} == {Reason.NO_SLOT: 1}
            agent.times = PhaseTimes(waiting_us=0, fetch_us=1_000_000, load_us=2_000_000, run_us=3_000_000, upload_us=1_000)
            await agent.release()
            done = await client.result(waiting, timeout_s=PATIENCE_S)
            explained = await client.explain(waiting)
            assert (explained.eta, explained.quote, explained.queue_position, explained.held_until_us) == (None, None, 0, 0)
            assert explained.job == done and done.attempts[-1].times == agent.times


async def test_what_makes_room_is_named_with_its_price_in_the_quote_and_in_the_decision(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running, AsyncClient(str(running.address)) as client:
        await running.add_models(model("m", weights_gb=60), model("old", weights_gb=50))
        await running.apply(site("a", *ONE_SLOT))
        agent = ScriptedAgent(running, "a", pools=ONE_SLOT, hold=True)
        agent.replicas = (ReplicaFact(model_id=ModelId("old"), state=ReplicaState.WARM, memory_bytes=50 * GB),)
        async with agent:
            async with asyncio.timeout(PATIENCE_S):
                # Until its first report is in, nothing is known to be there.
                while not (quote := await client.quote("m")).evicted:
                    await agent.report()
            (evicted,) = quote.evicted
            assert (evicted.model_id, evicted.memory_bytes) == ("old", 50 * GB) and evicted.price_us > 0
            placed = await _until(client, await client.submit("m"), lambda one: bool(one.attempts))
            told = placed.attempts[0].explanation
            assert told is not None and told.evicted == quote.evicted


async def test_a_job_in_back_off_and_one_that_failed_for_good(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running, AsyncClient(str(running.address)) as client:
        await running.add_models(model("m"))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a", hold=True) as agent:
            job_id = await client.submit("m")
            for tries in (1, 2):
                await _fail(agent)
                await _until(client, job_id, partial(_is_queued_after, tries))
                # A failure of this kind is held back for a second, then two: far longer than this read takes.
                explained = await client.explain(job_id)
                assert explained.held_until_us > explained.now_us and explained.queue_position == 0
                assert explained.quote is not None
                assert {one.reason for one in explained.quote.rejections} == {Reason.RECENT_FAILURE}
            await _fail(agent)
            failed = await _until(client, job_id, lambda one: one.state is JobState.FAILED)
            explained = await client.explain(job_id)
            assert explained.job.failure == failed.failure is not None
            assert (explained.held_until_us, explained.eta, explained.quote) == (0, None, None)


def _is_queued_after(tries: int, one: Job) -> bool:
    return one.state is JobState.QUEUED and len(one.attempts) == tries


async def _fail(agent: ScriptedAgent) -> None:
    await until(lambda: bool(agent.attempts))
    (key,) = agent.attempts
    await agent.end(key, AttemptState.FAILED)


async def test_why_not_there_for_a_job_that_waits_and_one_that_is_done(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running, AsyncClient(str(running.address)) as client:
        await running.add_models(model("m"))
        await running.apply(site("a"), site("b", pool("s", "small"), pool("t")), site("absent"))
        async with ScriptedAgent(running, "a"), ScriptedAgent(running, "b", pools=(pool("s", "small"), pool("t"))):
            done = await client.result(await client.submit("m", sites=["a"]), timeout_s=PATIENCE_S)
            explained = await client.explain(done.job_id, site_id="b")
            assert [(one.pool_id, one.gpu_type, one.reason) for one in explained.places] == [
                ("s", "small", Reason.SITE_NOT_ALLOWED),
                ("t", "big", Reason.SITE_NOT_ALLOWED),
            ]
            assert explained.quote is not None and explained.quote.chosen is not None and explained.quote.chosen.site_id == "a"
            free = await client.result(await client.submit("m"), timeout_s=PATIENCE_S)
            places = (await client.explain(free.job_id, site_id="b")).places
            assert all(one.candidates and one.reason is None for one in places)
            (place,) = (await client.explain(free.job_id, site_id="absent")).places
            assert (place.candidates, place.reason) == ((), Reason.NOT_CONNECTED)
            with pytest.raises(InputError, match=r"^site_id is 'bb': expected a known site; did you mean 'b'") as refused:
                await client.explain(free.job_id, site_id="bb")
            assert refused.value.field == "site_id"
            with pytest.raises(InputError):
                await client.explain(free.job_id, site_id="../b")


@pytest.mark.parametrize(("spec", "field"), BAD_JOBS)
async def test_a_quote_refuses_what_submit_refuses_with_the_same_words(tmp_path: Path, spec: dict[str, Any], field: str) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        told = []
        for call, request in ((running.jobs.Submit, job(**spec)), (running.jobs.Quote, pb.QuoteRequest(spec=job(**spec).spec))):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(request)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            told.append((refused.value.details(), trailers(refused)["atoll-field"]))
        assert told[0] == told[1] and told[1][1] == field


async def test_a_quota_that_would_refuse_the_submit_is_part_of_the_answer(tmp_path: Path) -> None:
    policy = Policy(silent_after_ms=QUICK.silent_after_ms, report_interval_ms=100, queued_jobs_per_tenant_max=1)
    async with orchestrator(tmp_path, policy=policy) as running, AsyncClient(str(running.address)) as client:
        await running.add_models(model("m"))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a", hold=True):
            await client.submit("m")
            quote = await client.quote("m")
            assert "has 1 job under way or waiting" in quote.refusal and quote.retry_after_ms > 0 and quote.chosen is not None


async def test_a_flood_of_quotes_is_bounded_and_delays_no_submit(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running, AsyncClient(str(running.address)) as client:
        await running.add_models(model("m"))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a"):
            calls = [asyncio.ensure_future(running.jobs.Quote(pb.QuoteRequest(spec=job(seed=seed).spec))) for seed in range(1_000)]
            done = await client.result(await client.submit("m"), timeout_s=PATIENCE_S)
            assert done.state is JobState.SUCCEEDED
            answers = await asyncio.gather(*calls, return_exceptions=True)
            refused = [one for one in answers if isinstance(one, grpc.aio.AioRpcError)]
            answered = [one for one in answers if isinstance(one, pb.QuoteResponse)]
            assert len(refused) + len(answered) == 1_000
            assert len(answered) >= quotes.WAITING_PER_TENANT_MAX
            assert {one.code() for one in refused} <= {grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert (await client.quote("m")).verdict is Verdict.NOW, "afterwards quotes are answered again"


async def test_the_desk_lets_each_tenant_wait_and_takes_all_in_turn() -> None:
    desk, order = quotes.Desk(), list[str]()

    async def ask(tenant: str, name: str) -> None:
        await desk.read(TenantId(tenant), lambda: order.append(name))

    names = [str(number) for number in range(quotes.WAITING_PER_TENANT_MAX)]
    waiting = [asyncio.create_task(ask("t", name)) for name in names]
    await asyncio.sleep(0)
    with pytest.raises(LimitError, match="64 of tenant t") as refused:
        await ask("t", "one too many")
    assert refused.value.retry_after_ms > 0
    await asyncio.gather(*waiting, ask("u", "other"))
    assert order == [*names, "other"]
    await ask("t", "later")
    assert order[-1] == "later"


async def test_a_read_that_fails_leaves_the_desk_open() -> None:
    desk = quotes.Desk()
    with pytest.raises(ZeroDivisionError):
        await desk.read(TenantId("t"), lambda: 1 // 0)
    assert await desk.read(TenantId("t"), lambda: 7) == 7
