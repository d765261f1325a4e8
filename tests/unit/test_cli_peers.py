"""Weights from peer sites, as people read of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.cli import costtable, outlook
from atoll.model.ids import SiteId
from atoll.model.placement import FetchFrom
from tests.unit.jobs_to_show import CHOSEN, OTHER, TERMS

FAR = replace(CHOSEN, fetch_from=FetchFrom(sites=(SiteId("seoul-2"),)))


def test_weights_from_a_peer_site_are_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert outlook.has(TERMS, FAR, 24 * 10**9, "had") == "which had to fetch 24.0 GB from the peer site seoul-2 first"
    assert outlook.has(TERMS, CHOSEN, 24 * 10**9, "had") == "which had to fetch 24.0 GB first"
    costtable.candidates(TERMS, [FAR, OTHER], costtable.Legend(full=True))
    shown = " ".join(capsys.readouterr().out.split())
    assert "cold, to be fetched from seoul-2" in shown and "weights from the origin store, peer sites or both" in shown


def test_a_place_that_fetches_from_a_peer_is_compared_with_one_that_is_warm() -> None:
    told = outlook.comparison(TERMS, replace(OTHER, total_us=1_000_000), [FAR], 24 * 10**9, rule="")
    assert "fetching 24.0 GB from the peer site seoul-2 to tokyo-1/h100" in told


def test_weights_that_come_past_the_nodes_that_have_them_are_said_to(capsys: pytest.CaptureFixture[str]) -> None:
    past = replace(CHOSEN, fetch_from=FetchFrom(sites=(), origin_too=True))
    assert outlook.has(TERMS, past, 24 * 10**9, "had") == "which had to fetch 24.0 GB first"
    costtable.candidates(TERMS, [past, OTHER], costtable.Legend(full=True))
    assert "cold, to be fetched from the origin store" in " ".join(capsys.readouterr().out.split())
