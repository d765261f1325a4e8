"""Whatever a trace may say survives each form of file; whatever else a file says ends in one error."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atoll.model import limits
from atoll.model.errors import AtollError
from atoll.model.ids import ModelId, TenantId
from atoll.model.job import Priority
from atoll.model.modelspec import AdapterUse
from atoll.model.shape import Precision
from sims.traces.job import WHOLE, TraceJob
from sims.traces.metadata import TraceMeta
from sims.traces.reading import Rules, TraceFile
from sims.traces.writing import write_trace

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9_-]{0,20}[a-z0-9])?", fullmatch=True)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"), include_characters=" "), max_size=63)  # all that is printable
SIDES = st.just((0, 0)) | st.tuples(st.integers(8, 4_096), st.integers(8, 4_096))
ADAPTERS = st.lists(
    st.builds(lambda name, scale: AdapterUse(adapter_id=name, scale_milli=scale), NAMES, st.integers(-10_000, 10_000)),
    max_size=8,
    unique_by=lambda use: use.adapter_id,
).map(tuple)


@st.composite
def trace_jobs(draw: st.DrawFn) -> TraceJob:
    width, height = draw(SIDES)
    whole = {name: draw(st.integers(*bounds)) for name, bounds in WHOLE.items() if name not in {"width", "height", "gang_size"}}
    return TraceJob(
        model_id=ModelId(draw(NAMES)),
        tenant=TenantId(draw(NAMES)),
        width=width,
        height=height,
        gang_size=draw(st.sampled_from(limits.GANG_SIZES)),
        adapters=draw(ADAPTERS),
        precision=draw(st.none() | st.sampled_from(Precision)),
        priority=draw(st.sampled_from(Priority)),
        origin=draw(TEXTS),
        session=draw(TEXTS),
        **whole,
    )


@pytest.mark.parametrize("name", ["trace.parquet", "trace.csv", "trace.jsonl"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(jobs=st.lists(trace_jobs(), min_size=1, max_size=6), source=TEXTS)
def test_whatever_a_trace_may_say_survives(name: str, jobs: list[TraceJob], source: str) -> None:
    ordered = sorted(jobs, key=lambda job: job.arrival_us)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write_trace(path, TraceMeta(source=source), ordered)
        opened = TraceFile(path)
        assert (opened.meta.source, list(opened.jobs())) == (source, ordered)


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz", "trace.jsonl", "trace.parquet"])
@pytest.mark.parametrize("skip_bad", [False, True])
@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=300), at=st.integers(0, 400))
def test_whatever_else_a_file_says_ends_in_one_error(name: str, skip_bad: bool, content: bytes, at: int) -> None:
    """Bytes of anything, alone and in the middle of a file that was right."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        jobs = [TraceJob(arrival_us=number, model_id=ModelId("m"), tenant=TenantId("t"), session="a,b") for number in range(5)]
        write_trace(path, TraceMeta(source="x"), jobs)
        right = path.read_bytes()
        for spoilt in (content, right[:at] + content + right[at:]):
            path.write_bytes(spoilt)
            with contextlib.suppress(AtollError):
                list(TraceFile(path, Rules(skip_bad=skip_bad)).jobs())
