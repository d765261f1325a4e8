"""`atoll costs predict`: what it prints, and how it refuses what cannot be."""

from __future__ import annotations

import pytest

from atoll.cli.app import main
from atoll.cli.exits import Exit
from tests.unit.costs_commands import Shown, errors_of, json_of

PREDICT = ["costs", "predict", "--model", "flux.1-dev", "--gpu", "H100-SXM"]


def test_the_parts_of_a_prediction_add_up_to_its_seconds(capsys: Shown) -> None:
    asked = [
        "costs", "predict", "--model", "wan2.1-t2v-14b-720p", "--size", "1280x720", "--frames", "81", "--steps", "50", "--gpu", "H100-SXM",
        "--gpus", "8", "--precision", "bf16", "--stack", "eager",
    ]  # fmt: skip
    found = json_of(capsys, *asked)
    assert found["seconds"] == pytest.approx(sum(found["parts"].values()), abs=1e-6)
    # Published for this very setting: 287.9 s.
    assert found["low_seconds"] < 287.9 < found["high_seconds"]
    assert found["flops"] == pytest.approx(652_983e12, rel=0.01)
    assert 5 < found["gang_speedup"] < 8
    assert 0.2 < found["eta"] < 0.6
    assert found["levels"][1] == {"level": "GPU type", "of": "H100-SXM", "effect": found["levels"][1]["effect"], "rows": 411}
    assert main(asked) == Exit.OK
    told = capsys.readouterr().out
    for word in ("text", "denoise", "decode", "overhead", "exchange", "in all", "80 %", "TFLOP", "times as fast as one GPU"):
        assert word in told


def test_a_precision_that_placement_rejects_there_is_said_so(capsys: Shown) -> None:
    for gpu, precision, stands_in in (("A10G", "fp4", "bf16"), ("H100-SXM", "fp4", "fp8")):
        asked = ["costs", "predict", "--model", "flux.1-dev", "--gpu", gpu, "--precision", precision]
        assert json_of(capsys, *asked)["supported"] is False
        assert main(asked) == Exit.OK
        said = f"{gpu} has no units for {precision}: no such job is placed there, and the figure is that of {stands_in}"
        assert said in capsys.readouterr().out
    assert json_of(capsys, *PREDICT, "--precision", "fp8")["supported"] is True
    assert main([*PREDICT, "--precision", "fp8"]) == Exit.OK
    assert "no units" not in capsys.readouterr().out


def test_a_precision_that_is_computed_in_a_wider_one_is_said_so(capsys: Shown) -> None:
    """It runs there, several times as long as in one that the GPU has units for."""
    asked = ["costs", "predict", "--model", "flux.1-dev", "--gpu", "T4", "--precision"]
    assert json_of(capsys, *asked, "bf16")["supported"] is True
    assert main([*asked, "bf16"]) == Exit.OK
    assert "T4 computes bf16 in fp32, and that is the figure; --precision fp16 may be quicker" in capsys.readouterr().out
    assert main([*asked, "fp16"]) == Exit.OK
    assert "computes" not in capsys.readouterr().out


def test_flash_attention_3_is_counted_only_where_it_runs(capsys: Shown) -> None:
    for gpu, stack, used in (("T4", "eager-fa3", "eager"), ("B200", "compile-fa3", "compile"), ("A100-80-SXM", "eager-cudnn", "eager")):
        asked = ["costs", "predict", "--model", "flux.1-dev", "--gpu", gpu]
        told = json_of(capsys, *asked, "--stack", stack)
        assert (told["stack"], told["stack_supported"]) == (stack, False)
        assert told["seconds"] == json_of(capsys, *asked, "--stack", used)["seconds"]
        assert main([*asked, "--stack", stack]) == Exit.OK
        assert f"  FlashAttention 3 and cuDNN's attention run on Hopper only, and {gpu} is " in (said := capsys.readouterr().out)
        assert f": the figure is that of {used}\n" in said
    hopper = json_of(capsys, *PREDICT, "--stack", "eager-fa3")
    assert hopper["stack_supported"] is True and hopper["seconds"] < json_of(capsys, *PREDICT, "--stack", "eager")["seconds"]
    assert main([*PREDICT, "--stack", "eager-fa3"]) == Exit.OK
    assert "FlashAttention" not in capsys.readouterr().out


@pytest.mark.parametrize("form", ["table", "wide", "json", "yaml", "name"])
def test_every_form_is_printed(form: str, capsys: Shown) -> None:
    assert main([*PREDICT, "-o", form]) == Exit.OK
    assert capsys.readouterr().out.strip()


def test_what_is_not_given_is_the_models_own(capsys: Shown) -> None:
    own = json_of(capsys, *PREDICT)
    assert (own["width"], own["steps"], own["precision"], own["gpus"]) == (1024, 28, "bf16", 1)
    assert json_of(capsys, *PREDICT, "--size", "1024x1024", "--steps", "28", "--precision", "bf16", "--gpus", "1") == own


def test_a_model_is_found_by_the_names_it_is_published_under(capsys: Shown) -> None:
    for name in ("Wan2.1-T2V-14B", "wan-ai/wan2.1-t2v-14b-diffusers"):
        small = json_of(capsys, "costs", "predict", "--model", name, "--size", "832x480", "--gpu", "H100-SXM")
        large = json_of(capsys, "costs", "predict", "--model", name, "--size", "1280x720", "--gpu", "H100-SXM")
        assert (small["model"], large["model"]) == ("wan2.1-t2v-14b-480p", "wan2.1-t2v-14b-720p")


def test_a_core_of_a_cpu_is_predicted_too(capsys: Shown) -> None:
    found = json_of(capsys, "costs", "predict", "--model", "sd-1.5", "--gpu", "cpu", "--precision", "fp32")
    assert found["seconds"] > 600
    assert found["eta_level"] == "physics alone"
    assert main(["costs", "predict", "--model", "sd-1.5", "--gpu", "cpu", "--precision", "fp32"]) == Exit.OK
    told = capsys.readouterr().out
    assert "such runs took" not in told, "nobody measured one"
    assert "  nobody measured a run on this type: 80 % should take " in told


def test_a_level_with_one_row_says_so(capsys: Shown) -> None:
    assert main(["costs", "predict", "--model", "flux.1-dev", "--gpu", "V100-32", "--precision", "fp16"]) == Exit.OK
    told = capsys.readouterr().out
    assert "(1 row)" in told and "80 % of such runs took" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "flux1-dev"], "--model is 'flux1-dev': expected a model of the catalogue; did you mean 'flux.1-dev'?"),
        (["--model", ""], "--model is missing: expected one of the catalogue, such as flux.1-dev"),
        (["--gpu", ""], "--gpu is missing: expected one of the catalogue, such as H100-SXM"),
        (["--model", "x" * 100_000], "--model is 'xxxx"),
        (["--model", "tiny-image"], "--model is 'tiny-image': expected a model of the catalogue; none of its "),
        (["--model", "fluxx"], "--model is 'fluxx': expected a model of the catalogue; did you mean 'flux.1-"),
        (["--gpu", "H100"], "--gpu is 'H100': expected a known GPU type; did you mean 'H100-NVL' or 'H100-PCIe' or 'H100-SXM'?"),
        (["--gpu", "h100-sxm"], "--gpu is 'h100-sxm': expected a known GPU type; did you mean 'H100-SXM'?"),
        (["--stack", "compiled"], "--stack is 'compiled': expected a known stack; did you mean 'compile'?"),
        (["--precision", "int8"], "--precision is 'int8': expected one of fp32, fp16, bf16, fp8, fp4"),
        (["--size", "big"], "--size is 'big': expected WIDTHxHEIGHT in pixels"),
        (["--size", "99999x99999"], "--size is '99999x99999': expected WIDTHxHEIGHT in pixels"),
        (["--size", "16384x16384"], "--size is '16384x16384': expected at most"),
        (["--frames", "81"], "--frames is 81: expected 1: flux.1-dev makes images"),
        (["--size", "1000x1001"], "--size is '1000x1001': expected sides that are multiples of 16, such as 992x1008"),
        (["--size", "1024x1001"], "the height of --size is 1001: expected a multiple of 16, such as 992 or 1008"),
        (["--model", "wan2.1-t2v-14b-720p", "--frames", "80"], "--frames is 80: expected 1 + a multiple of 4, such as 77 or 81"),
        (["--steps", "0"], "--steps is '0': expected a whole number from 1 to 1000"),
        (["--steps", "nan"], "--steps is 'nan': expected a whole number from 1 to 1000"),
        (["--gpus", "3"], "--gpus is '3': expected one of 1, 2, 4, 8"),
        (["--gpus", "-1"], "--gpus is '-1': expected one of 1, 2, 4, 8"),
        (["--cfg", "9"], "--cfg is '9': expected a whole number from 1 to 3"),
        (["--batch", "1e9"], "--batch is '1e9': expected a whole number from 1 to 32"),
    ],
)
def test_a_prediction_of_what_cannot_be_is_refused_in_one_line(arguments: list[str], said: str, capsys: Shown) -> None:
    code = main([*PREDICT, *arguments])
    lines = errors_of(capsys, code)
    assert len(lines) == 1
    assert lines[0].startswith(said)
    assert len(lines[0]) < 500


def test_a_prediction_says_whether_the_model_fits(capsys: Shown) -> None:
    assert main(["costs", "predict", "--model", "flux.1-dev", "--gpu", "L4"]) == Exit.OK
    lines = capsys.readouterr().out.splitlines()
    takes = "weights of 33.7 GB and activations of 2.56 GB take 36.3 GB"
    assert lines[1] == f"  it does not fit: {takes}, and the GPU has 24.1 GB: no such job is placed there"
    alone = "the weights alone are too large for it; no smaller shape, gang or other precision helps"
    assert lines[2] == f"  {alone}; what helps is another GPU type, such as A100-40-SXM (42.3 GB), L40 (48.0 GB), L40S (48.0 GB), ..."
    assert main(["costs", "predict", "--model", "flux.1-dev", "--gpu", "L40S"]) == Exit.OK
    assert f"  it fits: {takes} of the 48.0 GB of the GPU" in capsys.readouterr().out.splitlines()
    big = json_of(capsys, "costs", "predict", "--model", "flux.1-dev", "--gpu", "L40S", "--batch", "8")
    assert big["memory_bytes"] == big["weights_bytes"] + big["activations_bytes"] > big["gpu_memory_bytes"] and big["fits"] is False
    # A gang splits the work, not the memory: placing asks the same of each of its GPUs.
    gang = json_of(capsys, "costs", "predict", "--model", "flux.1-dev", "--gpu", "L40S", "--batch", "8", "--gpus", "8")
    assert (gang["fits"], gang["memory_bytes"]) == (False, big["memory_bytes"])


@pytest.mark.parametrize(
    ("asked", "helps"),
    [
        (
            ["flux.1-dev", "--gpu", "L40S", "--batch", "8"],
            "--batch 5, or --size 848x848, or another GPU type, such as A100-80-PCIe (85.1 GB), ",
        ),
        (["flux.1-dev", "--gpu", "L40S", "--size", "4096x2048"], "--size 3408x1696, or another GPU type, such as "),
        (
            ["wan2.1-t2v-14b-720p", "--gpu", "A100-80-SXM", "--frames", "161"],
            "--frames 105, or --size 1040x576, or another GPU type, such as ",
        ),
    ],
)
def test_what_would_make_activations_fit_is_named_and_does(asked: list[str], helps: str, capsys: Shown) -> None:
    predict = ["costs", "predict", "--model", *asked]
    assert main(predict) == Exit.OK
    assert f"  the weights fit, the activations do not; what helps is {helps}" in capsys.readouterr().out
    would_fit = json_of(capsys, *predict)["would_fit"]
    assert len(would_fit["shapes"]) == helps.count("--")
    for shape in would_fit["shapes"]:
        changed = ["--size", f"{shape['width']}x{shape['height']}", "--frames", str(shape["frames"]), "--batch", str(shape["batch"])]
        assert json_of(capsys, *predict, *changed)["fits"] is True, changed
    assert json_of(capsys, *predict, "--gpu", would_fit["gpus"][0])["fits"] is True
    assert json_of(capsys, *PREDICT)["would_fit"] is None


def test_what_no_gpu_of_the_catalogue_holds_is_said_so(capsys: Shown) -> None:
    film = ["costs", "predict", "--model", "wan2.1-t2v-14b-720p", "--gpu", "H100-SXM", "--frames", "1025", "--batch", "32"]
    assert main(film) == Exit.OK
    assert "no smaller picture, film or batch alone would; no type of the catalogue holds it" in capsys.readouterr().out
    assert json_of(capsys, *film)["would_fit"] == {"shapes": [], "gpus": []}
