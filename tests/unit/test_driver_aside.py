"""Jobs over which the core fails: it goes on without them, and says so."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from atoll.model.attempt import FailureKind
from atoll.model.ids import ChangeSeq, JobId
from atoll.model.job import Job, JobState
from atoll.model.shape import Shape
from orchestrator.core.durable import Stored
from orchestrator.core.events import JobsSubmitted, Submission
from orchestrator.core.machine import Machine, new_machine
from orchestrator.core.outputs import Done, Reply, SubmitReply
from orchestrator.core.placement.choose import Board, Scorer
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.placement.policy import Policy
from orchestrator.inbox import Lane
from orchestrator.refusals import CoreFailedError
from tests.unit.fleet_of_machines import GPUS, spec
from tests.unit.test_driver import Bench, bench

_HARMFUL = Shape(width=1024, height=1024, steps=13)


def _touchy(stored: Stored) -> Machine:
    """The real core, whose scorer trips over one shape as soon as there is a place for it."""
    machine = new_machine(stored, Policy(), GPUS)
    columns, scored = machine.context.columns, machine.context.scorer.score

    def score(key: ClassKey, *figures: Any, **more: Any) -> Board:
        if key.shape == _HARMFUL and columns.columns:
            raise OverflowError("planted")
        return scored(key, *figures, **more)

    machine.context.scorer = cast(Scorer, SimpleNamespace(score=score))
    return machine


async def _submit(b: Bench, *specs: tuple[str, Shape]) -> Reply:
    submissions = tuple(
        Submission(job_id=JobId(name), spec=spec(shape=shape), idempotency_key=name, payload_digest="", request_id="")
        for name, shape in specs
    )
    return await b.driver.ask(Lane.SUBMITS, lambda ref: JobsSubmitted(request=ref, submissions=submissions), jobs=len(specs))


async def _applied(b: Bench) -> int:
    """Apply a site until that is heard; how often the core failed over it."""
    failed = 0
    while True:
        try:
            if isinstance(await b.applied(), Done):
                return failed
        except CoreFailedError:
            failed += 1
        await asyncio.sleep(0.001)


async def _found(b: Bench, name: str) -> Job | None:
    return await b.store.get_job(JobId(name))


def _is_set_aside(job: Job | None) -> bool:
    return (
        job is not None
        and job.state is JobState.FAILED
        and job.failure is not None
        and job.failure.kind is FailureKind.INTERNAL
        and "set aside (reference " in job.failure.message
    )


async def test_the_second_time_that_the_core_fails_over_them_they_are_set_aside_and_the_rest_goes_on(tmp_path: Path) -> None:
    usual = spec().shape
    async with bench(tmp_path, _touchy) as b:
        assert isinstance(await _submit(b, ("j-1", usual), ("j-2", _HARMFUL), ("j-3", _HARMFUL)), SubmitReply)
        assert await _applied(b) == 2
        assert _is_set_aside(await _found(b, "j-2")) and _is_set_aside(await _found(b, "j-3"))
        kept = await _found(b, "j-1")
        assert kept is not None and kept.state is JobState.QUEUED
        (line,) = [line for line in await b.store.list_audit(after=ChangeSeq(0), limit=100) if line.verb == "jobs_set_aside"]
        assert line.detail.startswith("j-2, j-3; reference ")
        assert isinstance(await _submit(b, ("j-4", usual)), SubmitReply)


async def test_a_store_over_which_the_core_would_fail_at_each_start_is_taken_over(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        await _submit(b, ("j-1", spec().shape), ("j-2", _HARMFUL))
        assert isinstance(await b.applied(), Done)
    async with bench(tmp_path, _touchy) as b:
        assert _is_set_aside(await _found(b, "j-2"))
        kept = await _found(b, "j-1")
        assert kept is not None and kept.state is JobState.QUEUED


async def test_a_core_that_cannot_start_for_another_reason_still_says_so(tmp_path: Path) -> None:
    class Broken(Machine):
        def handle(self, event: Any, now_us: int) -> Any:
            raise ZeroDivisionError("planted")

    b = Bench(tmp_path, lambda stored: Broken(new_machine(stored, Policy(), GPUS).context))
    stored = await b.store.take_over()
    with pytest.raises(CoreFailedError):
        b.driver.begin(stored)
    await b.store.close()
