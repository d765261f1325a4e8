"""`atoll costs check` of a sweep over batches and gangs, in its own columns, and of what else than sources can be left out."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from atoll import data
from atoll.catalog.sweeps import COLUMNS as SWEEP_COLUMNS
from atoll.cli.app import main
from atoll.cli.exits import Exit
from atoll.data.trim_sweep import COLUMNS, trim
from tests.unit.costs_commands import HEADER, ROW, Shown, errors_of, file_of, json_of

SWEEP_HEADER = (
    "task,model_id,params_b,gpu,num_gpus,ulysses,ring,batch,steps,width,height,frames,fps,batch_latency_s,energy_j_per_item,precision"
)
SWEEP_ROW = "text-to-image,black-forest-labs/FLUX.1-dev,12.0,H100,8,4,2,1,50,1024,1024,1,,5.999,718.5,bfloat16"


def test_a_sweep_is_read_in_its_own_columns(tmp_path: Path, capsys: Shown) -> None:
    pixart = SWEEP_ROW.replace("black-forest-labs/FLUX.1-dev", "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS").replace("5.999", "3.1")
    found = json_of(capsys, "costs", "check", file_of(tmp_path, SWEEP_HEADER, SWEEP_ROW, SWEEP_ROW.replace("8,4,2", "8,1,8"), pixart))
    mixed, ring, guided = found["rows"]
    assert mixed["actual"] == 5.999 and mixed["predicted"] == pytest.approx(5.999, rel=0.2)
    assert mixed["energy_j_per_item"] == "718.5" and mixed["stack"] == "eager" and mixed["line"] == 2
    assert (mixed["model"], mixed["model_id"]) == ("black-forest-labs/FLUX.1-dev", "flux.1-dev")
    assert ring["predicted"] > mixed["predicted"] * 1.1
    # No column says how many passes a step has: FLUX.1 was distilled to one, the others have two.
    asked = ["costs", "predict", "--gpu", "H100-SXM", "--gpus", "8", "--steps", "50", "--model", "pixart-sigma-xl-2"]
    two, one = (json_of(capsys, *asked, "--cfg", passes)["seconds"] for passes in ("2", "1"))
    assert one < two <= guided["predicted"]
    assert set(found["summary"]["by_gpus"]) == {"8"} and set(found["summary"]["by_batch"]) == {"1"}


def test_rows_of_a_sweep_that_nobody_knows_are_listed(tmp_path: Path, capsys: Shown) -> None:
    strange = [
        SWEEP_ROW.replace("black-forest-labs/FLUX.1-dev", "Dream-9000"),
        SWEEP_ROW.replace("H100", "H900"),
        SWEEP_ROW.replace("bfloat16", "q4"),
        SWEEP_ROW.replace("8,4,2", "8,2,2"),
    ]
    found = json_of(capsys, "costs", "check", file_of(tmp_path, SWEEP_HEADER, SWEEP_ROW, *strange))
    assert len(found["rows"]) == 1
    assert [(one["field"], one["value"], one["lines"]) for one in found["unknown"]] == [
        ("model", "Dream-9000", [3]),
        ("gpu", "H900", [4]),
        ("precision", "q4", [5]),
        ("optimisation", "eager; 8 GPUs as ulysses 2 x ring 2", [6]),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (SWEEP_ROW.replace("5.999", "nan"), ":2: batch_latency_s is 'nan': expected a number from 0.000001 to "),
        (SWEEP_ROW.replace("8,4,2,1", "8,4,2,0"), ":2: batch is '0': expected a whole number from 1"),
        (SWEEP_ROW.replace("8,4,2", "-8,4,2"), ":2: num_gpus is '-8': expected a whole number from 1"),
        (SWEEP_ROW.replace("1024,1024", "1024,1e9"), ":2: height is '1e9': expected a whole number from 1"),
        (SWEEP_ROW.replace("black-forest-labs/FLUX.1-dev", ""), ":2: model_id is '': expected a name"),
    ],
)
def test_a_broken_row_of_a_sweep_is_named_by_file_and_line(line: str, said: str, tmp_path: Path, capsys: Shown) -> None:
    file = file_of(tmp_path, SWEEP_HEADER, line)
    errors = errors_of(capsys, main(["costs", "check", file]))
    assert errors[0].startswith(file + said), errors


def test_what_is_packaged_of_a_sweep_is_what_the_script_makes(tmp_path: Path) -> None:
    made = io.StringIO()
    trim([f"{SWEEP_HEADER}\n", f"{SWEEP_ROW}\n"], made)
    assert made.getvalue().splitlines() == [
        "model_id,gpu,num_gpus,ulysses,ring,batch,steps,width,height,frames,batch_latency_s,precision",
        "black-forest-labs/FLUX.1-dev,H100,8,4,2,1,50,1024,1024,1,5.999,bfloat16",
    ]
    packaged, again = data.mlenergy_latency_csv(), io.StringIO()
    trim(packaged.splitlines(keepends=True), again)
    assert again.getvalue() == packaged
    assert set(COLUMNS) == SWEEP_COLUMNS


def test_the_packaged_sweep_is_checked_and_stands_for_a_file(capsys: Shown) -> None:
    found = json_of(capsys, "costs", "check", "--sweep")
    assert len(found["rows"]) == found["summary"]["all"]["rows"] == 722 and found["unknown"] == []
    assert list(found["summary"]["by_batch"]) == ["1", "2", "4", "8", "16", "32"]
    assert list(found["summary"]["by_gpus"]) == ["1", "2", "4", "8"]


def test_models_and_gpu_types_are_left_out_too(tmp_path: Path, capsys: Shown) -> None:
    lines = [HEADER, ROW, ROW.replace("FLUX.1-dev", "SD3-medium"), ROW.replace("H100-SXM", "L40S")]
    file = file_of(tmp_path, *lines)
    by_model = json_of(capsys, "costs", "check", file, "--cv", "model")
    assert by_model["cv"] == "model" and by_model["models"] == 2
    assert {name: one["rows"] for name, one in by_model["by_model"].items()} == {"flux.1-dev": 2, "sd3-medium": 1}
    assert main(["costs", "check", file, "--cv", "gpu"]) == Exit.OK
    told = capsys.readouterr().out
    assert "2 GPU types, each predicted by a fit to rows of others alone" in told and "GPU TYPE, OURS" in told


def test_times_of_our_own_check_are_packaged_and_stand_for_a_file(tmp_path: Path, capsys: Shown) -> None:
    found = json_of(capsys, "costs", "check", "--own")
    assert not found["unknown"]
    assert {row["source"] for row in found["rows"]} == {"measured by this project's gpu-check"}
    measured = {(row["model_id"], row["gpu"]): row for row in found["rows"] if row["optimisation"].startswith("eager")}
    assert len(measured) == 21
    # What PyTorch takes on Hopper is no stack of the published tables: neither FlashAttention 2, as in most rows of `eager`, nor 3.
    text = data.gpu_check_csv()
    for remark in ("", "; FA3 on Hopper"):
        other = json_of(capsys, "costs", "check", file_of(tmp_path, *text.replace("; cuDNN attention on Hopper", remark).splitlines()))
        assert found["summary"]["all"]["median"] < other["summary"]["all"]["median"] / 2


def test_without_a_stack_it_is_what_workers_run_on_that_gpu(capsys: Shown) -> None:
    for gpu, stack in (("H100-SXM", "eager-cudnn"), ("A100-80-SXM", "eager")):
        asked = ("costs", "predict", "--model", "flux.1-dev", "--gpu", gpu)
        found = json_of(capsys, *asked)
        assert found["stack"] == stack and found["stack_supported"]
        assert found["seconds"] == json_of(capsys, *asked, "--stack", stack)["seconds"]
