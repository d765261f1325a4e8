"""The command line against a real orchestrator, with an agent of the protocol beside it: every noun, every verb."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from atoll.cli.app import main
from atoll.cli.exits import Exit
from atoll.client import AsyncClient, Client
from atoll.model.ids import ModelId, SiteId
from atoll.model.job import JobState
from atoll.model.replica import ReplicaFact, ReplicaState
from atoll.model.site import LinkSpec
from orchestrator.api.auth import operator_token
from orchestrator.parts import packaged_catalogue
from tests.integration.command_line import Atoll, answer, command_line
from tests.integration.running_orchestrator import PATIENCE_S, Running, ScriptedAgent, orchestrator, until
from tests.unit.fleet_of_machines import GB, SECOND, model, pool, site

Shown = pytest.CaptureFixture[str]

FLEET = """
version: 1
sites:
- id: tokyo-1
  region: Tokyo
  wan_gbit_per_s: 10
  origin_gb_per_s: 1
  node: {memory_gb: 512, disk_cache_gb: 2000, disk_gb_per_s: 5}
  pools:
  - {id: h100, gpu: H100-SXM, nodes: 2, gpus_per_node: 8}
"""


@pytest.fixture
def atoll(capsys: Shown) -> Callable[[Running], Atoll]:
    """A function that runs one command line against an orchestrator: (code, standard output, standard error)."""
    return partial(command_line, capsys)


async def test_a_job_from_submit_to_its_explanation(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a") as agent:
            agent.log = ("loading", "step 1 of 2")
            code, out, err = await run("submit", "m", "--prompt", "a lighthouse", "--seed", "7", "--wait")
            assert code == Exit.OK
            job_id = out.split()[0]
            assert "succeeded at a in" in out
            assert any(line.endswith("is queued") or " at a" in line for line in err.splitlines())
            code, out, _ = await run("jobs", "explain", job_id)
            assert code == Exit.OK
            assert f"{job_id} succeeded" in out.splitlines()[0]
            assert "It went to a/big, which had to fetch 10.0 GB first: the only place that can take it." in out
            assert "all of it" in out, "predicted against actual"
            explained = await answer(run, "jobs", "explain", job_id)
            (attempt,) = explained["job"]["attempts"]
            assert sum(attempt["explanation"]["chosen"]["terms_us"]) == attempt["explanation"]["chosen"]["total_us"]
            assert (await run("jobs", "logs", job_id))[1] == "loading\nstep 1 of 2\n"
            (listed,) = await answer(run, "jobs", "list", "--state", "succeeded")
            assert f"job/{listed['job_id']}" == job_id
            assert (await run("jobs", "list", "--state", "queued"))[2] == "no jobs\n"
            assert (await run("jobs", "cancel", job_id))[0] == Exit.CONFLICT


async def test_from_where_a_job_is_asked_counts_and_is_shown(
    tmp_path: Path, atoll: Callable[[Running], Atoll], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"))
        far = LinkSpec(src=SiteId("near"), dst=SiteId("home"), rtt_us=80_000, bytes_per_s=10**6)
        await running.apply(site("near"), site("home"), links=(far,))
        async with ScriptedAgent(running, "near"):
            code, _, err = await run("submit", "m", "--origin", "hom")
            assert code == Exit.USAGE and "--origin is 'hom': expected a known site; did you mean 'home'" in err
            assert (await run("quote", "m", "--origin", "hom"))[0] == Exit.USAGE
            output = {origin: await _term(run, "output", "--origin", origin) for origin in ("near", "home")}
            assert output["home"] > output["near"] + 80_000, "the result has a way to go"
            monkeypatch.setenv("ATOLL_ORIGIN", "home")
            assert await _term(run, "output") == output["home"]
            assert "asked from near home" in (await run("quote", "m"))[1].splitlines()[0]
            assert await _term(run, "output", "--origin", "near") == output["near"]
            _, out, _ = await run("submit", "m", "--wait", "-o", "name")
            assert "; asked from near home" in (await run("jobs", "explain", out.strip()))[1]


async def test_a_limit_of_time_that_cannot_be_kept_is_said_first_and_ends_a_quote_with_one(
    tmp_path: Path, atoll: Callable[[Running], Atoll]
) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a", hold=True):
            for limit in ("--deadline", "--start-timeout"):
                code, out, err = await run("quote", "m", limit, "1ms")
                assert (code, err) == (Exit.FAILED, "it would miss a limit of time\n")
                said = f"  It would miss its {limit[2:].replace('-', ' ')} of 1ms and expire: half of such jobs "
                assert out.splitlines()[1].startswith(said)
            code, out, _ = await run("quote", "m", "--deadline", "1ms", "-o", "json")
            told = json.loads(out)
            assert (code, told["meets_deadline"], told["meets_start_timeout"]) == (Exit.FAILED, "no", None)
            told = await answer(run, "quote", "m", "--deadline", "1h", "--start-timeout", "1h")
            assert (told["meets_deadline"], told["meets_start_timeout"]) == ("yes", "yes")
            code, out, _ = await run("quote", "m", "--gpu", "small", "--deadline", "1h")
            assert code == Exit.FAILED and out.splitlines()[1] == "  It would miss its deadline of 1h00m and expire."
            assert out.splitlines()[2].startswith("  No site of this fleet can ever run it as it is: ")
            for options, said in ((("--gpu", "small"), "never"), (("--max-price", "0.000001"), "never"), ((), "now")):
                code, out, err = await run("quote", "m", *options, "-o", "json")
                assert json.loads(out)["verdict"] == said and code == (Exit.FAILED if options else Exit.OK)
                assert err == ("no site of this fleet can ever run it as it is\n" if options else "")
            code, job_id, _ = await run("submit", "m", "--deadline", "1h", "-o", "name")
            assert (await answer(run, "jobs", "explain", job_id.strip()))["meets_deadline"] == "yes"
            assert "  It should meet its deadline of 1h00m (" in (await run("jobs", "explain", job_id.strip()))[1]


async def _term(run: Atoll, name: str, *options: str) -> int:
    """A term of the place that a quote chooses, in microseconds."""
    quote = await answer(run, "quote", "m", *options)
    return int(quote["chosen"]["terms_us"][quote["term_names"].index(name)])


async def test_the_same_key_is_the_same_job_and_another_payload_a_conflict(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"))
        first = await run("submit", "m", "--prompt", "a gull", "--key", "k-1")
        assert first == await run("submit", "m", "--prompt", "a gull", "--key", "k-1")
        code, _, err = await run("submit", "m", "--prompt", "a tern", "--key", "k-1")
        assert code == Exit.CONFLICT
        assert err.startswith("error: ")


async def test_jobs_that_end_without_a_result_end_the_command_with_one(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"))
        waiting = asyncio.create_task(run("submit", "m", "--wait", "--key", "k"))
        async with AsyncClient(str(running.address)) as client:
            async for change in client.watch():
                await client.cancel(change.job.job_id, "changed my mind")
                break
        code, out, err = await waiting
        assert code == Exit.FAILED
        assert "was cancelled: changed my mind" in out
        assert "hint: atoll jobs explain" in err


async def test_a_site_is_added_cordoned_drained_and_removed(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        code, out, _ = await run("sites", "add", "lab", "--region", "Berlin", "--reason", "new machine")
        assert code == Exit.OK
        assert f"atoll agent --site lab --orchestrator {running.address}" in out
        assert (await run("sites", "add", "lab", "--region", "Berlin"))[0] == Exit.CONFLICT
        (view,) = await answer(run, "sites", "list")
        assert (view["spec"]["region"], view["connection"]) == ("Berlin", None)
        assert (await answer(run, "sites", "cordon", "site/lab", "--reason", "smoke"))["admin"] == "cordoned"
        assert (await answer(run, "sites", "uncordon", "lab"))["admin"] == "open"
        code, out, err = await run("sites", "drain", "lab", "--reason", "move", "--dry-run")
        assert (code, err) == (Exit.OK, "nothing was changed\n")
        assert "site/lab would be drained within 10m00s" in out
        assert (await answer(run, "sites", "get", "lab"))["admin"] == "open"
        code, out, _ = await run("sites", "drain", "lab", "--reason", "move", "--deadline", "1m", "--wait")
        assert (code, out.splitlines()[-1]) == (Exit.OK, "site/lab drained")
        assert (await run("sites", "remove", "lab", "--reason", "sold"))[:2] == (Exit.OK, "site/lab removed\n")
        assert (await run("sites", "get", "lab"))[0] == Exit.NOT_FOUND
        history = await answer(run, "events")
        first = next(event for event in history if event["subject"] == "site/lab")
        assert (first["verb"], first["reason"]) == ("site_added", "new machine")
        assert (await run("events", "--after", str(history[-1]["seq"])))[2] == "nothing has happened\n"


async def test_a_drain_says_what_moves_where(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a", hold=True) as agent:
            _, out, _ = await run("submit", "m")
            await until(lambda: bool(agent.attempts))
            code, plan, _ = await run("sites", "drain", "a", "--reason", "switch", "--deadline", "5m", "--dry-run")
            assert code == Exit.OK
            assert out.strip() in plan
            assert "1 job; predicted to be empty in" in plan
            for form in ("name", "json"):
                told = await run("sites", "drain", "a", "--reason", "switch", "--dry-run", "-o", form)
                assert (told[0], told[2]) == (Exit.OK, "nothing was changed\n")
            assert (await run("sites", "remove", "a", "--reason", "sold"))[0] == Exit.CONFLICT


async def test_a_fleet_file_is_shown_as_a_difference_and_applied(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path / "data", catalogue=packaged_catalogue()) as running:
        run = atoll(running)
        file = tmp_path / "fleet.yaml"
        file.write_text(FLEET)
        code, out, err = await run("sites", "apply", str(file), "--dry-run")
        assert (code, out.startswith("+ site/tokyo-1")) == (Exit.OK, True)
        assert err == "1 site would be added, 0 updated, 0 unchanged\n"
        assert await answer(run, "sites", "list") == []
        for form in ("name", "json"):
            assert (await run("sites", "apply", str(file), "--dry-run", "-o", form))[2] == "nothing was changed\n"
        assert (await run("sites", "apply", str(file)))[0] == Exit.OK
        assert (await run("sites", "apply", str(file)))[2] == "0 sites were added, 0 updated, 1 unchanged\n"
        assert (await answer(run, "events"))[-1]["detail"] == "1 site added"
        file.write_text(FLEET.replace("Tokyo", "Osaka"))
        _, out, _ = await run("sites", "apply", str(file), "--dry-run")
        assert out.splitlines() == ["~ site/tokyo-1", "    region: Tokyo -> Osaka"]
        assert (await run("sites", "add", "lab", "--region", "Berlin"))[0] == Exit.OK
        _, out, err = await run("sites", "apply", str(file))
        assert out.splitlines()[-1] == "? site/lab   known to the orchestrator, not in the file"
        assert err.splitlines() == [
            "0 sites were added, 1 updated, 0 unchanged",
            "1 site that is not in the file stays as it is: 'atoll sites remove NAME --reason WHY' takes one away",
        ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", ":1: "),
        ("version: 1\nsites:\n- id: a\n  regio", ":"),
        ("version: 1\nsites:\n- id: a/b\n  region: X\n  wan_gbit_per_s: 1\n", ":3: "),
        (FLEET + FLEET.split("sites:")[1], ":"),
    ],
)
def test_mistakes_in_a_fleet_file_name_file_and_line(content: str, said: str, tmp_path: Path, capsys: Shown) -> None:
    file = tmp_path / "clusters.yaml"
    file.write_text(content)
    assert main(["sites", "apply", str(file)]) == Exit.USAGE
    assert all(line.startswith(f"error: {file}{said}") for line in capsys.readouterr().err.splitlines())


async def test_models_are_listed_shown_and_removed(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"))
        assert [view["spec"]["model_id"] for view in await answer(run, "models", "list", "--real")] == ["m"]
        assert (await answer(run, "models", "get", "model/m"))["spec"]["model_id"] == "m"
        assert (await run("models", "remove", "m", "--reason", "old"))[:2] == (Exit.OK, "model/m removed\n")
        assert (await run("models", "get", "m"))[0] == Exit.NOT_FOUND


async def test_the_fleet_and_a_backup(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path / "data") as running:
        run = atoll(running)
        code, out, _ = await run("fleet")
        assert (code, "0 sites, 0 connected" in out) == (Exit.OK, True)
        copy = tmp_path / "copy.sqlite"
        assert (await answer(run, "store", "backup", str(copy)))["bytes"] == copy.stat().st_size
        code, _, err = await run("store", "backup", str(copy))
        assert code == Exit.USAGE
        assert copy.name in err  # an error quotes a long path only in part


async def test_a_credential_is_asked_for_and_a_join_token_shown_once(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    token = "operator-0123456789"
    async with orchestrator(tmp_path, token=token, tokens=(operator_token(token),)) as running:
        run = atoll(running)
        code, _, err = await run("fleet")
        assert code == Exit.REFUSED
        assert "hint: give a token" in err
        assert (await run("fleet", "--token", "wrong-0123456789abc"))[0] == Exit.REFUSED
        code, out, err = await run("sites", "add", "lab", "--region", "Berlin", "--token", token)
        assert code == Exit.OK
        added = next(line for line in out.splitlines() if "atoll agent" in line)
        assert added.strip().startswith("ATOLL_JOIN_TOKEN=")
        assert "works once" in err
        assert token not in out + err


def test_two_clients_one_after_the_other_in_one_program(tmp_path: Path) -> None:
    """The synchronous client beside the orchestrator's event loop, as in a notebook."""

    async def run() -> None:
        async with orchestrator(tmp_path) as running:
            await running.add_models(model("m"))
            await running.apply(site("a"))

            def work() -> list[JobState]:
                with Client(str(running.address)) as client:
                    job_id = client.submit("m", "a lighthouse", seed=7)
                    return [client.wait(job_id, timeout_s=30).state, client.get(job_id).state]

            async with ScriptedAgent(running, "a"):
                assert await asyncio.to_thread(work) == [JobState.SUCCEEDED] * 2

    asyncio.run(run())


async def test_a_quote_that_waits_for_an_operator_ends_with_eight(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a"):
            assert (await run("sites", "cordon", "a", "--reason", "moving"))[0] == Exit.OK
            code, out, err = await run("quote", "m")
            assert (code, err) == (Exit.UNDECIDED, "no place can take it now\n")
            assert "  No place can take it now: the site is cordoned (1 pool). It would wait until that changes." in out.splitlines()
            code, out, _ = await run("quote", "m", "-o", "json")
            assert (code, json.loads(out)["verdict"]) == (Exit.UNDECIDED, "impossible")
            assert (await run("sites", "uncordon", "a", "--reason", "moved"))[0] == Exit.OK
            assert (await run("quote", "m"))[0] == Exit.OK


async def test_the_quote_of_a_model_that_was_just_pushed_counts_the_rest_of_its_load(
    tmp_path: Path, atoll: Callable[[Running], Atoll]
) -> None:
    one_gpu = (pool("p", gpus=1),)
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m", weights_gb=60))
        await running.apply(site("a", *one_gpu))
        async with ScriptedAgent(running, "a", pools=one_gpu) as agent:
            await until(lambda: agent.generation > 0)
            assert (await run("models", "push", "m", "--sites", "1", "--warm", "1", "--reason", "launch"))[0] == Exit.OK
            # 60 GB take 12 s over a disk of 5 GB/s, and 11.3 s to build the pipeline; this agent always says that a second has passed.
            agent.replicas = (ReplicaFact(model_id=ModelId("m"), state=ReplicaState.LOADING, memory_bytes=60 * GB, loading_us=1_000_000),)
            loading = await _quoted_when(run, lambda told: told["chosen"]["awaits"] == "load")
            assert (loading["verdict"], loading["chosen"]["cold"]) == ("now", False)
            assert 21 < _queue_us(loading) / SECOND <= 22.3
            _, out, _ = await run("quote", "m")
            assert "where the model is loading already, behind 2" in out
            agent.replicas = (ReplicaFact(model_id=ModelId("m"), state=ReplicaState.WARM, memory_bytes=60 * GB),)
            warm = await _quoted_when(run, lambda told: not told["chosen"]["awaits"] and not told["chosen"]["cold"])
            assert _queue_us(warm) == 0
            assert loading["predicted_us"] - warm["predicted_us"] == _queue_us(loading)


def _queue_us(told: dict[str, Any]) -> int:
    return int(told["chosen"]["terms_us"][told["term_names"].index("queue")])


async def _quoted_when(run: Atoll, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            told: dict[str, Any] = await answer(run, "quote", "m")
            if condition(told):
                return told
