"""What `atoll jobs explain` says of a gang that waits for a block which is kept for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.cli import explain
from atoll.model.ids import NodeId, PoolId, SiteId
from atoll.model.placement import Claim
from tests.unit.jobs_to_show import QUEUED


def _story(capsys: pytest.CaptureFixture[str], claim: Claim) -> str:
    """The sentence about a job that waits for it, at second 3."""
    assert QUEUED.deferral is not None
    job = replace(QUEUED, deferral=replace(QUEUED.deferral, claim=claim))
    explain.show(explain.Moment(job=job, now_us=3_000_000))
    (told,) = [line.strip() for line in capsys.readouterr().out.splitlines() if "waits" in line]
    return told


def test_a_gang_that_waits_names_the_block_that_is_kept_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    claim = Claim(
        site_id=SiteId("tokyo-1"), pool_id=PoolId("h100"), node_id=NodeId("h100-3"), first=4, slots=4,
        since_us=1_000_000, begins_us=15_000_000,
    )  # fmt: skip
    told = _story(capsys, claim)
    assert told == (
        "It waits for slots 4 to 7 of h100-3 at tokyo-1/h100. They are kept for it, and the last of them should be free in about 12.0s."
    )
    overdue = replace(claim, begins_us=2_000_000)
    assert _story(capsys, overdue).endswith("nothing else begins there until it has.")
