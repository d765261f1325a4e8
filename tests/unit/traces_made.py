"""Small traces for tests, none of a real service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from atoll.model.ids import AdapterId, ModelId, TenantId
from atoll.model.job import Priority
from atoll.model.modelspec import AdapterUse
from atoll.model.shape import Precision
from sims.traces.job import TraceJob
from sims.traces.metadata import TraceMeta

META = TraceMeta(source="a test", licence="none", synthesised=("origin",), settings={"seed": "7"})
FORMS = ("trace.parquet", "trace.csv", "trace.csv.gz", "trace.jsonl", "trace.jsonl.gz")


def jobs(count: int, *, gap_us: int = 1_000_000) -> Iterator[TraceJob]:
    """So many jobs that differ in all that may differ."""
    for number in range(count):
        full = number % 3 == 0
        yield TraceJob(
            arrival_us=number * gap_us,
            model_id=ModelId(f"sdxl-base-1.0--m{number % 600:04}"),
            tenant=TenantId(f"t{number % 97}"),
            width=1024 if full else 0,
            height=768 if full else 0,
            steps=number % 50,
            precision=Precision.FP8 if full else None,
            gang_size=2 if full else 1,
            adapters=(AdapterUse(adapter_id=AdapterId(f"a{number % 50}"), scale_milli=-800),) if full else (),
            origin="N. Virginia" if full else "",
            priority=Priority.URGENT if full else Priority.NORMAL,
            deadline_ms=90_000 if full else 0,
            session=f"s{number // 9}",
            measured_us=number,
        )


def written(folder: Path, text: str | bytes, name: str = "trace.csv") -> Path:
    """A file with this text."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
