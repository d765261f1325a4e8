"""`atoll sim trace record`: what a live orchestrator was asked for becomes a trace, which the other verbs read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from atoll.cli.exits import Exit
from sims.traces.reading import TraceFile
from tests.integration.command_line import Atoll, answer, command_line
from tests.integration.running_orchestrator import Running, ScriptedAgent, orchestrator
from tests.unit.fleet_of_machines import model, site


@pytest.fixture
def atoll(capsys: pytest.CaptureFixture[str]) -> Callable[[Running], Atoll]:
    """A function that runs one command line against an orchestrator: (code, standard output, standard error)."""
    return partial(command_line, capsys)


async def test_what_a_fleet_was_asked_for_becomes_a_trace(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    trace = tmp_path / "trace.jsonl"
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        code, _, err = await run("sim", "trace", "record", str(trace))
        assert code == Exit.NOT_FOUND and "the orchestrator has no such jobs" in err and not trace.exists()
        await running.add_models(model("m"))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a"):
            assert (await run("submit", "m", "--prompt", "a secret", "--size", "512x768", "--steps", "3", "--wait"))[0] == Exit.OK
            assert (await run("submit", "m", "--prompt", "a secret", "--priority", "batch", "--deadline", "2h", "--wait"))[0] == Exit.OK
            code, _, err = await run("sim", "trace", "record", str(trace))
            assert code == Exit.OK and err == f"wrote 2 jobs to {trace}\n"
            told = await answer(run, "sim", "trace", "inspect", str(trace))
    first, second = TraceFile(trace).jobs()
    assert (first.arrival_us, first.model_id, first.width, first.height, first.steps) == (0, "m", 512, 768, 3)
    assert (second.priority, second.deadline_ms) == ("batch", 7_200_000)
    assert second.arrival_us > 0
    assert "secret" not in trace.read_text(encoding="utf-8")
    assert (told["jobs"], told["models"], told["unknown_models"]) == (2, 1, ["m"])
