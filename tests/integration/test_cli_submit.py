"""What `atoll submit` says before a job costs anything: of options, of time that will not do, of where a result is to go."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from atoll.cli.exits import Exit
from atoll.model.modelspec import DenoiserKind, ModelSpec
from orchestrator.parts import Catalogue
from tests.integration.command_line import Atoll, answer, command_line
from tests.integration.running_orchestrator import Running, ScriptedAgent, orchestrator
from tests.integration.test_orchestrator_jobs import BAD_JOBS
from tests.unit.fleet_of_machines import GB, GPUS, model, pool, site

Shown = pytest.CaptureFixture[str]


@pytest.fixture
def atoll(capsys: Shown) -> Callable[[Running], Atoll]:
    """A function that runs one command line against an orchestrator: (code, standard output, standard error)."""
    return partial(command_line, capsys)


def unet() -> ModelSpec:
    """A model whose gangs share rows."""
    found = model("unet")
    physics = replace(found.physics, kind=DenoiserKind.UNET)
    shape = replace(found.default_shape, cfg_passes=2)
    return replace(found, pipeline_class="StableDiffusionXLPipeline", physics=physics, default_shape=shape)


async def test_a_gang_that_cannot_share_is_refused_with_what_would_be_right(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(unet())
        await running.apply(site("a", pool("p", gpus=4)))
        async with ScriptedAgent(running, "a", pools=(pool("p", gpus=4),), hold=True):
            for verb in ("submit", "quote"):
                code, out, err = await run(verb, "unet", "--gpus", "4")
                assert (code, out) == (Exit.USAGE, "")
                told = "a gang shares the 2 rows (2 guidance passes x batch 1) of a UNet; --batch 2 would make 4"
                assert f"error: --gpus is 4: expected 1 or 2: {told}\n" == err
                assert (await run(verb, "unet", "--gpus", "4", "--batch", "2"))[0] == Exit.OK, "what it says would do does"
                code, out, err = await run(verb, "unet", "--gpus", "2", "--guidance", "1")
                assert (code, out) == (Exit.USAGE, "")
                assert err.endswith("of a UNet; --batch 2 would make 2, and so would --guidance above 1\n")
            assert len(await answer(run, "jobs", "list")) == 1


async def test_what_an_orchestrator_refuses_is_said_in_options(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"), replace(model("film"), pipeline_class="WanPipeline"))
        await running.apply(site("a"))
        picture = tmp_path / "p.png"
        picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
        for arguments, said in (
            (("m", "--adapter", "ink"), "--adapter is 'ink': expected a known adapter"),
            (("film", "--image", str(picture)), "--image: model film (WanPipeline) cannot begin with an image"),
            (("m", "--image", str(picture), "--strength", "0.04"), "--strength is 0.04: expected 0.05 to 1 with --image"),
            (("m", "--strength", "0.5"), "--strength is 0.5: expected an image to change by it"),
            (("m", "--image", str(tmp_path / "none.png")), "--image: cannot read "),
            (("m", "--site", "b"), "--site is 'b': expected a known site (a)"),
            (("m", "--frames", "5"), "--frames is 5: expected 1: m makes images"),
        ):
            for verb in ("submit", "quote"):
                code, out, err = await run(verb, *arguments)
                assert (code, out) == (Exit.USAGE, ""), (arguments, err)
                assert err.startswith(f"error: {said}"), (arguments, err)
        assert not await answer(run, "jobs", "list")


async def test_regions_are_a_list_or_an_option_that_is_repeated(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"))
        await running.apply(replace(site("a"), region="San Jose, CA"), site("b"), site("c"))
        for given in (("--region", "region-b,region-c"), ("--region", "region-b", "--region", "region-c")):
            assert (await run("submit", "m", *given))[0] == Exit.OK
        assert (await run("submit", "m", "--region", "San Jose, CA,region-b"))[0] == Exit.OK
        asked = [job["spec"]["constraints"]["regions"] for job in await answer(run, "jobs", "list")]
        assert sorted(asked) == [["San Jose, CA", "region-b"], ["region-b", "region-c"], ["region-b", "region-c"]]


async def test_a_result_that_could_go_nowhere_is_found_before_anything_is_submitted(
    tmp_path: Path, atoll: Callable[[Running], Atoll]
) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"))
        await running.apply(site("a"))
        (tmp_path / "file").write_text("here already")
        for place in (tmp_path / "file" / "x.png", tmp_path / "file" / "deep" / "x.png"):
            code, out, err = await run("submit", "m", "--out", str(place), "--timeout", "1s")
            assert (code, out) == (Exit.USAGE, "")
            assert f"--out is '{place}': expected a path below a folder: {tmp_path / 'file'} is a file" in err
        assert not await answer(run, "jobs", "list")


async def test_a_limit_of_time_that_will_be_missed_is_warned_of_and_the_job_is_accepted(
    tmp_path: Path, atoll: Callable[[Running], Atoll]
) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a", hold=True):
            code, out, err = await run("submit", "m", "--deadline", "1s")
            assert code == Exit.OK and out.startswith("job/")
            (warning,) = [line for line in err.splitlines() if line.startswith("warning: ")]
            assert warning.startswith("warning: it would miss its deadline of 1.00s and expire: half of such jobs are done only after ")
            assert "It should begin in about " in warning and "be done in about " in warning
            code, _, err = await run("submit", "m", "--start-timeout", "1s", "--count", "3")
            assert code == Exit.OK and "warning: it would miss its start timeout of 1.00s" in err
            for enough in ((), ("--deadline", "2h"), ("--start-timeout", "2h", "--deadline", "3h")):
                code, _, err = await run("submit", "m", *enough)
                assert code == Exit.OK and "warning" not in err
            assert len(await answer(run, "jobs", "list")) == 7


async def test_what_would_have_to_change_has_figures(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    async with orchestrator(tmp_path) as running:
        run = atoll(running)
        await running.add_models(model("m"), model("large", weights_gb=79), model("huge", weights_gb=100))
        await running.add_models(replace(model("just"), weights_bytes=80_020 * GB // 1_000, resident_bytes=80_020 * GB // 1_000))
        await running.apply(site("a"))
        async with ScriptedAgent(running, "a", hold=True):
            _, out, _ = await run("quote", "huge")
            assert (
                "GPUs of 102 GB and more: its weights alone take 100 GB, the largest of these has 80.0 GB; no --size, --gpus or --precision"
                in out
            )
            _, out, _ = await run("quote", "just")
            assert "its weights alone take 80.02 GB, the largest of these has 80.00 GB; " in out, "no 80.0 GB that do not fit into 80.0 GB"
            _, out, _ = await run("quote", "large")
            assert "a smaller --size, --batch or, of a film, --frames; or GPUs of 81.0 GB and more: weights of " in out
            assert " beside them, the largest of these has 80.0 GB" in out
            code, out, _ = await run("quote", "m", "--max-price", "0.000001")
            assert code == Exit.FAILED
            (enough,) = re.findall(r"raise --max-price to ([0-9.]+), or make the job smaller", out)
            assert (await run("quote", "m", "--max-price", enough))[0] == Exit.OK


async def test_models_that_an_older_version_stored_learn_their_sizes(tmp_path: Path, atoll: Callable[[Running], Atoll]) -> None:
    """Else a size that no pipeline makes is accepted, and fails where it runs."""
    flux, own = replace(model("m"), side_px=16), replace(model("own"), pipeline_class="OwnPipeline")
    other = replace(model("other"), default_shape=replace(flux.default_shape, width=1000))
    async with orchestrator(tmp_path) as running:
        await running.add_models(model("m"), own, other)
        await running.apply(site("a"))
        assert (await atoll(running)("submit", "m", "--size", "1000x1000"))[0] == Exit.OK
    models = (flux, replace(own, pipeline_class="FluxPipeline", side_px=16), replace(other, default_shape=flux.default_shape, side_px=16))
    for _ in range(2):
        async with orchestrator(tmp_path, catalogue=Catalogue(gpus=GPUS, models=models)) as running:
            run = atoll(running)
            code, _, err = await run("submit", "m", "--size", "1000x1000")
            assert code == Exit.USAGE and "--size is '1000x1000': expected sides that are multiples of 16, such as 992x992" in err
            for name in ("own", "other"):
                assert (await run("submit", name, "--size", "1000x1000"))[0] == Exit.OK, "not the catalogue's"
            told = [event for event in await answer(run, "events") if event["actor"] == "atoll"]
            assert [event["subject"] for event in told if event["verb"] == "models_added"] == ["model/m"], "once"


def test_every_field_that_is_refused_of_a_job_has_an_option() -> None:
    from atoll.cli.refusals import in_options

    for _, field in BAD_JOBS:
        told = in_options(field, f"{field} is 7: expected another")
        assert told is not None and field not in told.split(" is ")[0].split("--")[0] and "is " in told
    assert in_options("jobs[3].gang_size", "jobs[3]: gang_size is 7: expected another") == "--gpus is 7: expected another"
    assert in_options("sites[0].region", "sites[0].region is 7") is None
