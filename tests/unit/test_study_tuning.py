"""Which settings of a policy are tried, and what it is without its parts; how many policies look side by side."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from atoll.model.errors import FieldError
from orchestrator.core.placement.policies import POLICIES
from orchestrator.core.placement.policy import ALL_TERMS
from sims.report.reading import read_comparison
from sims.report.standings import standings
from sims.study.tuning import ablations, settings_of
from tests.unit.made_results import made_metadata, made_places, write_made

GRID = {"slot_depth": [1, 2, 3], "moves_max": [0, 2], "seconds_per_dollar": [30, 60]}
DEFAULT = POLICIES["default"]


def test_all_points_of_a_small_grid_the_policy_itself_first() -> None:
    found = settings_of(DEFAULT, GRID, 100)
    assert found[0] is DEFAULT and len(found) == 3 * 2 * 2  # one point is the policy itself
    points = {(one.slot_depth, one.moves_max, one.seconds_per_dollar) for one in found}
    assert len(points) == 12 and len({one.name for one in found}) == 12
    assert all(replace(one, name="default", slot_depth=2, moves_max=2, seconds_per_dollar=60) == DEFAULT for one in found)


def test_a_budget_is_kept_by_each_policy_and_always_the_same_points_are_tried() -> None:
    for policy in (DEFAULT, POLICIES["random"]):
        found = settings_of(policy, GRID, 5)
        assert len(found) == 5 and found[0] is policy and len({one.identity.digest for one in found}) == 5
        assert settings_of(policy, GRID, 5) == found
    assert settings_of(DEFAULT, GRID, 1) == (DEFAULT,)
    assert settings_of(DEFAULT, {}, 5) == (DEFAULT,)
    # More points than anybody could write down are no more work.
    many = {name: range(1, 60) for name in ("k_e_milli", "link_milli", "tardy_milli", "tie_us", "move_gain_milli")}
    assert len(settings_of(DEFAULT, many, 7)) == 7


def test_a_value_that_no_policy_may_have_is_named() -> None:
    with pytest.raises(FieldError, match="lost_after_max_ms is 1"):
        settings_of(DEFAULT, {"lost_after_max_ms": [1]}, 3)
    with pytest.raises(FieldError, match="budget is 0"):
        settings_of(DEFAULT, GRID, 0)


def test_each_term_is_left_out_once_and_each_part_turned_off() -> None:
    found = {one.name.removeprefix("default.no-"): one for one in ablations(DEFAULT)}
    terms = {name: one for name, one in found.items() if one.terms != DEFAULT.terms}
    assert terms.keys() == ALL_TERMS
    for name, one in terms.items():
        assert replace(one, name="default", terms=one.terms | {name}) == DEFAULT
    assert (found["learning"].learning, found["moves"].moves_max, found["depth"].slot_depth) == (False, 0, 1)
    assert all(one.check() is one for one in found.values())
    # What is off already is not turned off.
    assert "default.no-moves" not in {one.name for one in ablations(replace(DEFAULT, moves_max=0))}


def test_many_policies_are_lines_of_a_table_for_each_load(tmp_path: Path) -> None:
    folders: list[Path] = []
    for load_milli in (500, 900):
        for policy, slowness in (("default", 1000), ("random", 3000), ("evil\x1b[31m", 1200)):
            for seed in (1, 2, 3):
                metadata = replace(made_metadata(seed, policy, places=made_places(3)), load_milli=load_milli)
                folders.append(write_made(tmp_path / f"{len(folders)}", metadata, count=2_000, samples=5, slowness=slowness))
    out = io.StringIO()
    Console(file=out, width=200, no_color=True).print(standings(read_comparison(folders)))
    lines = out.getvalue().splitlines()
    assert "\x1b" not in out.getvalue()
    assert sum(line.startswith("load 0.50") for line in lines) == sum(line.startswith("load 0.90") for line in lines) == 1
    assert sum(line.startswith("default") for line in lines) == 2
    cold = [line for line in lines if line.startswith("random") and "cold starts" in line]
    assert len(cold) == 2 and all("*" in line and "p " in line and " to " in line for line in cold)
