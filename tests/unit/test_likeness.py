"""Which names a mistyped one is taken for, and that asking costs little however many names there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from atoll.catalog.likeness import alike
from tests.architecture.sources import REPOSITORY

GPUS = ("H100-SXM", "H100-PCIe", "H200", "L4", "A100-SXM-80GB", "RTX-4090")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("H100", ["H100-PCIe", "H100-SXM", "H200"]),
        ("h100-sxm", ["H100-SXM"]),
        ("A100-SXM", ["A100-SXM-80GB", "H100-SXM"]),
        ("RTX4090", ["RTX-4090"]),
        ("RTX-S", ["RTX-4090"]),
        ("RTY", []),
        ("nothing-like-it", []),
        ("", []),
        ("H" * 10_000, []),
    ],
)
def test_what_begins_so_is_meant_before_what_resembles_it(word: str, meant: list[str]) -> None:
    assert alike(word, GPUS)[: len(meant)] == meant
    assert meant or not alike(word, GPUS)


def test_among_many_names_those_that_begin_alike_are_compared() -> None:
    names = [f"model-{number:05}" for number in range(20_000)] + ["flux.1-schnell", "flux.1-dev"]
    assert alike("flux1-dev", names)[0] == "flux.1-dev"
    assert len(alike("model-", names)) == 3
    assert alike("fluks.1-schnel", names)[0] == "flux.1-schnell"


def test_a_word_that_is_short_for_long_names_is_meant_for_those_that_begin_nearly_so() -> None:
    names = ["flux.1-kontext-dev", "flux.1-schnell-fp8", "wan2.2-t2v-a14b-720p", "sd-1.5"]
    assert alike("fluxx", names) == ["flux.1-kontext-dev", "flux.1-schnell-fp8"]
    assert alike("wan22", names) == ["wan2.2-t2v-a14b-720p"]
    assert alike("fxxxx", names) == alike("flxx", names) == []


def test_names_that_are_as_like_come_in_their_order() -> None:
    assert alike("nodex", ["node3", "node1", "node4", "node2"]) == ["node1", "node2", "node3"]


def test_sites_in_the_examples_of_the_command_line_are_those_of_the_reference_fleet() -> None:
    fleet = {site["id"] for site in yaml.safe_load((REPOSITORY / "clusters.yaml").read_text(encoding="utf-8"))["sites"]}
    named = set()
    for path in Path(REPOSITORY / "atoll" / "cli").glob("*.py"):
        for option in re.findall(r"--(?:sites?|origin) ([a-z]+-[a-z0-9]+(?:,[a-z0-9-]+)*)", path.read_text(encoding="utf-8")):
            named |= set(option.split(","))
    assert len(named) > 2
    assert named - fleet == {"lab-berlin"}, "which is added by hand"
