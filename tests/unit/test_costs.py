"""`atoll costs check`: what it prints, and how it refuses what cannot be."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pytest

from atoll import data
from atoll.cli.app import main
from atoll.cli.exits import Exit
from atoll.model.shape import Precision
from tests.unit.costs_commands import HEADER, ROW, Shown, errors_of, file_of, json_of


def test_rows_have_their_own_columns_and_predicted_and_actual_seconds(tmp_path: Path, capsys: Shown) -> None:
    found = json_of(capsys, "costs", "check", file_of(tmp_path, f"{HEADER},note", f"{ROW},mine"))
    (row,) = found["rows"]
    assert row["model"] == "FLUX.1-dev" and row["note"] == "mine" and row["line"] == 2
    assert row["actual"] == 6.7
    assert row["predicted"] == pytest.approx(6.7, rel=0.2)
    assert row["error"] == pytest.approx(abs(row["predicted"] / row["actual"] - 1), abs=1e-5)
    assert found["summary"]["all"]["rows"] == 1
    assert list(found["summary"]["by_gpu"]) == ["H100-SXM"]
    assert list(found["summary"]["by_class"]) == ["transformer-image"]
    assert list(found["summary"]["by_stack"]) == ["eager"]
    assert found["unknown"] == []


def test_the_packaged_table_is_checked_whole(capsys: Shown) -> None:
    found = json_of(capsys, "costs", "check")
    written = list(csv.DictReader(io.StringIO(data.latencies_csv())))
    unknown = {line for entry in found["unknown"] for line in entry["lines"]}
    assert len(found["rows"]) + len(unknown) == len(written)
    assert found["summary"]["for_fitting"]["rows"] == sum(row["split"] == "calibrate" for row in written) == 191
    assert found["summary"]["for_fitting"]["within_25"] > 0.9
    for row in found["rows"]:
        assert row["actual"] == float(row["seconds"]) and row["predicted"] > 0


def test_the_packaged_rows_name_their_sources() -> None:
    for row in csv.DictReader(io.StringIO(data.latencies_csv())):
        assert row["source"], row


def test_names_that_are_not_known_are_listed_and_not_dropped(tmp_path: Path, capsys: Shown) -> None:
    lines = [
        HEADER,
        ROW,
        ROW.replace("FLUX.1-dev", "Dream-9000"),
        ROW.replace("H100-SXM", "H900"),
        ROW.replace("eager", "warp drive"),
        ROW.replace("bf16", "q4"),
        "Dream-9000,60s,,0,1,1,q4,magic,H900,1,3",
    ]
    file = file_of(tmp_path, *lines)
    found = json_of(capsys, "costs", "check", file)
    assert len(found["rows"]) == 1
    assert found["unknown"] == [
        {"field": "model", "value": "Dream-9000", "rows": 2, "lines": [3, 7]},
        {"field": "gpu", "value": "H900", "rows": 2, "lines": [4, 7]},
        {"field": "optimisation", "value": "warp drive", "rows": 1, "lines": [5]},
        {"field": "precision", "value": "q4", "rows": 2, "lines": [6, 7]},
        {"field": "optimisation", "value": "magic", "rows": 1, "lines": [7]},
    ]
    assert main(["costs", "check", file]) == Exit.OK
    told = capsys.readouterr().out
    assert "1 row predicted, 5 not known" in told
    for name in ("Dream-9000", "H900", "warp drive", "q4", "magic"):
        assert name in told


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("gpu", ["T4", "V100-32", "A10G", "H100-SXM", "B200"])
def test_a_row_is_predicted_as_predict_predicts_it(gpu: str, precision: str, tmp_path: Path, capsys: Shown) -> None:
    """Of a format without units on that type too: both say what it is computed in."""
    row = ROW.replace("H100-SXM", gpu).replace("bf16", precision)
    (checked,) = json_of(capsys, "costs", "check", file_of(tmp_path, HEADER, row))["rows"]
    told = json_of(capsys, "costs", "predict", "--model", "flux.1-dev", "--gpu", gpu, "--precision", precision, "--stack", "eager")
    assert checked["predicted"] == pytest.approx(told["seconds"], abs=1e-5), "but for what each stage rounds"
    assert checked["computed_precision"] == told["computed_precision"]


def test_rows_in_a_format_without_units_are_said_to_be_predicted_in_another(tmp_path: Path, capsys: Shown) -> None:
    rows = [ROW.replace("H100-SXM", "T4"), ROW.replace("H100-SXM", "T4").replace("bf16", "fp16"), ROW]
    assert main(["costs", "check", file_of(tmp_path, HEADER, *rows)]) == Exit.OK
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert told[told.index(["NO", "UNITS", "FOR", "GPU", "PREDICTED", "AS", "ROWS", "LINES"]) + 1] == ["bf16", "T4", "fp32", "1", "2"]
    assert main(["costs", "check", file_of(tmp_path, HEADER, ROW)]) == Exit.OK
    assert "NO UNITS" not in capsys.readouterr().out


def test_no_packaged_row_is_of_a_format_that_its_gpu_has_no_units_for(capsys: Shown) -> None:
    """Nobody published such a run: those whose chart said bf16 for V100 were faster than its fp32 units can be, so they ran in fp16."""
    for table in ([], ["--sweep"], ["--own"]):
        for row in json_of(capsys, "costs", "check", *table)["rows"]:
            assert row["precision"] in {row["computed_precision"], "bfloat16"} and row["computed_precision"] != "fp32", row


def test_a_table_of_strangers_only_is_no_success_and_told_in_one_line(tmp_path: Path, capsys: Shown) -> None:
    strangers = [ROW.replace("FLUX.1-dev", "Dream"), ROW.replace("H100-SXM", "H900")]
    file = file_of(tmp_path, HEADER, *strangers)
    said = f"error: {file}: nothing could be checked: each of its 2 rows has a name that is not known here (gpu, model)\n"
    assert main(["costs", "check", file, "-o", "json"]) == Exit.UNDECIDED
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["rows"] == [] and found["summary"]["all"] is None and found["unknown"][0]["value"] == "Dream"
    assert captured.err == said
    assert main(["costs", "check", file]) == Exit.UNDECIDED
    captured = capsys.readouterr()
    assert "0 rows predicted, 2 not known" in captured.out and captured.err == said
    titles = [line.split()[:2] for line in captured.out.splitlines() if line.isupper() or line.startswith("NOT")]
    assert titles == [["NOT", "KNOWN"]], "tables without a line say nothing"


@pytest.mark.parametrize("verb", [["check", "--cv", "source"], ["fit"]])
def test_from_strangers_alone_nothing_is_learned(verb: list[str], tmp_path: Path, capsys: Shown) -> None:
    file = file_of(tmp_path, HEADER, ROW.replace("FLUX.1-dev", "Dream"))
    assert main(["costs", verb[0], file, *verb[1:]]) == Exit.UNDECIDED
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: {file}: nothing to learn from: its only row has a name that is not known here (model)\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (ROW.replace("6.7", "nan"), ":2: seconds is 'nan': expected a number from 0.000001 to "),
        (ROW.replace("6.7", "1e-308"), ":2: seconds is '1e-308': expected a number from 0.000001 to "),
        (ROW.replace("6.7", "inf"), ":2: seconds is 'inf': expected a number from 0.000001 to "),
        (ROW.replace("6.7", "-6.7"), ":2: seconds is '-6.7': expected a number from 0.000001 to "),
        (ROW.replace("6.7", "0"), ":2: seconds is '0': expected a number from 0.000001 to "),
        (ROW.replace("6.7", ""), ":2: seconds is '': expected a number from 0.000001 to "),
        (ROW.replace("6.7", "1e99"), ":2: seconds is '1e99': expected a number from 0.000001 to "),
        (ROW.replace(",28,", ",-28,"), ":2: steps is '-28': expected a whole number from 0 to 1000"),
        (ROW.replace(",28,", ",0,"), ":2: steps is 0: expected at least 1 for a model that denoises"),
        (ROW.replace(",28,", ",2.5,"), ":2: steps is '2.5': expected a whole number"),
        (ROW.replace("1024x1024", "wide"), ":2: resolution is 'wide': expected WIDTHxHEIGHT in pixels"),
        (ROW.replace("1024x1024", "4x4"), ":2: shape.width is 4: expected a whole number from 8"),
        (ROW.replace("SXM,1,", "SXM,0,"), ":2: n_gpus is '0': expected a whole number from 1"),
        (ROW + ",more", ":2: row is '12 cells': expected 11 cells, as the header has"),
        ('"' + ROW, ":2: row is "),
        (ROW.replace("FLUX.1-dev", ""), ":2: model is '': expected a name"),
        (ROW.replace("FLUX.1-dev", "m" * 300), ":2: model is 'mmm"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(line: str, said: str, tmp_path: Path, capsys: Shown) -> None:
    file = file_of(tmp_path, HEADER, line)
    errors = errors_of(capsys, main(["costs", "check", file]))
    assert errors[0].startswith(file + said), errors
    assert len(errors[0]) < 500


def test_all_mistakes_of_a_table_are_told_at_once(tmp_path: Path, capsys: Shown) -> None:
    broken = [ROW.replace("6.7", "nan"), ROW, ROW.replace(",28,", ",x,")]
    errors = errors_of(capsys, main(["costs", "check", file_of(tmp_path, HEADER, *broken)]))
    assert [error.split(":")[1] for error in errors] == ["2", "4"]


def test_all_missing_columns_are_named_in_one_line(tmp_path: Path, capsys: Shown) -> None:
    errors = errors_of(capsys, main(["costs", "check", file_of(tmp_path, "model,gpu", "a,b")]))
    lacks = "batch, cfg_forwards, frames, n_gpus, optimisation, precision, resolution, seconds, steps"
    assert [error.partition(":1: ")[2] for error in errors] == [f"header is 'model,gpu': expected also the columns {lacks}"]
    errors = errors_of(capsys, main(["costs", "check", file_of(tmp_path, ",".join(f"column_{number}" for number in range(2_000)), "1")]))
    assert len(errors) == 1 and len(errors[0]) < 500


def test_files_that_are_no_tables_are_refused(tmp_path: Path, capsys: Shown) -> None:
    path = tmp_path / "times.csv"

    def said(content: bytes) -> str:
        path.write_bytes(content)
        (error,) = errors_of(capsys, main(["costs", "check", str(path)]))
        return error

    assert "expected a table with a header line" in said(b"")
    assert "expected at least one row below the header" in said(HEADER.encode() + b"\n")
    assert "expected UTF-8 text (byte" in said(HEADER.encode() + b"\n" + ROW.encode("utf-16"))
    assert "line 2" in said(HEADER.encode() + b"\n\xff\xfe")
    assert "expected at most 8 MiB; give it in parts" in said(b"x" * (8 * 1024 * 1024 + 1))
    table = f"{HEADER}\n{ROW}\n"
    assert "this is compressed: unpack it first, with gunzip" in said(gzip.compress(table.encode()))
    assert "a zip archive or a spreadsheet" in said(b"PK\x03\x04 and so on")
    assert said(table.replace(",", ";").encode()).endswith(": expected commas between the columns, in place of semicolons")
    assert said(table.replace(",", "\t").encode()).endswith(": expected commas between the columns, in place of tabs")
    assert said(table.replace("seconds", "secs").encode()).endswith(": expected also the column seconds (is 'secs' meant?)")
    assert said(table.replace("model", "Model").encode()).endswith(": expected also the column model (is 'Model' meant?)")
    assert "expected also the columns batch" in said(f"{ROW}\n".encode()), "a header that is missing is one mistake"
    assert "row is" in said(HEADER.encode() + b'\n"a\x00')
    missing = errors_of(capsys, main(["costs", "check", str(tmp_path / "none.csv")]))
    assert "cannot read it: No such file" in missing[0]
    assert "cannot read it" in errors_of(capsys, main(["costs", "check", str(tmp_path)]))[0]


def test_quotes_byte_order_marks_and_windows_lines_are_read(tmp_path: Path, capsys: Shown) -> None:
    path = tmp_path / "times.csv"
    quoted = ",".join(f'"{cell}"' for cell in ROW.split(","))
    path.write_bytes(b"\xef\xbb\xbf" + f'{HEADER},note\r\n{quoted},"a, ""quoted"" note"\r\n'.encode())
    assert json_of(capsys, "costs", "check", str(path))["rows"][0]["note"] == 'a, "quoted" note'


def test_texts_of_a_table_never_reach_a_terminal_raw(tmp_path: Path, capsys: Shown) -> None:
    assert main(["costs", "check", file_of(tmp_path, HEADER, ROW.replace("FLUX.1-dev", "\x1b[31mred"), ROW)]) == Exit.OK
    captured = capsys.readouterr()
    assert "red" in captured.out and "\x1b" not in captured.out + captured.err


def test_of_many_rows_it_is_told_how_far_it_is(tmp_path: Path, capsys: Shown) -> None:
    assert main(["costs", "check", file_of(tmp_path, HEADER, *[ROW] * 20_001)]) == Exit.OK
    captured = capsys.readouterr()
    assert captured.err == "20000 of 20001 rows predicted\n" and "20001 rows predicted, 0 not known" in captured.out
    assert main(["costs", "check", file_of(tmp_path, HEADER, *[ROW] * 20)]) == Exit.OK
    assert capsys.readouterr().err == ""


def test_a_thousand_names_that_are_not_known_fill_a_screen_and_not_more(tmp_path: Path, capsys: Shown) -> None:
    rows = [ROW.replace("FLUX.1-dev", f"mine-{number}") for number in range(1_000)]
    file = file_of(tmp_path, HEADER, ROW, *rows)
    assert main(["costs", "check", file]) == Exit.OK
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) < 100
    assert captured.err == "940 more values are not known: -o json has all of them\n"
    assert len(json_of(capsys, "costs", "check", file)["unknown"]) == 1_000


def test_one_table_at_a_time(tmp_path: Path, capsys: Shown) -> None:
    file = file_of(tmp_path, HEADER, ROW)
    for given, named in (
        ([file, "--sweep"], "FILE and --sweep"),
        (["--sweep", "--own"], "--sweep and --own"),
        ([file, "--own"], "FILE and --own"),
    ):
        (error,) = errors_of(capsys, main(["costs", "check", *given]))
        assert error == f"{named} are given: expected one of them, since each is a table"


# --- check --cv ---------------------------------------------------------------------------------------------------------------


def test_sources_are_left_out_one_at_a_time(tmp_path: Path, capsys: Shown) -> None:
    header = f"{HEADER},source"
    rows = [f"{ROW},a", f"{ROW.replace('6.7', '7.1')},b", f"{ROW.replace('H100-SXM', 'A100-80-SXM').replace('6.7', '13.8')},c"]
    found = json_of(capsys, "costs", "check", file_of(tmp_path, header, *rows), "--cv", "source")
    assert found["sources"] == 3
    assert set(found["summary"]) == {"ours", "flat", "baseline"}
    assert found["summary"]["ours"]["one GPU"]["rows"] == 3 and found["summary"]["ours"]["gangs"] is None
    by_source = {row["source"]: row for row in found["rows"]}
    # The baseline of a's row is b's efficiency: the same work in b's seconds.
    assert by_source["a"]["baseline"] == pytest.approx(7.1, rel=1e-4)
    assert by_source["b"]["baseline"] == pytest.approx(6.7, rel=1e-4)
    assert all(row["predicted"] > 0 for row in by_source.values())


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([HEADER, ROW, ROW], ":1: header is 'model,resolution,"),
        ([HEADER, ROW, ROW], ": expected also the column source, by which --cv source tells rows apart"),
        ([f"{HEADER},source", f"{ROW},a", f"{ROW},"], ":3: source is '': expected a source, by which --cv source tells rows apart"),
        (
            [f"{HEADER},source,split", f"{ROW},a,context"],
            "expected rows to learn from, but those that are known are of the split 'context'",
        ),
        ([f"{HEADER},source", *(f"{ROW},{number}" for number in range(201))], "expected at most 200 sources and 5000 rows"),
    ],
)
def test_what_cannot_be_left_out_is_refused(lines: list[str], said: str, tmp_path: Path, capsys: Shown) -> None:
    (error,) = errors_of(capsys, main(["costs", "check", file_of(tmp_path, *lines), "--cv", "source"]))
    assert said in error


def test_one_source_alone_is_predicted_from_the_packaged_rows(tmp_path: Path, capsys: Shown) -> None:
    lines = [f"{HEADER},source", f"{ROW},mine", f"{ROW.replace('6.7', '670')},mine"]
    found = json_of(capsys, "costs", "check", file_of(tmp_path, *lines), "--cv", "source")
    assert [row["predicted"] for row in found["rows"]] == [pytest.approx(6.7, rel=0.2)] * 2
    assert all(row["baseline"] > 0 for row in found["rows"])


def test_only_what_rows_name_can_be_left_out(capsys: Shown) -> None:
    (error,) = errors_of(capsys, main(["costs", "check", "--cv", "stack"]))
    assert error == "--cv is 'stack': expected one of source, model, gpu"
