"""What a drain would do, as people read it."""

from __future__ import annotations

import pytest

from atoll.cli.drain import show_plan
from atoll.client import DrainStarted
from atoll.model.ids import JobId, SiteId
from atoll.model.views import DrainMove, DrainPlan

SECOND = 1_000_000


def test_a_job_that_no_other_place_may_take_is_not_promised_one(capsys: pytest.CaptureFixture[str]) -> None:
    moves = tuple(
        DrainMove(job_id=JobId(f"j-{action}-{to}"), action=action, ends_us=5 * SECOND, to_site=to)
        for action in ("move", "stop_at_deadline")
        for to in (SiteId("b"), None)
    )
    plan = DrainPlan(site_id=SiteId("a"), deadline_us=60 * SECOND, predicted_end_us=5 * SECOND, moves=moves, last_warm=())
    show_plan(DrainStarted(site=None, plan=plan, now_us=0, dry_run=True))
    told = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if "job/" in line}
    assert "moves now" in told["job/j-move-b"] and "starts again elsewhere" in told["job/j-stop_at_deadline-b"]
    for action in ("move", "stop_at_deadline"):
        assert "goes back to the queue" in told[f"job/j-{action}-None"]
        assert "no other place may take it" in told[f"job/j-{action}-None"]
