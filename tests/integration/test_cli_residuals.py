"""What was learned, seen from the command line of a real orchestrator: lines, gates, exit codes, forgetting."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atoll.cli.app import main
from atoll.cli.exits import CliError, Exit
from atoll.cli.residuals import judged, show
from atoll.client import AsyncClient, InputError, NotFoundError
from atoll.model.attempt import PhaseTimes
from atoll.model.learned import Calibration, Component, Gate
from tests.integration.running_orchestrator import Running, ScriptedAgent, orchestrator
from tests.unit.fleet_of_machines import model, site

Shown = pytest.CaptureFixture[str]
SECOND = 1_000_000


def _at(running: Running, capsys: Shown) -> Callable[..., Coroutine[Any, Any, tuple[int, str, str]]]:
    async def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = await asyncio.to_thread(main, [*arguments, "--address", str(running.address)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


async def test_what_attempts_took_is_learned_shown_and_forgotten(tmp_path: Path, capsys: Shown) -> None:
    async with orchestrator(tmp_path) as running:
        run = _at(running, capsys)
        code, out, err = await run("costs", "residuals")
        assert (code, out) == (Exit.OK, "") and err.startswith("nothing was learned yet")
        code, out, err = await run("costs", "calibrate")
        assert (code, err) == (Exit.UNDECIDED, "nothing judged yet: 0 of 200 attempts\n")
        assert out.startswith("no attempt has ended since learning began")
        await running.add_models(model("m"))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a") as agent:
            agent.times = PhaseTimes(load_us=9 * SECOND, run_us=30 * SECOND)
            for seed in range(6):
                await running.ended(await running.submit(seed=seed))
        code, out, err = await run("costs", "residuals")
        assert code == Exit.OK
        assert out.splitlines()[0].split() == ["COMPONENT", "LEVEL", "WHO", "JOBS", "FACTOR", "OFF", "SPREAD", "WITHIN", "P90"]
        assert any(line.startswith("execution") and " site " in line and " a " in line for line in out.splitlines())
        assert "m at" not in out and "more lines about single models" in err
        assert "FACTOR: what this level multiplies a prediction by" in err
        assert "m at a" in (await run("costs", "residuals", "--model", "m"))[1]
        for option, name in (("--site", "nowhere"), ("--model", "nothing")):
            code, out, err = await run("costs", "residuals", option, name)
            assert (code, out) == (Exit.NOT_FOUND, "") and name in err
        code, out, _ = await run("costs", "residuals", "--component", "execution", "-o", "json")
        told = json.loads(out)
        assert {row["component"] for row in told["residuals"]} == {"execution"} and not told["truncated"]
        (every,) = [row for row in told["residuals"] if row["level"] == "all"]
        assert every["effect_milli"] > 1_050 and every["observations_milli"] == pytest.approx(6_000, rel=0.01)
        assert (await run("costs", "residuals", "-o", "name"))[1].splitlines()[0] == "residual/load/all"
        code, out, err = await run("costs", "calibrate")
        assert (code, err) == (Exit.UNDECIDED, "nothing judged yet: 6 of 200 attempts\n") and "too few jobs yet: 6 of 200" in out
        assert "What is quoted, as a multiple of what is predicted:" in out
        rows = [re.split(r" {2,}", line.strip())[:3] for line in out.splitlines() if line.startswith("  warm")]
        assert rows == [["warm", "image", part] for part in ("until it executes", "execution and result", "both")]
        told = json.loads((await run("costs", "calibrate", "-o", "json"))[1])["quotes"]
        assert {(one["start"], one["part"]) for one in told} >= {("warm", "before"), ("warm", "execution"), ("warm", "whole")}
        code, _, err = await run("costs", "calibrate", "--reset")
        assert code == Exit.USAGE and "--reason" in err
        code, _, err = await run("costs", "calibrate", "--reset", "--site", "nowhere", "--reason", "moved")
        assert code == Exit.NOT_FOUND and "nowhere" in err
        code, _, err = await run("costs", "calibrate", "--reset", "--component", "execution", "--reason", "new drivers")
        assert code == Exit.OK and "forgotten: execution everywhere" in err
        assert (await run("costs", "residuals", "--component", "execution"))[1] == ""
        assert "load" in (await run("costs", "residuals"))[1]
        assert "estimates reset" in (await run("events"))[1]


def test_help_names_every_component(capsys: Shown) -> None:
    assert main(["costs", "residuals", "--help"]) == Exit.OK
    told = set(capsys.readouterr().out.replace(".", " ").replace(",", " ").split())
    assert told >= set(Component)


async def test_what_is_no_component_and_no_site_is_said_so(tmp_path: Path, capsys: Shown) -> None:
    async with orchestrator(tmp_path) as running:
        run = _at(running, capsys)
        code, _, err = await run("costs", "residuals", "--component", "magic")
        assert code == Exit.USAGE and err.startswith("error: --component is 'magic': expected one of fetch, load, adapt, compile, ")
        for verb in (("residuals",), ("rates",), ("calibrate", "--reset", "--reason", "r")):
            code, _, err = await run("costs", *verb, "--site", "a b")
            assert code == Exit.USAGE and err.startswith("error: --site is 'a b': expected 1 to 63 of ")
        for noun in ("site", "model"):
            code, out, err = await run("costs", "residuals", f"--{noun}", "nope")
            assert (code, out) == (Exit.NOT_FOUND, "") and f"no {noun} 'nope'" in err and "nothing was learned" not in err
        await running.apply(site("a"))
        code, _, err = await run("costs", "residuals", "--site", "a")
        assert (code, err) == (Exit.OK, "nothing was learned yet: no attempt of that kind has ended\n")
        code, _, err = await run("costs", "calibrate", "--site", "a")
        assert code == Exit.USAGE and "--reset" in err
        async with AsyncClient(str(running.address)) as client:
            with pytest.raises(InputError, match="component"):
                await client.residuals(component="magic")
            with pytest.raises(InputError, match="reason"):
                await client.estimates_reset(reason="")
            with pytest.raises(NotFoundError):
                await client.estimates_reset(site_id="nowhere", reason="r")
            assert (await client.calibration()).learning


def _gate(*, enough: bool, passed: bool) -> Gate:
    return Gate(name="execution", observations=1, median_milli=0, coverage_milli=900, enough=enough, passed=passed)


@pytest.mark.parametrize(
    ("gates", "known"),
    [
        ((), False),
        ((_gate(enough=False, passed=False),), False),
        ((_gate(enough=True, passed=True), _gate(enough=False, passed=False)), True),
    ],
)
def test_gates_hold_when_something_can_be_said_and_nothing_fails(gates: tuple[Gate, ...], known: bool) -> None:
    assert judged(Calibration(gates=gates, quotes=(), factors=0, shifts=0, learning=True)) is known
    failing = (*gates, _gate(enough=True, passed=False))
    with pytest.raises(CliError, match="predictions are off: execution"):
        judged(Calibration(gates=failing, quotes=(), factors=0, shifts=0, learning=True))


def test_a_gate_that_fails_says_how_and_where_to_look(capsys: Shown) -> None:
    slow = Gate(name="total", observations=630, median_milli=156, coverage_milli=905, enough=True, passed=False)
    tight = Gate(name="fetch", observations=300, median_milli=-70, coverage_milli=700, enough=True, passed=False)
    young = Gate(name="load", observations=41, median_milli=4, coverage_milli=902, enough=False, passed=False)
    good = Gate(name="execution", observations=250, median_milli=38, coverage_milli=912, enough=True, passed=True)
    shown = Calibration(gates=(tight, young, good, slow), quotes=(), factors=3, shifts=0, learning=True)
    show(shown)
    out = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("   ") if cell.strip()] for line in out.splitlines()]
    assert ["PREDICTED", "JOBS", "TYPICALLY TOOK", "WITHIN P90", "IN THE GATES"] in lines
    assert ["all of it, as quoted", "630", "17 % longer", "90 %", "no: it takes 17 % longer"] in lines
    assert ["fetch", "300", "7 % less", "70 %", "no: it takes 7 % less, P90 is exceeded too often"] in lines
    assert ["load", "41", "as predicted", "90 %", "too few jobs yet: 41 of 200"] in lines
    assert ["execution", "250", "4 % longer", "91 %", "yes"] in lines
    assert "at most 5.1 % longer or 4.9 % less," in out and "87 to 93 % within their P90; judged from 200 jobs on" in out
    for median_milli, coverage_milli, cells in (
        (51, 900, ["5.2 % longer", "90 %", "no: it takes 5.2 % longer"]),
        (-51, 900, ["5.0 % less", "90 %", "no: it takes 5.0 % less"]),
        (0, 869, ["as predicted", "86.9 %", "no: P90 is exceeded too often"]),
        (0, 931, ["as predicted", "93.1 %", "no: P90 is too cautious"]),
        (50, 930, ["5 % longer", "93 %", "yes"]),
    ):
        passed = cells[-1] == "yes"
        edge = Gate(name="wait", observations=300, median_milli=median_milli, coverage_milli=coverage_milli, enough=True, passed=passed)
        show(replace(shown, gates=(edge,)))
        line = next(line for line in capsys.readouterr().out.splitlines() if "waiting, as quoted" in line)
        assert [cell.strip() for cell in line.split("   ") if cell.strip()][2:] == cells, "rounding does not hide why"
    with pytest.raises(CliError) as both:
        judged(shown)
    assert "atoll costs residuals --component fetch" in (both.value.hint or "")
    with pytest.raises(CliError) as only:
        judged(Calibration(gates=(slow,), quotes=(), factors=3, shifts=0, learning=True))
    assert "atoll jobs explain JOB" in (only.value.hint or "")
