"""`atoll models where --why`: what came and left, told so that a burst of jobs is a line and not a page."""

from __future__ import annotations

import json

import pytest

from atoll.cli.copies import show_places
from atoll.cli.output import Form
from atoll.model.ids import JobId, ModelId, NodeId, SiteId
from atoll.model.replica import Tier
from atoll.model.residency import Cause, ModelPlaces, Movement, ResidencyEvent, TargetView

Shown = pytest.CaptureFixture[str]
SECOND = 1_000_000
NOW_US = 1_000 * SECOND


def _event(at_s: int, node: str, job: str | None, **changes: object) -> ResidencyEvent:
    told: dict[str, object] = {"site_id": SiteId("neo-nj"), "tier": Tier.GPU, "movement": Movement.CAME, "cause": Cause.JOB, **changes}
    return ResidencyEvent(
        at_us=at_s * SECOND, model_id=ModelId("m"), node_id=NodeId(node), job_id=JobId(job) if job is not None else None, **told  # type: ignore[arg-type]
    )  # fmt: skip


def _places(*events: ResidencyEvent) -> ModelPlaces:
    return ModelPlaces(model_id=ModelId("m"), now_us=NOW_US, weights_bytes=1, target=TargetView(), copies=(), events=events)


def _lines(capsys: Shown) -> list[str]:
    lines = capsys.readouterr().out.splitlines()
    (first,) = [number for number, line in enumerate(lines) if line.startswith("WHEN")]
    return [" ".join(line.split()) for line in lines[first:]]


def test_a_burst_is_one_line_for_each_minute_site_and_cause(capsys: Shown) -> None:
    burst = [_event(900 + number, f"gb200-{number % 2}", f"j{number}") for number in range(40)]
    left = [_event(at_s, "gb200-0", "j99", movement=Movement.LEFT, price_us=2 * SECOND) for at_s in (941, 942)]
    others = [
        _event(943, "gb200-0", None, cause=Cause.PIN),
        _event(944, "h100-0", "j41", site_id=SiteId("neo-cdg")),
        _event(970, "gb200-1", "j42"),
    ]
    show_places(_places(*burst, *left, *others), why=True, form=Form.TABLE)
    assert _lines(capsys) == [
        "WHEN WHAT COPIES TIER SITE NODE BECAUSE OF PRICE",
        "30.0s ago came 1 gpu neo-nj gb200-1 job/j42 -",
        "56.0s ago came 1 gpu neo-cdg h100-0 job/j41 -",
        "57.0s ago came 1 gpu neo-nj gb200-0 pin -",
        "58.0s ago left 2 gpu neo-nj gb200-0 job/j99 4.00s",
        "1m01s ago came 40 gpu neo-nj 2 nodes 40 jobs: job/j0 to job/j39 -",
    ]


def test_whoever_reads_json_has_every_event(capsys: Shown) -> None:
    show_places(_places(*[_event(900 + number, "n", f"j{number}") for number in range(3)]), why=True, form=Form.JSON)
    assert [event["job_id"] for event in json.loads(capsys.readouterr().out)["events"]] == ["j0", "j1", "j2"]
