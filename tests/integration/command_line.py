"""Command lines of a test against an orchestrator that runs in it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from atoll.cli.app import main
from atoll.cli.exits import Exit
from tests.integration.running_orchestrator import Running

Atoll = Callable[..., Coroutine[Any, Any, tuple[int, str, str]]]


def command_line(capsys: pytest.CaptureFixture[str], running: Running) -> Atoll:
    """A function that runs one command line against an orchestrator: (code, standard output, standard error)."""

    async def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = await asyncio.to_thread(main, [*arguments, "--address", str(running.address)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


async def answer(run: Atoll, *arguments: str) -> Any:
    """The JSON that a command answers; it must end well."""
    code, out, err = await run(*arguments, "-o", "json")
    assert code == Exit.OK, err
    return json.loads(out)
