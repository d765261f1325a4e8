"""docs/placement.md says by hand what jobs are told that wait for weights on their way to another node of their site; so does a core."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from atoll.model.job import JobSpec
from atoll.model.quote import Quote, Verdict
from atoll.model.shape import Shape
from atoll.model.site import SiteRuntime
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.registry import TERM_NAMES
from tests.architecture.sources import REPOSITORY
from tests.unit.fleet_of_machines import GB, SECOND, Fleet, model, pool, site, spec

PAGE = (REPOSITORY / "docs" / "placement.md").read_text(encoding="utf-8")
_FETCH = TERM_NAMES.index("fetch")
_ROW = r"^\| (\d+) \| (\d+) \| (\d+\.\d{3}) \| (\d+\.\d{3}) \| (\d+\.\d{3}) \|$"
(TABLE,) = re.findall(r"^### What waits for a flight$(.*?)^### ", PAGE, re.MULTILINE | re.DOTALL)
ROWS = re.findall(_ROW, TABLE, re.MULTILINE)


def _job(gang_size: int, number: int) -> JobSpec:
    """Long enough that nobody waits for a slot where one has run before."""
    return spec(prompt=str(number), simulated=True, gang_size=gang_size, shape=Shape(width=2048, height=2048, steps=1_000))


@pytest.mark.parametrize(("gpus", "before", "fetch", "turn", "there"), ROWS, ids=["-".join(row[:2]) for row in ROWS])
def test_those_who_wait_for_a_flight_are_told_what_the_page_says(gpus: str, before: str, fetch: str, turn: str, there: str) -> None:
    one = replace(site("a", pool("p", nodes=20, gpus=8)), lan_bytes_per_s=5 * GB)
    fleet = Fleet(one, models=(model("m", 20),), runtime=SiteRuntime.TWIN, policy=Policy(learning=False), checked=False)
    gang_size, ahead = int(gpus), int(before)
    # The first brings the flight; those who share its node wait for no other.
    own = 8 // gang_size
    fleet.submit(*(_job(gang_size, number) for number in range(own + ahead)))
    asked_us = fleet.now_us - 1_000
    quote = fleet.machine.quote_job(_job(gang_size, own + ahead), fleet.now_us)
    assert isinstance(quote, Quote) and quote.chosen is not None and quote.verdict is Verdict.WAITS
    fetch_us = quote.chosen.terms_us[_FETCH] + fleet.now_us - asked_us
    told = [figure / SECOND for figure in (fetch_us, quote.turn_us, fetch_us + quote.turn_us)]
    assert told == pytest.approx([float(fetch), float(turn), float(there)], abs=0.002)
    joint_s = 1 / (1 / (20 / 5) + 1 / (20 / 1))
    assert float(fetch) == 20 + 20 / 5
    assert float(turn) == pytest.approx(ahead * joint_s * gang_size / 8, abs=0.001)
    assert float(there) == pytest.approx(float(fetch) + float(turn), abs=0.001)


def test_the_page_has_both_gangs_and_single_jobs() -> None:
    assert {gpus for gpus, *_ in ROWS} == {"1", "8"}
