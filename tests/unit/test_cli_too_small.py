"""GPUs that are too small: a quote, a job that waits, one that was placed and one that expired say the same, figures included."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from atoll.cli import explain, outlook
from atoll.cli.reasons import advice
from atoll.model.ids import AdapterId, JobId
from atoll.model.job import Job, JobSpec, JobState
from atoll.model.modelspec import AdapterUse
from atoll.model.placement import Reason, TooSmall
from atoll.model.quote import Quote
from atoll.wire.jobs import job_from_proto, job_to_proto
from orchestrator.core import events
from tests.unit.fleet_of_machines import GB, Fleet, adapter, model, pool, site, spec

Shown = pytest.CaptureFixture[str]

# Beside "small" GPUs of 24 GB: weights that are more, weights that are with an adapter, and a shape that is.
HEAVY = spec("heavy")
ADAPTED = spec("fitting", adapters=(AdapterUse(adapter_id=AdapterId("style")),))
WIDE = spec("fitting", shape=replace(spec().shape, width=4_096, height=4_096))
SAID = {
    HEAVY: "its weights alone take 40.0 GB, the largest of these has 24.0 GB; no --size, --gpus or --precision helps",
    ADAPTED: "its weights take 20.0 GB and with its adapters 25.0 GB, the largest of these has 24.0 GB; no --size helps",
    WIDE: "GB and more: weights of 20.0 GB and ",
}


def _fleet(*pools: str) -> Fleet:
    fleet = Fleet(*(site(name, pool("p", name)) for name in pools), models=(model("heavy", 40), model("fitting", 20)))
    fleet.ask(events.AdaptersAdded, actor="t", adapters=(replace(adapter("style", "fitting"), weights_bytes=5 * GB),))
    return fleet


def _submitted(fleet: Fleet, asked: JobSpec) -> Job:
    """The job as it is stored, and sent to whoever asks."""
    fleet.submit(asked)
    return _stored(fleet, next(reversed(fleet.jobs)))


def _stored(fleet: Fleet, job_id: JobId) -> Job:
    return job_from_proto(job_to_proto(replace(fleet.jobs[job_id], payload_digest="")))


def _advice(shown: str) -> str:
    """The line about memory: what would have to change."""
    (line,) = [line for line in shown.splitlines() if "the GPU is too small" in line and "   " in line.strip()]
    return line.split("   ")[-1].strip()


@pytest.mark.parametrize("asked", SAID)
def test_a_quote_and_the_decision_that_followed_say_the_same(capsys: Shown, asked: JobSpec) -> None:
    fleet = _fleet("big", "small")
    offered = fleet.machine.quote_job(asked, fleet.now_us)
    outlook.show_quote("m", cast(Quote, offered))
    quoted = _advice(capsys.readouterr().out)
    job = _submitted(fleet, asked)
    assert job.state is JobState.PLACED
    explain.show(explain.Moment(job=job, now_us=fleet.now_us))
    assert _advice(capsys.readouterr().out) == quoted
    assert SAID[asked] in quoted


def test_a_job_that_expired_in_vain_says_it_too(capsys: Shown) -> None:
    fleet = _fleet("small")
    waiting = _submitted(fleet, replace(HEAVY, start_timeout_ms=1_000))
    fleet.wait(2, reporting=("small",))
    job = _stored(fleet, waiting.job_id)
    assert job.state is JobState.EXPIRED
    explain.show(explain.Moment(job=job, now_us=fleet.now_us))
    assert SAID[HEAVY] in _advice(capsys.readouterr().out)


def test_weights_that_are_hardly_too_large_are_told_in_figures_that_differ() -> None:
    short = TooSmall(needed_bytes=37_000_000_000, weights_bytes=33_720_000_000, adapters_bytes=0, largest_bytes=33_715_000_000)
    assert "its weights alone take 33.720 GB, the largest of these has 33.715 GB" in advice(Reason.MEMORY_TOO_SMALL, None, short)
