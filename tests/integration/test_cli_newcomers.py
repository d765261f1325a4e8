"""What newcomers stumbled over, at the command line of a real orchestrator: times of day, mistyped names, jobs in vain."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from atoll.cli.app import main
from atoll.cli.exits import Exit
from tests.integration.running_orchestrator import Running, orchestrator

Shown = pytest.CaptureFixture[str]
Atoll = Callable[..., Coroutine[Any, Any, tuple[int, str, str]]]


@pytest.fixture
def atoll(capsys: Shown) -> Callable[[Running], Atoll]:
    """A function that runs one command line against an orchestrator: (code, standard output, standard error)."""

    def at(running: Running) -> Atoll:
        async def run(*arguments: str) -> tuple[int, str, str]:
            capsys.readouterr()
            code = await asyncio.to_thread(main, [*arguments, "--address", str(running.address)])
            shown = capsys.readouterr()
            return code, shown.out, shown.err

        return run

    return at


async def test_events_are_dated_by_a_clock_that_people_have(
    tmp_path: Path, atoll: Callable[[Running], Atoll], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        before = datetime.now(UTC) - timedelta(milliseconds=1)
        assert (await run("sites", "add", "lab", "--region", "Berlin"))[0] == Exit.OK
        told = json.loads((await run("events", "-o", "json"))[1])
        added = next(event for event in told if event["verb"] == "site_added")
        assert before <= datetime.fromisoformat(added["time"]) <= datetime.now(UTC), "RFC 3339, with a time zone"
        assert added["time"].endswith("Z") and added["written_ms"] and added["at_us"] >= 0
        again = json.loads((await run("events", "-o", "json"))[1])
        assert again == told, "a line is dated once, when it is written"
        local = datetime.fromisoformat(added["time"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        out = (await run("events"))[1]
        assert out.split()[:2] == ["SEQ", "TIME"] and "FLEET TIME" not in out
        assert next(line for line in out.splitlines() if "site added" in line).split("   ")[1].strip() == local
        assert "FLEET TIME" in (await run("events", "-o", "wide"))[1]
    async with orchestrator(tmp_path) as running:
        assert json.loads((await atoll(running)("events", "-o", "json"))[1])[: len(told)] == told, "also after a restart"
