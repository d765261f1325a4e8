"""Places of equal cost: what decided between them is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.cli import outlook
from atoll.model.ids import PoolId, SiteId
from atoll.model.placement import Candidate

PLACE = Candidate(site_id=SiteId("s"), pool_id=PoolId("p"), total_us=9_000_000, terms_us=(0, 0), cold=True)


@pytest.mark.parametrize(
    ("chosen", "other", "said"),
    [
        ((False, 5, 5), (True, 1, 1), "the one where it is loaded already goes first"),
        ((True, 2, 9), (True, 5, 0), "the one with the shorter fetch goes first"),
        ((True, 5, 1), (True, 5, 2), "the one that evicts less goes first"),
        ((True, 5, 2), (True, 5, 2), "the GPU of the lower price goes first, then the pool with more free slots"),
    ],
)
def test_of_equals_the_first_virtue_by_which_they_differ_is_told(
    chosen: tuple[bool, int, int], other: tuple[bool, int, int], said: str
) -> None:
    """Whether it is cold, its fetch and its evictions, of each."""
    first, second = (replace(PLACE, cold=cold, terms_us=(fetch, evict)) for cold, fetch, evict in (chosen, other))
    assert said in outlook.comparison(("fetch", "evict"), first, [second], 0, rule="cost")
