"""Makes mlenergy_latency.csv from the benchmark's table: `python -m atoll.data.trim_sweep < TABLE > atoll/data/mlenergy_latency.csv`.

Decides which of its columns are packaged: those that a time hangs on. Energy and power stay where they are. Must not know what they mean
(`atoll.catalog.sweeps`).
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from typing import Final, TextIO

COLUMNS: Final = (
    "model_id", "gpu", "num_gpus", "ulysses", "ring", "batch", "steps", "width", "height", "frames", "batch_latency_s", "precision",
)  # fmt: skip


def trim(source: Iterable[str], target: TextIO) -> None:
    """Every row of `source` with these columns alone, in its order. A table without one of them is a KeyError."""
    rows = csv.DictReader(source, strict=True)
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([row[column] for column in COLUMNS] for row in rows)


if __name__ == "__main__":
    trim(sys.stdin, sys.stdout)
