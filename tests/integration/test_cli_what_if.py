"""What-ifs of a live fleet of twins: figures with and without a change, refusals, Ctrl-C; and nothing of the fleet is changed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agents.runtime.twin import TwinRuntime
from atoll.catalog.fleet import dump_sites
from atoll.cli.exits import Exit
from atoll.cli.sim.live import Recent, live, recent
from atoll.client import Client
from atoll.model.ids import SiteId
from atoll.model.learned import Level
from atoll.model.replica import Tier
from atoll.model.site import LinkSpec, SiteSpec
from atoll.packaged import load_packaged
from atoll.physics.hidden import HiddenWorld
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.policy_file import write_policy
from orchestrator.parts import Catalogue
from sims.whatif.live import Live
from tests.architecture.sources import REPOSITORY
from tests.integration.command_line import Atoll, answer, command_line
from tests.integration.running_agent import agent
from tests.integration.running_orchestrator import Running, orchestrator, until
from tests.unit.fleet_of_machines import model, pool, site

# Fleet time runs 50 times as fast, and silence is a matter of real time.
SCALE = 50
POLICY = Policy(
    name="own", report_interval_ms=100 * SCALE, silent_after_ms=5_000 * SCALE, lost_after_min_ms=60_000 * SCALE,
    lost_after_max_ms=60_000 * SCALE,
)  # fmt: skip
PATIENCE_S = 60.0
JOBS = 120


def _site(name: str, gpu: str = "H100-SXM") -> SiteSpec:
    """Two GPUs in Berlin."""
    return replace(site(name, pool("p", gpu=gpu)), region="Berlin")


FLEET = (_site("a"), _site("b"), _site("c", "A100-80-SXM"))
LINKS = (LinkSpec(src=SiteId("a"), dst=SiteId("b"), rtt_us=9_000, bytes_per_s=10**9, egress_usd_micros_per_gb=7),)


@pytest.fixture
def atoll(capsys: pytest.CaptureFixture[str]) -> Callable[[Running], Atoll]:
    """A function that runs one command line against an orchestrator: (code, standard output, standard error)."""
    return partial(command_line, capsys)


@asynccontextmanager
async def fleet(tmp_path: Path, jobs: int) -> AsyncIterator[Running]:
    """Three twins that have done so many jobs."""
    gpus = load_packaged().gpus
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(
            orchestrator(tmp_path / "fleet", policy=POLICY, catalogue=Catalogue(gpus=gpus), time_scale_milli=SCALE * 1_000)
        )
        await running.add_models(model("m", weights_gb=2), model("n", weights_gb=3))
        await running.apply(*FLEET, links=LINKS)
        for number, one in enumerate(FLEET):
            twin = TwinRuntime(one, gpus=gpus, hidden=HiddenWorld(number))
            await stack.enter_async_context(agent(running.address, one.site_id, twin))
        submitted = [
            await running.submit(seed=number, model_id="mmn"[number % 3], simulated=True, deadline_ms=3_600_000) for number in range(jobs)
        ]
        if submitted:
            await running.ended(*submitted)
        yield running


async def state_of(run: Atoll) -> dict[str, Any]:
    """All that a command could have changed of a fleet at rest."""
    return {
        "events": await answer(run, "events"),
        "admin": [(one["spec"], one["admin"], one["drain"]) for one in await answer(run, "sites", "list")],
        "models": [one["spec"] for one in await answer(run, "models", "list")],
        "jobs": sorted(one["job_id"] for one in await answer(run, "jobs", "list", "--limit", "0")),
        "policy": await answer(run, "policies", "show"),
    }


def by_name(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["figure"]: one for one in told["figures"]}


@pytest.mark.timeout(120)
async def test_the_fleet_is_asked_for_as_it_is(tmp_path: Path) -> None:
    async with fleet(tmp_path, 12) as running:

        def asked() -> tuple[Live, Recent]:
            with Client(str(running.address)) as client:
                return live(client), recent(client, 1.0, 10)

        found, jobs = await asyncio.to_thread(asked)
    assert found.links == LINKS
    assert [view.spec for view in found.sites] == list(FLEET)
    assert found.policy == replace(POLICY.at_scale(SCALE * 1_000), unscaled_digest="")
    assert found.time_scale_milli == SCALE * 1_000
    held = {copy.tier for copies in found.copies.values() for copy in copies if copy.copies}
    assert {Tier.GPU, Tier.DISK} <= held
    assert {one.name for one in found.learned if one.level is Level.SITE} <= {"a", "b", "c"} and found.learned
    # The newest ten, in their order, and the first of them at 0.
    assert len(jobs.jobs) == 10 and jobs.jobs[0].arrival_us == 0 and jobs.bound == 0
    assert [job.arrival_us for job in jobs.jobs] == sorted(job.arrival_us for job in jobs.jobs)
    assert jobs.measured["p50:image"] > 0


@pytest.mark.timeout(240)
async def test_what_would_change_is_told_and_nothing_changes(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with fleet(tmp_path, JOBS) as running:
        run = atoll(running)
        before = await state_of(run)

        told = await answer(run, "sites", "drain", "a", "--what-if", "--seeds", "3")
        assert (told["what_if"], told["jobs"], told["sites"], told["seeds"]) == ("site a were drained", JOBS, 3, 3)
        assert told["notes"] == [] and told["span_us"] > 0
        figures = by_name(told)
        assert {"p50:image", "p99:image", "cold_start_share", "deadline_miss_share", "usd_per_1000_jobs"} <= figures.keys()
        late = figures["p99:image"]
        assert min(late["measured"], late["now"], late["then"]) > 0 and late["difference"]["n"] == 3
        gpus = figures["gpus_usd_per_hour"]
        assert gpus["verdict"] == "better" and gpus["then"] < gpus["now"]
        assert figures["not_done_share"] == {**figures["not_done_share"], "now": 0.0, "then": 0.0, "verdict": "the same"}
        # The models are warm in life, so nearly all of it is warm here.
        assert figures["cold_start_share"]["now"] < 0.1

        new = tmp_path / "site.yaml"
        new.write_text(dump_sites([_site("d"), _site("e")]))
        code, out, err = await run("sites", "add", "--what-if", str(new), "--seeds", "3", "--processes", "1")
        assert code == Exit.OK, err
        assert out.startswith("What if site d were added and site e were added?\n  120 jobs of the last ")
        assert "FIGURE" in out and "IN LIFE" in out and "p99 image" in out
        assert out.splitlines()[-1].split()[:3] == ["GPUs,", "an", "hour"] and out.splitlines()[-1].endswith("worse")

        # The fleet's own policy, from a file: its waits are those of a rehearsal then, as the fleet's are.
        own = tmp_path / "own.yaml"
        own.write_text(write_policy(POLICY))
        told = await answer(run, "sim", "what-if", "--policy", str(own), "--seeds", "3", "--processes", "1")
        assert told["what_if"] == f"policy own ({POLICY.identity.digest}) were in use"
        assert {one["verdict"] for one in told["figures"]} == {"the same"}

        trace = tmp_path / "trace.csv"
        trace.write_text("arrival_us,model_id,tenant\n" + "".join(f"{number * 500_000},m,t\n" for number in range(150)))
        told = await answer(run, "sites", "drain", "site/b", "--what-if", "--trace", str(trace), "--seeds", "3")
        assert told["jobs"] == 150 and told["trace"] == str(trace)
        # It is more than the fleet can do: with four slots of six it takes longer, at every seed.
        median = by_name(told)["p50:image"]
        assert median["measured"] is None and median["verdict"] == "worse" and median["difference"]["low"] > 0

        assert await state_of(run) == before


@pytest.mark.timeout(120)
async def test_what_cannot_be_played_is_refused(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with fleet(tmp_path, 0) as running:
        run = atoll(running)
        trace, few, other = tmp_path / "trace.csv", tmp_path / "few.csv", tmp_path / "other.csv"
        rows = [f"{number},m,t\n" for number in range(0, 60_000_000, 500_000)]
        trace.write_text("arrival_us,model_id,tenant\n" + "".join(rows))
        few.write_text("arrival_us,model_id,tenant\n" + "".join(rows[:9]))
        other.write_text("arrival_us,model_id,tenant\n0,gpt,t\n")
        known, strange, bare = (tmp_path / f"{name}.yaml" for name in ("known", "strange", "bare"))
        known.write_text(dump_sites([_site("a")]))
        strange.write_text("version: 1\nsites:\n- {id: d, region: Here, origin_gb_per_s: 1, wan_gbit_per_s: much}\n")
        bare.write_text(dump_sites([replace(_site("d"), pools=())]))
        play = ("--trace", str(trace), "--seeds", "3")
        cases: list[tuple[tuple[str, ...], Exit, str]] = [
            (("sites", "drain", "a", "--what-if"), Exit.UNDECIDED, "0 jobs arrived in the last 6 hours: at least 100 are needed"),
            (("sites", "drain", "a", "--what-if", "--trace", str(few)), Exit.UNDECIDED, f"{few} has 9 jobs: at least 100"),
            (("sites", "drain", "a", "--what-if", "--trace", str(other)), Exit.USAGE, "other.csv:2: model_id is 'gpt'"),
            (("sites", "drain", "z", "--what-if", *play), Exit.NOT_FOUND, "no site 'z'; those that can be played are a, b, c"),
            (("sites", "drain", "a", "--what-if", "--wait"), Exit.USAGE, "--what-if is given with --wait"),
            (("sites", "drain", "a", "--what-if", "--seeds", "2"), Exit.USAGE, "--seeds is '2': expected a whole number from 3 to 100"),
            (("sites", "drain", "a", "--what-if", "--hours", "0"), Exit.USAGE, "--hours is '0'"),
            (("sites", "drain", "a", "--what-if", "--hours", "1", *play), Exit.USAGE, "--hours is given with --trace"),
            (("sites", "drain", "a", "--seeds", "3"), Exit.USAGE, "--seeds is given without --what-if"),
            (("sites", "add", "--what-if", str(known), *play), Exit.CONFLICT, "site a exists already"),
            (("sites", "add", "--what-if", str(strange), *play), Exit.USAGE, "strange.yaml:3: sites[0].wan_gbit_per_s is 'much'"),
            (("sites", "add", "--what-if", str(bare), *play), Exit.USAGE, "pools is 'none of site d'"),
            (("sites", "add", "d", "--what-if", str(known)), Exit.USAGE, "--what-if is given with NAME"),
            (("sites", "add", "--region", "Berlin"), Exit.USAGE, "Missing argument 'NAME'"),
            (("sim", "what-if"), Exit.USAGE, "nothing is changed: expected --policy, --drain or --add"),
            (("sim", "what-if", "--policy", "fastest"), Exit.USAGE, "policy is 'fastest'"),
            (("sim", "what-if", *(f"--drain={name}" for name in "abc"), *play), Exit.CONFLICT, "no site would take work any more"),
        ]
        for arguments, expected, said in cases:
            code, out, err = await run(*arguments)
            assert code == expected and "FIGURE" not in out, (arguments, err)
            assert err.startswith("error: ") and said in err and err.count("error: ") == 1, (arguments, err)
        code, _, err = await run("sites", "drain", "a", "--what-if")
        assert "hint: --hours 24 looks further back; --trace FILE plays other jobs" in err


@pytest.mark.timeout(120)
async def test_a_site_that_is_not_there_is_left_out_and_said(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with fleet(tmp_path, 0) as running:
        run = atoll(running)
        await running.apply(_site("gone"))
        code, _, _ = await run("sites", "cordon", "b", "--reason", "test")
        assert code == Exit.OK
        trace = tmp_path / "trace.csv"
        trace.write_text("arrival_us,model_id,tenant\n" + "".join(f"{number * 1_000_000},m,t\n" for number in range(100)))
        told = await answer(run, "sim", "what-if", "--drain", "a", "--trace", str(trace), "--seeds", "3")
        assert told["sites"] == 3 and told["notes"] == ["site gone is left out: it has never connected"]
        code, _, err = await run("sim", "what-if", "--drain", "b", "--trace", str(trace))
        assert code == Exit.CONFLICT and "site b takes no new work already" in err
        code, _, err = await run("sim", "what-if", "--drain", "a", "--drain", "c", "--trace", str(trace))
        assert code == Exit.CONFLICT and "no site would take work any more" in err


def interrupt(child: int, _workers: list[int]) -> None:
    """As a terminal does: to the whole group."""
    os.killpg(child, signal.SIGINT)


def kill_one(_child: int, workers: list[int]) -> None:
    """As a system does that is out of memory."""
    os.kill(workers[0], signal.SIGKILL)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("befall", "expected", "said"),
    [(interrupt, Exit.INTERRUPTED, b""), (kill_one, Exit.FAILED, b"error: a process that played was killed, for want of memory perhaps")],
)
async def test_ended_early_it_says_why_and_leaves_no_process(
    tmp_path: Path, befall: Callable[[int, list[int]], None], expected: Exit, said: bytes
) -> None:
    async with fleet(tmp_path, 0) as running:
        trace = tmp_path / "trace.csv"
        trace.write_text("arrival_us,model_id,tenant\n" + "".join(f"{number * 100_000},m,t\n" for number in range(20_000)))
        options = ("--trace", str(trace), "--jobs-max", "20000", "--processes", "2", "--address", str(running.address))
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "atoll.cli", "sites", "drain", "a", "--what-if", *options),
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        await until(lambda: len(workers_of(child.pid)) == 2)
        workers = workers_of(child.pid)
        befall(child.pid, workers)
        async with asyncio.timeout(PATIENCE_S):
            out, err = await child.communicate()
        assert (child.returncode, out) == (expected, b"") and len(err.splitlines()) <= 1, err
        assert err.startswith(said)
        assert not alive(workers)


def alive(pids: list[int]) -> list[int]:
    """Those of these processes that there still are."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def workers_of(pid: int) -> list[int]:
    """Processes that play: children of this one that have begun, which says their command line."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (status.parent / "cmdline").read_bytes():
                found.append(int(status.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
