"""Dead letters through the command line, against a real orchestrator: listed with why, and asked for again, once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from atoll.cli.exits import Exit
from atoll.client import again
from atoll.model.ids import AdapterId, JobId, SiteId
from atoll.model.job import Constraints, InputRef, Job, JobState, Priority
from atoll.model.modelspec import AdapterUse
from atoll.model.shape import Precision
from atoll.wire.jobs import job_spec_to_proto
from tests.integration.command_line import Atoll, answer, command_line
from tests.integration.running_orchestrator import Running, orchestrator
from tests.unit.fleet_of_machines import GPUS, model, spec


@pytest.fixture
def atoll(capsys: pytest.CaptureFixture[str]) -> Callable[[Running], Atoll]:
    """A function that runs one command line against an orchestrator: (code, standard output, standard error)."""
    return partial(command_line, capsys)


async def _failed(run: Atoll, running: Running, name: str, count: int) -> list[str]:
    """Jobs that failed as their model was taken away; it is back."""
    _, out, _ = await run("submit", name, "--count", str(count), "-o", "name")
    await run("models", "remove", name, "--reason", "by mistake")
    await running.add_models(model(name))
    return out.split()


async def test_dead_letters_are_listed_with_why_and_asked_for_again_once(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"), model("n"))
        dead, other = await _failed(run, running, "m", 2), await _failed(run, running, "n", 1)
        alive = (await run("submit", "m", "-o", "name"))[1].strip()

        _, out, _ = await run("jobs", "list", "--dead", "-o", "name")
        assert sorted(out.split()) == sorted([*dead, *other])
        _, out, _ = await run("jobs", "list", "--failure", "bad_input,expired", "--model", "n")
        (line,) = out.splitlines()[1:]
        assert line.startswith(other[0].removeprefix("job/")) and line.endswith("bad input: model n was removed: by mistake")
        assert await run("jobs", "list", "--failure", "lost") == (Exit.OK, "", "no dead letters\n")
        code, _, err = await run("jobs", "list", "--failure", "tired")
        assert code == Exit.USAGE and "--failure is 'tired': expected one of bad_input, " in err

        _, out, err = await run("jobs", "retry", "--dead", "--model", "m", "--dry-run", "-o", "name")
        assert sorted(out.split()) == sorted(dead) and err.startswith("dry run: 2 jobs would be asked for again")
        assert len(await answer(run, "jobs", "list")) == 4

        first = await answer(run, "jobs", "retry", "--dead", "--model", "m")
        assert {f"job/{one['again_of']}" for one in first} == set(dead) and not any(one["existing"] for one in first)
        second = await answer(run, "jobs", "retry", dead[0], dead[1])
        assert {one["job_id"] for one in second} == {one["job_id"] for one in first} and all(one["existing"] for one in second)

        # Those that were asked for before are passed by: so many new ones are meant.
        third = await answer(run, "jobs", "retry", "--dead", "--limit", "1")
        assert [f"job/{one['again_of']}" for one in third if not one["existing"]] == other

        code, _, err = await run("jobs", "retry", dead[0], alive)
        assert code == Exit.CONFLICT and "only one that failed, expired or was cancelled is asked for again" in err
        for wrong in (["retry"], ["retry", "--dead", dead[0]], ["retry", dead[0], "--model", "m"], ["list", "--dead", "--state", "failed"]):
            code, _, err = await run("jobs", *wrong)
            assert code == Exit.USAGE, err


async def test_what_the_fleet_no_longer_has_is_refused_by_name(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"), model("n"))
        (gone,), (kept,) = await _failed(run, running, "m", 1), await _failed(run, running, "n", 1)
        await run("models", "remove", "m", "--reason", "old")
        code, out, err = await run("jobs", "retry", "--dead", "-o", "name")
        assert code == Exit.USAGE and len(out.split()) == 1 and kept not in out
        assert "1 of 2 jobs asked for again" in err and f"error: {gone.replace('/', ' ')}: " in err and "model_id is 'm'" in err


def test_all_that_a_job_asked_for_is_asked_for_again() -> None:
    asked = spec(
        prompt="a lighthouse",
        negative_prompt="fog",
        seed=7,
        guidance_milli=3_500,
        precision=Precision.FP16,
        priority=Priority.URGENT,
        deadline_ms=60_000,
        start_timeout_ms=5_000,
        adapters=(AdapterUse(adapter_id=AdapterId("ink"), scale_milli=-250),),
        gang_size=2,
        constraints=Constraints(sites=(SiteId("a"),), regions=("Berlin",), gpu_types=tuple(GPUS), max_price_usd_micros=123_457),
        inputs=(InputRef(name="image", digest="sha256:" + "1" * 64, bytes=9),),
        strength_milli=333,
        origin_site=SiteId("a"),
        simulated=True,
    )
    job = Job(job_id=JobId("j"), spec=asked, state=JobState.FAILED, idempotency_key="k", payload_digest="d", request_id="r", accepted_us=1)
    assert again(job).to_proto().spec == job_spec_to_proto(asked)
