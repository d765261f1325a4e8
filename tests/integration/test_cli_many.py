"""The command line over many nouns at once, against a real orchestrator: ids through pipes, lists that are cut, one that is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from atoll.cli.exits import Exit
from tests.integration.command_line import Atoll, answer, command_line
from tests.integration.running_orchestrator import Running, orchestrator
from tests.unit.fleet_of_machines import model, site


@pytest.fixture
def atoll(capsys: pytest.CaptureFixture[str]) -> Callable[[Running], Atoll]:
    """A function that runs one command line against an orchestrator: (code, standard output, standard error)."""
    return partial(command_line, capsys)


async def test_ids_go_through_pipes(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"))
        _, out, _ = await run("submit", "m", "--count", "3", "-o", "name")
        names = out.split()
        assert len(names) == 3
        code, out, _ = await run("jobs", "cancel", *names, "--reason", "too many", "-o", "name")
        assert (code, out.split()) == (Exit.OK, names)
        jobs = await answer(run, "jobs", "get", *names)
        assert {(job["state"], job["cancel_reason"]) for job in jobs} == {("cancelled", "too many")}


async def test_one_job_that_cannot_be_cancelled_keeps_none_of_the_others(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"))
        first = (await run("submit", "m", "--start-timeout", "1ms", "-o", "name"))[1].strip()
        await run("jobs", "watch", first)
        others = (await run("submit", "m", "--count", "2", "-o", "name"))[1].split()
        code, out, err = await run("jobs", "cancel", others[0], first, "job/no/id", others[1], "-o", "name")
        assert (code, out.split()) == (Exit.CONFLICT, others)
        told, ended, unknown = err.splitlines()
        assert told == "2 of 4 jobs cancelled"
        assert ended == f"error: job {first.removeprefix('job/')} has expired already: nothing is left to cancel"
        assert "no/id" in unknown
        assert {job["state"] for job in await answer(run, "jobs", "get", *others)} == {"cancelled"}
        _, out, _ = await run("jobs", "get", first, others[0])
        assert out.splitlines()[-2:] == [f"{first} expired: start timeout of 1ms passed", f"{others[0]} was cancelled"], (
            "why is said of each"
        )
        code, out, err = await run("jobs", "logs", first)
        assert (code, out) == (Exit.CONFLICT, "") and err.endswith(" is expired: it was never placed, so there is no log\n")


async def test_that_there_are_more_than_are_listed_is_told_in_every_form_beside_the_answer(
    tmp_path: Path, atoll: Callable[[Running], Atoll]
) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"), model("n"))
        await running.apply(site("a"))
        await run("sites", "cordon", "a", "--reason", "smoke")
        for of in ("m", "n", "m"):
            await run("submit", of)
        jobs = [job["job_id"] for job in await answer(run, "jobs", "list")]
        events = [event["seq"] for event in await answer(run, "events")]
        # Of jobs the first are listed, of events the last.
        for verb, key, every, some in ((("jobs", "list"), "job_id", jobs, jobs[:2]), (("events",), "seq", events, events[-2:])):
            for form in ("table", "wide", "json", "yaml", "name"):
                code, out, err = await run(*verb, "--limit", "2", "-o", form)
                assert code == Exit.OK and len(err.splitlines()) == 1
                assert err.startswith("there are more than 2: these are the ") and err.endswith("; --limit 0 lists all\n")
                assert all(str(one) in out for one in some)
            assert [one[key] for one in await answer(run, *verb, "--limit", "2")] == some
            for limit in (str(len(every)), "1000000", "0"):
                code, out, err = await run(*verb, "--limit", limit, "-o", "json")
                assert (code, [one[key] for one in json.loads(out)], err) == (Exit.OK, every, ""), "all of them: nothing is said"
            assert (await run(*verb, "--limit", "-1"))[0] == Exit.USAGE
        assert [event["seq"] for event in await answer(run, "events", "--after", str(events[0]), "--limit", "1")] == events[-1:]
        assert [job["job_id"] for job in await answer(run, "jobs", "list", "--model", "m")] == [jobs[0], jobs[2]]
        assert await answer(run, "jobs", "list", "--model", "n", "--state", "succeeded") == []
