"""`atoll costs rates`: what is declared of a site's ways beside what its agent measured."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from atoll.cli.app import main
from atoll.cli.exits import Exit
from atoll.cli.output import Form
from atoll.cli.rates import show, ways
from atoll.client import AsyncClient
from atoll.model.attempt import PhaseTimes
from atoll.model.report import RateFacts
from atoll.wire.views import site_view_from_proto, site_view_to_proto
from tests.integration.running_orchestrator import PATIENCE_S, Running, ScriptedAgent, orchestrator
from tests.unit.fleet_of_machines import GB, model, site

Shown = pytest.CaptureFixture[str]
MEASURED = RateFacts(origin_bytes_per_s=7 * GB // 10, origin_transfers=12, disk_bytes_per_s=6 * GB, disk_transfers=3)


async def _run(running: Running, capsys: Shown, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = await asyncio.to_thread(main, ["costs", "rates", *arguments, "--address", str(running.address)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


async def test_what_a_site_measured_stands_beside_what_is_declared(tmp_path: Path, capsys: Shown) -> None:
    async with orchestrator(tmp_path) as running:
        assert (await _run(running, capsys))[2] == "no sites\n"
        await running.apply(site("a"), site("b"))
        code, out, err = await _run(running, capsys)
        assert (code, out) == (Exit.OK, "") and err.startswith("no site has measured anything yet")
        async with ScriptedAgent(running, "a") as agent, AsyncClient(str(running.address)) as client:
            agent.rates = MEASURED
            async with asyncio.timeout(PATIENCE_S):
                while (await client.sites_get("a")).measured != MEASURED:  # noqa: ASYNC110 - the orchestrator hears of it when it does
                    await asyncio.sleep(0.02)
            code, out, err = await _run(running, capsys)
            assert code == Exit.OK
            assert [re.split(r" {2,}", line) for line in out.splitlines()] == [
                ["PLACE", "WAY", "DECLARED", "MEASURED", "TIMES", "TRANSFERS"],
                ["a", "origin store -> site", "1.00 GB/s", "700 MB/s", "x0.70", "12"],
                ["a/big", "disk -> host memory", "5.00 GB/s", "6.00 GB/s", "x1.20", "3"],
            ]
            assert "MEASURED: what the site's own transfers took" in err
            assert "more lines of what was not measured: --site or -o wide" in err
            lines = (await _run(running, capsys, "--site", "site/a"))[1].splitlines()
            assert [line.split()[0] for line in lines[1:]] == ["a", "a", "a", "a/big", "a/big"]
            told = json.loads((await _run(running, capsys, "-o", "json"))[1])
            names = (await _run(running, capsys, "-o", "name"))[1].split()
            code, _, err = await _run(running, capsys, "--site", "aa")
            assert code == Exit.NOT_FOUND and "no site 'aa'" in err
    assert told[0] == {
        "site_id": "a", "pool_id": "", "way": "origin", "declared_bytes_per_s": GB,
        "measured_bytes_per_s": MEASURED.origin_bytes_per_s, "transfers": 12, "factor_milli": 0, "jobs_milli": 0,
    }  # fmt: skip
    assert {(way["site_id"], way["way"]) for way in told} == {
        (name, way) for name in "ab" for way in ("origin", "wan", "lan", "disk", "h2d")
    }
    assert names[:4] == ["rate/a/origin", "rate/a/wan", "rate/a/lan", "rate/a/big/disk"]


async def test_an_orchestrator_that_tells_no_measured_rates_is_said_to_be_an_older_one(tmp_path: Path, capsys: Shown) -> None:
    async with orchestrator(tmp_path) as running, AsyncClient(str(running.address)) as client:
        await running.apply(site("a"))
        told = site_view_to_proto(await client.sites_get("a"))
    told.ClearField("measured")
    capsys.readouterr()
    show(Form.TABLE, [site_view_from_proto(told)])
    shown = capsys.readouterr()
    assert "origin store -> site" in shown.out and "more line" not in shown.err
    assert shown.err.startswith("the orchestrator is of a version that does not tell what was measured: these rates are as declared\n")


async def test_readers_of_sites_are_told_what_a_data_sheet_says_of_a_way_into_gpus(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running, AsyncClient(str(running.address)) as client:
        await running.apply(site("a"))
        (into,) = [way for way in ways([await client.sites_get("a")]) if way.way == "h2d"]
        assert into.declared_bytes_per_s > 0 and into.transfers == 0


async def test_of_one_site_it_is_told_too_what_its_jobs_taught_beyond_the_rates(tmp_path: Path, capsys: Shown) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"))
        await running.apply(site("a"), site("b"))
        async with ScriptedAgent(running, "a") as agent:
            agent.times = PhaseTimes(load_us=90_000_000, run_us=30_000_000)
            for seed in range(3):
                await running.ended(await running.submit(seed=seed))
        told = json.loads((await _run(running, capsys, "--site", "a", "-o", "json"))[1])
        of_load = {way["way"] for way in told if way["factor_milli"] > 1_050 and 0 < way["jobs_milli"] <= 3_000}
        assert of_load == {"disk", "h2d"} and {way["factor_milli"] for way in told if way["way"] not in of_load} == {0}
        _, out, err = await _run(running, capsys, "--site", "a")
        assert out.splitlines()[0].split()[-2:] == ["FACTOR", "JOBS"] and "FACTOR: what JOBS taught of that" in err
        _, out, err = await _run(running, capsys, "--site", "b")
        assert [line.split()[-2:] for line in out.splitlines()[1:]] == [["-", "-"]] * 5
        assert "FACTOR" not in (await _run(running, capsys, "-o", "wide"))[1]
