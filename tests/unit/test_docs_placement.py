"""docs/placement.md says what the code does: every key of a policy file with its default and bounds, and every baseline."""

from __future__ import annotations

import re

import yaml

from atoll.catalog.figures import written
from orchestrator.core.placement.policies import DEFAULT, POLICIES, summary
from orchestrator.core.placement.policy import ALL_TERMS, BOUNDS
from orchestrator.core.placement.policy_file import parse_policy, write_policy
from orchestrator.core.placement.policy_settings import SECTIONS
from orchestrator.core.placement.registry import TERMS
from tests.architecture.sources import REPOSITORY
from tests.bench.core import CASES

PAGE = (REPOSITORY / "docs" / "placement.md").read_text(encoding="utf-8")


def test_every_figure_of_a_policy_is_in_its_table_as_the_code_has_it() -> None:
    rows = []
    for section in SECTIONS:
        assert f"### {section.title}" in PAGE
        for setting in section.settings:
            low, high = (written(bound, setting.unit) for bound in BOUNDS[setting.field])
            default = written(getattr(DEFAULT, setting.field), setting.unit)
            rows.append(f"| `{setting.key}` | {default} | {low} | {high} | {setting.reason} |")
    assert re.findall(r"^\| `\w+` \| .* \| .* \| .* \| .* \|$", PAGE, re.MULTILINE) == rows


def test_every_other_key_is_named() -> None:
    keys = set(yaml.safe_load(write_policy(DEFAULT))) | {"base"}
    assert keys == set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    (terms,) = re.findall(r"^\| `terms` \| (.*) \|$", PAGE, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", terms)) == {*ALL_TERMS, "false"}


def test_every_term_is_explained() -> None:
    assert re.findall(r"^\| (\w+) \| [^|]* \| [^|]* \|$", PAGE, re.MULTILINE)[1:] == [term.name for term in TERMS]
    (prices,) = re.findall(r"^J = C \+ (.*)$", PAGE, re.MULTILINE)
    assert prices.split(" + ") == [term.name for term in TERMS if term.price]


def test_its_example_is_a_policy() -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    policy = parse_policy(text, "docs/placement.md")
    assert (policy.name, policy.seconds_per_dollar) == ("thrifty", 240)


def test_every_policy_is_listed_as_it_chooses() -> None:
    for name, policy in POLICIES.items():
        assert re.search(rf"^{name} +{re.escape(summary(policy))}$", PAGE, re.MULTILINE), name


def test_every_case_of_the_table_of_speeds_can_be_measured() -> None:
    rows = re.findall(
        r"^\| `([\w+-]+)` \| ([\d,]+) \| [\d,]+ \| ([\d,]+) \| (yes|no) \| ([\d,]+).* \| [\d,]+ \| [\d,]+ \|$", PAGE, re.MULTILINE
    )
    assert rows
    for name, sites, models, explained, waiting in rows:
        case = CASES[name]
        told = (36 * case.copies, case.models, "yes" if case.explained else "no", case.queued + case.waiting)
        assert told == (_number(sites), _number(models), explained, _number(waiting))


def _number(text: str) -> int:
    return int(text.replace(",", ""))
