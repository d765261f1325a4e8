"""`atoll sim replay`: recordings of a live orchestrator, decided again, explained as they were live, and refused where they are broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from atoll.cli.app import main
from atoll.cli.exits import Exit
from orchestrator.recorder import FORMAT_VERSION, RecordingBegun, codec
from tests.integration.command_line import Atoll, answer, command_line
from tests.integration.running_orchestrator import Running, ScriptedAgent, orchestrator
from tests.unit.fleet_of_machines import Fleet, model, pool, site


@pytest.fixture
def atoll(capsys: pytest.CaptureFixture[str]) -> Callable[[Running], Atoll]:
    """A function that runs one command line against an orchestrator: (code, standard output, standard error)."""
    return partial(command_line, capsys)


@pytest.fixture
def replay(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A function that replays a recording: (code, standard output, standard error)."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["sim", "replay", *(str(one) for one in arguments)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


Replay = Callable[..., tuple[int, str, str]]


def story(text: str) -> list[str]:
    """An explanation without the line that says which moment it is of."""
    return [line for line in text.splitlines() if not line.startswith("after step")]


async def recorded(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> tuple[Path, dict[str, Any], dict[str, str], list[str]]:
    """A recording; what was answered live of a job that waited; the texts then, by job; all jobs in the order of submission."""
    recording = tmp_path / "run.jsonl"
    async with orchestrator(tmp_path / "data", record=recording) as running:
        run = atoll(running)
        await running.add_models(model("m"))
        await running.apply(site("a", pool("p", gpus=1)), site("b", pool("p", gpus=1)))
        async with ScriptedAgent(running, "a", hold=True) as a, ScriptedAgent(running, "b", hold=True) as b:
            jobs = [await running.submit(seed=seed) for seed in range(6)]
            states = {job: (await running.get(job)).state for job in jobs}
            waiting = next((job for job in reversed(jobs) if states[job] == min(states.values())), jobs[-1])
            live = await answer(run, "jobs", "explain", waiting)
            await a.release()
            await b.release()
            await running.ended(*jobs)
            texts = {job: (await run("jobs", "explain", job))[1] for job in jobs}
    return recording, live, texts, jobs


async def test_a_moment_is_explained_as_it_was_live(tmp_path: Path, atoll: Callable[[Running], Atoll], replay: Replay) -> None:
    recording, live, texts, jobs = await recorded(tmp_path, atoll)
    code, out, err = replay(recording)
    assert code == Exit.OK and "all as recorded" in out, err

    waiting = live["job"]["job_id"]
    code, out, err = replay(recording, "--until", f"{live['now_us']}us", "--explain", waiting, "-o", "json")
    assert code == Exit.OK, err
    then = json.loads(out)
    assert live["job"]["state"] == "queued" and live["quote"] is not None
    for name in ("now_us", "queue_position", "queue_length", "held_until_us", "quote", "eta"):
        assert then[name] == live[name], name

    # At its end it says of each job what was said at the end.
    for job in jobs:
        code, out, err = replay(recording, "--explain", job)
        assert code == Exit.OK and story(out) == texts[job].splitlines(), err


async def test_a_job_names_the_moment_of_its_placement(tmp_path: Path, atoll: Callable[[Running], Atoll], replay: Replay) -> None:
    recording, live, _, jobs = await recorded(tmp_path, atoll)
    waited = live["job"]["job_id"]
    code, out, err = replay(recording, "--until", f"job/{waited}", "-o", "json")
    assert code == Exit.OK, err
    placed = json.loads(out)
    assert placed["job"]["state"] == "placed" and len(placed["job"]["attempts"]) == 1
    assert placed["now_us"] > live["now_us"]
    step = int(err.split("after step ")[1].split()[0])
    code, out, err = replay(recording, "--until", str(step - 1), "--explain", waited, "-o", "json")
    assert json.loads(out)["job"]["state"] == "queued", err
    code, out, err = replay(recording, "--until", str(step), "--explain", waited, "--site", "b")
    assert code == Exit.OK and "What b offers it" in out, err

    begins = jobs[0][:4]
    assert all(job.startswith(begins) for job in jobs) is (replay(recording, "--explain", begins)[0] == Exit.USAGE)
    code, _, err = replay(recording, "--until", "1", "--explain", waited)
    assert code == Exit.NOT_FOUND and f"no job {waited!r}" in err
    code, _, err = replay(recording, "--until", "100000")
    assert code == Exit.NOT_FOUND and "the recording ends at step" in err
    code, _, err = replay(recording, "--until", "noon")
    assert code == Exit.NOT_FOUND and "the recording ends at step" in err  # it may be the beginning of a job's id
    code, _, err = replay(recording, "--until", "at noon")
    assert code == Exit.USAGE and "expected a step such as 1200" in err


async def test_what_differs_is_told_by_its_step(tmp_path: Path, atoll: Callable[[Running], Atoll], replay: Replay) -> None:
    recording, _, _, jobs = await recorded(tmp_path, atoll)
    lines = recording.read_bytes().splitlines(keepends=True)
    at = next(index for index, line in enumerate(lines) if b'"JobsSubmitted"' in line[:80] or b'"$":"JobsSubmitted"' in line)
    changed = tmp_path / "changed.jsonl"
    changed.write_bytes(b"".join(lines[:at] + lines[at + 1 :]))
    code, out, err = replay(changed)
    assert code == Exit.FAILED and not out
    assert f"{changed}:" in err and "step " in err and "expected records" in err and "found " in err and "Traceback" not in err
    # Up to there it is as recorded.
    assert replay(changed, "--until", str(at - 1))[0] == Exit.OK

    older = tmp_path / "older.jsonl"
    older.write_bytes(changed.read_bytes().replace(b'"program":"', b'"program":"0.0.', 1))
    assert "hint: it was recorded by version 0.0." in replay(older)[2]

    torn = tmp_path / "torn.jsonl"
    torn.write_bytes(recording.read_bytes()[:-10])
    code, out, _ = replay(torn)
    assert code == Exit.OK and "half written" in out
    assert len(jobs) == 6


async def test_a_file_that_is_no_recording_gets_one_error(tmp_path: Path, atoll: Callable[[Running], Atoll], replay: Replay) -> None:
    recording, _, _, _ = await recorded(tmp_path, atoll)
    first, second = recording.read_bytes().splitlines(keepends=True)[:2]
    fleet = Fleet(site("a"))
    # A fleet of GPUs that the recording does not know.
    begun = RecordingBegun(version=FORMAT_VERSION, policy=fleet.policy, gpus=(), snapshot=fleet.machine.snapshot())
    cases = {
        b"": "expected a recording of 'atoll orchestrator --record'",
        first[:100]: "expected a recording of 'atoll orchestrator --record'",
        b"arrival_us,model_id\n1,m\n": ":1: the line is",
        b"\x1f\x8b\x08\x00\n": "expected text, and this is compressed: unpack it first, with gunzip",
        b"[" * 100_000 + b"\n": ":1: the line is",
        second: "expected a snapshot, with which a recording begins",
        first.replace(b'"version":1', b'"version":2'): "expected version 1 of the format",
        first.replace(b'"now_us":', b'"now_us":"noon","then_us":', 1): "expected a whole number",
        codec().encode(begun) + b"\n": "expected one that a core can be made of",
        first + second.replace(b'"now_us":', b'"now_us":1e999,"then_us":'): ":2: ",
    }
    for content, expected in cases.items():
        broken = tmp_path / "broken.jsonl"
        broken.write_bytes(content)
        code, out, err = replay(broken)
        assert code in {Exit.USAGE, Exit.FAILED} and not out, content[:80]
        assert expected in err and err.count("error: ") == 1 and len(err) < 1_000, (content[:80], err)
    for path in (tmp_path / "nothing.jsonl", tmp_path):
        code, _, err = replay(path)
        assert code == Exit.FAILED and "cannot be read" in err
