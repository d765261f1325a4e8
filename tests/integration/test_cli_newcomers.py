"""What newcomers stumbled over, at the command line of a real orchestrator: times of day, mistyped names, jobs in vain."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path

import grpc
import grpc.aio
import pytest

from atoll.cli.exits import Exit
from atoll.cli.output import plain
from atoll.client import AsyncClient, DeadlineError, NeverRunsWarning, operator_calls
from atoll.model.attempt import AttemptState
from atoll.model.ids import TenantId
from atoll.v1 import job_service_pb2 as jobs_pb
from atoll.v1 import operator_service_pb2 as operators_pb
from atoll.v1 import types_pb2
from atoll.wire.adapters import adapter_spec_to_proto
from orchestrator.api.auth import Role, Token, operator_token
from tests.integration.command_line import Atoll, answer, command_line
from tests.integration.running_orchestrator import QUICK, Running, ScriptedAgent, job, orchestrator
from tests.unit.fleet_of_machines import adapter, model, site

Shown = pytest.CaptureFixture[str]

ONLY_B = types_pb2.Constraints(sites=["b"])


@pytest.fixture
def atoll(capsys: Shown) -> Callable[[Running], Atoll]:
    """A function that runs one command line against an orchestrator: (code, standard output, standard error)."""
    return partial(command_line, capsys)


async def test_lists_are_cut_to_what_was_asked_for_and_say_so(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"), model("n"))
        for number in range(4):
            await run("sites", "add", f"lab-{number}", "--region", "Berlin")
        every = json.loads((await run("events", "-o", "json"))[1])
        assert len(every) > 4
        assert json.loads((await run("events", "--limit", "2", "-o", "json"))[1]) == every[-2:]
        assert json.loads((await run("events", "--after", str(every[0]["seq"]), "-o", "json"))[1]) == every[1:]
        _, out, err = await run("events", "--limit", "2")
        assert len(out.splitlines()) == 3 and err == "there are more than 2: these are the last; --limit 0 lists all\n"
        assert (await run("events", "--limit", "many"))[0] == Exit.USAGE
        mine = [await running.submit(model_id=name) for name in ("m", "n", "m")][::2]
        code, out, _ = await run("jobs", "list", "--model", "m", "-o", "name")
        assert (code, out.split()) == (Exit.OK, [f"job/{job_id}" for job_id in reversed(mine)])
        code, _, err = await run("jobs", "list", "--model", "mm")
        assert code == Exit.USAGE and err.startswith("error: --model is 'mm': expected a known model") and err.count("\n") == 1


def test_a_stream_of_events_that_breaks_goes_on_with_all_that_came_meanwhile() -> None:
    stream = operator_calls.events(7, 2, follow=True)
    asked = [stream.request_after(seq) for seq in (7, 40)]
    assert asked == [operators_pb.EventsRequest(after_seq=7, limit=2, follow=True), operators_pb.EventsRequest(after_seq=40, follow=True)]


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


async def test_a_mistyped_name_is_answered_with_what_it_looks_like(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("sdxl-turbo"), model("sdxl-base"))
        await running.operators.AddAdapters(operators_pb.AddAdaptersRequest(adapters=[adapter_spec_to_proto(adapter("ink", family="t"))]))
        await running.apply(site("aws-use1"), site("aws-usw2"))
        for arguments, meant in (
            (("sites", "get", "aws-use"), "no site 'aws-use'; did you mean 'aws-use1'"),
            (("sites", "cordon", "aws-usw", "--reason", "x"), "no site 'aws-usw'; did you mean 'aws-usw2'"),
            (("sites", "uncordon", "awsuse1"), "did you mean 'aws-use1'"),
            (("sites", "drain", "aws-usw3", "--reason", "x", "--dry-run"), "did you mean 'aws-usw2'"),
            (("models", "get", "sdxl-trubo"), "no model 'sdxl-trubo'; did you mean 'sdxl-turbo'"),
            (("models", "where", "sdxl"), "did you mean 'sdxl-base' or 'sdxl-turbo'?"),
            (("models", "remove", "sdxl-bas", "--reason", "x"), "did you mean 'sdxl-base'"),
            (("models", "pin", "sdxl-base", "--site", "aws-use"), "no site 'aws-use'; did you mean 'aws-use1'"),
            (("adapters", "get", "inc"), "no adapter 'inc'; did you mean 'ink'?"),
            (("costs", "residuals", "--site", "aws-use"), "no site 'aws-use'; did you mean 'aws-use1'"),
        ):
            code, out, err = await run(*arguments)
            assert (code in (Exit.NOT_FOUND, Exit.USAGE), out) == (True, "") and meant in err, err
        assert "'bigg' is none of theirs" not in (await run("sites", "list", "--gpu", "big"))[2]
        assert "bigg is none of theirs; did you mean 'big'?" in (await run("sites", "list", "--gpu", "bigg"))[2]
        elsewhere = (await run("sites", "list", "--region", "region-aws-us1"))[2]
        assert "region-aws-us1 is none of theirs; did you mean 'region-aws-use1'" in elsewhere


async def test_an_unknown_model_is_answered_in_one_line_and_not_with_those_that_happen_to_come_first(
    tmp_path: Path, atoll: Callable[[Running], Atoll]
) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(*(model(f"sdxl-{number}") for number in range(6)), model("wan"))
        for verb, option in ((("submit",), "MODEL"), (("quote",), "MODEL"), (("jobs", "list", "--model"), "--model")):
            for name, meant in (
                ("nope", "none of the 7 is like it"),
                ("wann", "did you mean 'wan'?"),
                ("sdxlx", "did you mean 'sdxl-0' or 'sdxl-1' or 'sdxl-2'?"),
            ):
                code, out, err = await run(*verb, name)
                assert (code, out) == (Exit.USAGE, "")
                assert err.splitlines()[0] == f"error: {option} is '{name}': expected a known model; {meant}"
                assert "sdxl-0" not in err or name == "sdxlx"


def common_beginning(one: str, other: str) -> str:
    """With which both ids begin."""
    return "".join(a for index, (a, _) in enumerate(zip(one, other, strict=True)) if one[: index + 1] == other[: index + 1])


async def test_the_beginning_of_a_job_s_id_is_enough_where_it_is_the_only_one(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a") as agent:
            agent.log = ("step 1 of 2",)
            first, second = await running.submit(seed=1), await running.submit(seed=2)
            await running.ended(first, second)
            common = common_beginning(first, second)
            alone = first[: len(common) + 1]
            assert (await run("jobs", "get", alone, "-o", "name"))[1] == f"job/{first}\n"
            assert (await run("jobs", "explain", f"job/{alone}"))[1].startswith(f"job/{first} succeeded")
            assert (await run("jobs", "logs", alone))[1] == "step 1 of 2\n"
            assert (await run("jobs", "watch", alone))[0] == Exit.OK
            agent.hold = True
            third = await running.submit(seed=3)
            own = third[: len(common_beginning(second, third)) + 1]
            assert (await run("jobs", "cancel", own, "-o", "name"))[1] == f"job/{third}\n"
        for verb in (("get",), ("explain",), ("watch",), ("cancel",), ("logs",)):
            code, out, err = await run("jobs", *verb, common)
            assert (code, out) == (Exit.USAGE, "") and f"expected the beginning of one job's id; so begin {first}, {second}" in err
        assert (await run("jobs", "get", first[:3]))[0] == Exit.NOT_FOUND, "less than four characters name nothing"
        code, _, err = await run("jobs", "get", alone + "zzzz")
        assert code == Exit.NOT_FOUND and "no job" in err


async def test_the_beginning_of_an_id_finds_nobody_else_s_job(tmp_path: Path) -> None:
    secrets = {"ann": "a" * 40, "bob": "b" * 40}
    tokens = tuple(
        Token(name=name, tenant=TenantId(name), roles=frozenset({Role.CLIENT}), sha256=sha256(secret.encode()).hexdigest())
        for name, secret in secrets.items()
    )
    operator = "o" * 40
    async with orchestrator(tmp_path, token=operator, tokens=(*tokens, operator_token(operator))) as running:
        await running.add_models(model("m"))
        of = {name: replace(running, metadata=(("authorization", f"Bearer {secret}"),)) for name, secret in secrets.items()}
        anns, bobs = await of["ann"].submit(), await of["bob"].submit()
        common = common_beginning(anns, bobs)
        assert (await of["ann"].get(common)).job_id == anns, "whatever else begins so is somebody else's"
        assert (await of["bob"].get(common)).job_id == bobs
        for mine in (bobs, bobs[: len(common) + 1]):
            with pytest.raises(grpc.aio.AioRpcError, match=f"no job '{mine}'") as refused:
                await of["ann"].get(mine)
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND, "the same as if there were none"
        with pytest.raises(grpc.aio.AioRpcError, match=f"so begin {anns}, {bobs}"):
            await running.get(common)


async def test_a_job_that_no_site_can_ever_run_is_accepted_with_a_warning(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"), model("huge", 500))
        code, out, err = await run("submit", "m", "-o", "name")
        assert code == Exit.OK and "warning: no place can take it now: the fleet has no pools. So it waits until that changes" in err
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a", hold=True) as agent:
            await running.jobs.Cancel(jobs_pb.CancelJobRequest(job_id=out.strip().removeprefix("job/")))
            code, out, err = await run("submit", "huge", "-o", "name")
            job_id = out.strip().removeprefix("job/")
            assert code == Exit.OK
            said = "no site of this fleet can ever run it as it is: the GPU is too small for the model at this shape (1 pool)"
            assert err == f"warning: {said}. So it waits in vain: 'atoll jobs explain {job_id}' says more\n"
            code, _, err = await run("submit", "huge", "--count", "3", "-o", "name")
            assert code == Exit.OK and err.count("warning: ") == 1 and "So they wait in vain" in err
            for waiting in (("submit", "huge", "--wait"), ("submit", "huge", "--count", "2", "--wait"), ("jobs", "watch", job_id)):
                code, out, err = await run(*waiting)
                assert code == Exit.FAILED, "nobody waits for ever for what is in vain"
                assert f"waits in vain{', and so waits 1 other job' if '--count' in waiting else ''}: {said}" in err.splitlines()[-2]
                assert err.splitlines()[-1].startswith("hint: 'atoll jobs explain j-")
            assert (await answer(run, "jobs", "get", job_id))["state"] == "queued", "and the job is there for a site to come"
            kinds = {(one["kind"], one["subject"], one["jobs"]) for one in (await answer(run, "fleet"))["alarms"]}
            assert kinds == {("jobs_in_vain", "huge", 7)}
            assert " at sites, 1 ended\n" in (await run("fleet"))[1]
            assert "    7 jobs wait for huge in vain: no site can ever run them, 'atoll jobs explain JOB'" in (await run("fleet"))[1]
            code, _, err = await run("submit", "huge", "--wait", "--timeout", "2s")
            assert code == Exit.TIMEOUT and said in err, "who says how long waits that long, and knows why"
            code, _, err = await run("submit", "m", "-o", "name")
            assert (code, err) == (Exit.OK, ""), "nothing is said where there is a place"
            await agent.release()


async def test_the_sdk_warns_who_waits_for_a_job_in_vain(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"), model("huge", 500))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a"), AsyncClient(str(running.address)) as client:
            job_id = await client.submit("huge")
            said = f"job {job_id} waits in vain.*the GPU is too small for the model at this shape"
            with pytest.warns(NeverRunsWarning, match=said), pytest.raises(DeadlineError):
                await client.result(job_id, timeout_s=3)
            with warnings.catch_warnings():
                warnings.simplefilter("error", NeverRunsWarning)
                with pytest.raises(NeverRunsWarning):
                    await client.result(job_id)
                done = await client.result(await client.submit("m"))
            assert done.state == "succeeded"


async def test_a_size_that_the_model_does_not_make_is_refused_before_it_is_accepted(
    tmp_path: Path, atoll: Callable[[Running], Atoll]
) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(replace(model("m"), side_px=16), model("unknown"))
        for verb in ("submit", "quote"):
            code, out, err = await run(verb, "m", "--size", "1000x1024")
            assert (code, out) == (Exit.USAGE, "")
            assert err == "error: the width of --size is 1000: expected a multiple of 16, such as 992 or 1008\n"
        assert (await run("submit", "m", "--size", "1008x1024", "-o", "name"))[0] == Exit.OK
        assert (await run("submit", "unknown", "--size", "1001x999", "-o", "name"))[0] == Exit.OK, "nobody knows what it makes"
        batch = await running.jobs.SubmitBatch(
            jobs_pb.SubmitBatchRequest(jobs=[job(shape=types_pb2.Shape(width=width, height=1024, steps=4)) for width in (1024, 1025)])
        )
        assert [outcome.refusal.field for outcome in batch.outcomes] == ["", "shape.width"]


async def test_the_policy_that_is_shown_is_the_one_that_the_fleet_runs_by(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    thrifty = replace(QUICK, name="thrifty", seconds_per_dollar=240)
    async with orchestrator(tmp_path, policy=thrifty) as running:
        run = atoll(running)
        code, out, err = await run("policies", "show")
        assert (code, err) == (Exit.OK, f"the policy that the orchestrator at {running.address} runs by\n")
        assert out.startswith(f"policy/thrifty, {thrifty.identity.digest}: ") and "seconds_per_dollar: 240 (default 60)" in out
        edited = tmp_path / "own.yaml"
        edited.write_text((await run("policies", "show", "-o", "yaml"))[1])
        assert (await run("policies", "check", str(edited), "-o", "json"))[1] == json.dumps(plain(thrifty.identity), indent=2) + "\n"
        assert (await answer(run, "policies", "show"))["seconds_per_dollar"] == 240
        for packaged in (("--packaged",), ("default",)):
            code, out, err = await run("policies", "show", *packaged)
            assert (code, err) == (Exit.OK, "") and "Every figure is the default." in out
    async with orchestrator(tmp_path / "again") as other:
        code, out, err = await atoll(other)("policies", "show")
        assert code == Exit.OK and out.startswith("policy/default, ") and "silent_after" in out, "fitted to its settings"
    code, out, err = await run("policies", "show")
    assert code == Exit.OK and "Every figure is the default." in out
    assert err.startswith(f"no orchestrator answers at {running.address}") and "this is the default that Atoll comes with" in err


async def test_a_look_at_the_fleet_says_what_is_amiss(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(*(model(f"m{index}") for index in range(8)))
        await running.apply(site("a"), site("b"))
        async with ScriptedAgent(running, "a") as agent, ScriptedAgent(running, "b", hold=True) as broken:
            assert (await run("fleet"))[1].splitlines()[-1] == "  no alarms"
            agent.talks = False
            for seed in range(8):
                await running.submit(seed=seed, model_id=f"m{seed}", constraints=ONLY_B)
            while not any(alarm["kind"] == "breaker_open" for alarm in (await answer(run, "fleet"))["alarms"]):
                for key in list(broken.attempts):
                    await broken.end(key, AttemptState.FAILED)
            while not any(alarm["kind"] == "site_silent" for alarm in (await answer(run, "fleet"))["alarms"]):
                pass
            out = (await run("fleet"))[1]
            assert "  2 alarms:" in out and "    site a is silent and gets no new work, last heard of " in out
            assert "    pool b/big takes no new work: attempts kept failing there, 'atoll events' says of what" in out
            assert out.splitlines()[-1].startswith("    "), "where something works, what is amiss comes last"
            broken.talks = False
            while (await answer(run, "fleet"))["sites_connected"]:
                pass
            heading, alarms, *rest = (await run("fleet"))[1].splitlines()
            assert heading.startswith("fleet/") and alarms.endswith("alarms:") and rest[-1].endswith(" ended")


async def test_copies_that_are_wanted_are_told_by_who_wants_them(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a"):
            lines = (await run("models", "where", "m"))[1].splitlines()
            assert lines[0] == "model/m" and lines[1].split() == ["COPIES", "WARM", "IN", "MEMORY", "ON", "DISK"]
            assert lines[2].split() == ["wanted", "by", "demand", "0", "0", "0"]
            assert lines[4].startswith("  demand: nobody has asked for it yet; what is assumed of any model fades")
            await run("models", "pin", "m", "--site", "a", "--tier", "disk", "--reason", "friday")
            await run("models", "push", "m", "--sites", "1", "--warm", "1", "--reason", "launch")
            await running.ended(await running.submit())
            lines = (await run("models", "where", "m"))[1].splitlines()
            assert lines[3].split()[:7] == ["wanted", "by", "a", "pin", "0", "0", "1"] and lines[3].endswith("at a, by local: friday")
            assert lines[4].split()[:7] == ["wanted", "by", "a", "push", "1", "0", "1"] and lines[4].endswith("by local: launch")
            assert ", from 1 job so far" in lines[6]
            assert re.search(r"an hour \([0-9.]+ by the last 10 min, [0-9.]+ by 6 h, [0-9.]+ by 7 d\)", lines[6])
            told = await answer(run, "models", "where", "m")
            assert told["target"]["arrivals"] == 1
            assert {copy["tier"] for copy in told["copies"]} == {"gpu", "disk"}, "as --tier has it"
