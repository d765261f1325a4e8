"""What the check found, as tables, and the times as rows that `atoll costs check` reads.

Decides what is worth a line, and that the check fails where a trial did not hold or a step broke.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from atoll.cli.output import table
from tests.gpu.times import as_rows

_GB = 1e9
ROWS_NAME = "times.csv"


def report(found: dict[str, Any], card: str, out: Path) -> int:
    """Print; 0 if everything held."""
    (out / "gpu-check.json").write_text(json.dumps(found, indent=1, default=str))
    print(f"gpu-check: {card}; {found.get('machine', {}).get('host', '')}")
    broken = [name for name, result in found.items() if "error" in result]
    _trials(found.get("fleet", {}))
    _cold(found)
    rows = [one for one in found.get("times", {}).values() if isinstance(one, dict) and "denoise_s" in one]
    _times(rows)
    if rows:
        cells = [cells for one in rows for cells in as_rows(one, card)]
        with (out / ROWS_NAME).open("w", newline="") as opened:
            writer = csv.DictWriter(opened, list(cells[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(cells)
        print(f"gpu-check: the times as a table for 'atoll costs check': {out / ROWS_NAME}")
    failed = [name for name, trial in found.get("fleet", {}).items() if isinstance(trial, dict) and trial.get("holds") is False]
    failed += [name for name, one in found.get("times", {}).items() if isinstance(one, dict) and "trace" in one]
    for name in [*broken, *failed]:
        print(f"gpu-check: {name} failed; see {out}")
    return 1 if broken or failed else 0


def _trials(fleet: dict[str, Any]) -> None:
    rows = []
    for name, trial in fleet.items():
        if isinstance(trial, dict):
            rows.append([name.replace("_", " "), "holds" if trial.get("holds") else "FAILS", f"{trial.get('seconds', 0):.1f}"])
    if rows:
        table(["TRIAL", "", "SECONDS"], rows, frozenset({2}))


def _cold(found: dict[str, Any]) -> None:
    copies, process, loads = found.get("copies", {}), found.get("process", {}), found.get("loads", {})
    rows = [[f"copy {name.replace('_', ' ')}", f"{rate / _GB:.1f} GB/s"] for name, rate in copies.items() if name != "matmul_flops"]
    if "again" in process:
        rows += [[f"process, {name.removesuffix('_s')}", f"{process['again'][name]:.1f} s"] for name in ("imports_s", "context_s")]
    for name, one in loads.items():
        if "seconds" in one:
            told = f"{one['seconds']:.1f} s = {one['read_s']:.1f} read + {one['init_s']:.1f} init + {one['move_s']:.1f} move"
            rows.append([f"load of {one['read_bytes'] / _GB:.1f} GB, {name}", told])
    for step in ("generations", "generations-again"):
        for name, one in found.get(step, {}).items():
            if isinstance(one, dict):
                told = f"{one['denoise_s']:.2f} s denoising, {one['compile_s']:.1f} s compiling, {one['decode_s']:.2f} s decoding"
                rows.append([f"{step} {name}", told])
    for step in ("compiled", "compiled-again"):
        if "denoise_s" in found.get(step, {}):
            one = found[step]
            predicted = f"({one['denoise_predicted_s']:.2f} predicted)"
            told = f"{one['denoise_s']:.2f} s denoising {predicted}, {one['first_step_extra_s']:.1f} s compiling"
            rows.append([f"{one['model']} {step}", told])
    for name, one in found.get("attention", {}).items():
        rates = ", ".join(f"{way.removesuffix('_attention')} {rate / 1e12:.0f}" for way, rate in one.items() if isinstance(rate, float))
        rows.append([f"attention of {name}", f"TFLOP/s: {rates}"])
    if rows:
        table(["OF A COLD START, AND OF KERNELS", ""], rows)


def _times(rows: list[dict[str, Any]]) -> None:
    lines = []
    for one in rows:
        shape = one["shape"]
        frames = f"x{shape['frames']}" if shape["frames"] > 1 else ""
        decode = f"{one['decode_s']:.2f}" if one["decode_s"] is not None else "-"
        lines.append(
            [
                one["model"], f"{shape['width']}x{shape['height']}{frames}", str(shape["steps"]), one["stack"],
                f"{one['denoise_predicted_s']:.2f}", f"{one['denoise_s']:.2f}", f"{one['denoise_ratio']:.2f}",
                f"{one['decode_predicted_s']:.2f}", decode,
            ]
        )  # fmt: skip
    if lines:
        titles = ["MODEL", "SIZE", "STEPS", "STACK", "PREDICTED", "ACTUAL", "RATIO", "DECODING", "ACTUAL"]
        table(titles, lines, frozenset({2, 4, 5, 6, 7, 8}))
