"""Policy files: what is written reads back, every mistake is told with its line, and a policy that changed is part of history."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from atoll.catalog.problems import SourceErrors
from atoll.cli.app import main
from atoll.cli.exits import Exit
from atoll.model.errors import FieldError
from atoll.model.ids import ChangeSeq, FleetId, GpuTypeId, SiteId, TenantId, Term
from atoll.model.job import Priority
from orchestrator.config import load_config
from orchestrator.core import events
from orchestrator.core.durable import Stored
from orchestrator.core.machine import Machine, new_machine
from orchestrator.core.outputs import AppendAudit, PutPolicy
from orchestrator.core.placement.policies import DEFAULT, POLICIES
from orchestrator.core.placement.policy import ALL_TERMS, BOUNDS, Eviction, Identity, Policy, Rule
from orchestrator.core.placement.policy_file import differences, parse_policy, write_policy
from orchestrator.core.placement.policy_settings import BY_FIELD, OTHER_KEYS, SETTINGS
from orchestrator.core.placement.registry import TERMS
from orchestrator.core.placement.tenants import TenantRules
from tests.unit.fleet_of_machines import GPUS

Shown = pytest.CaptureFixture[str]
HEAD = "version: 1\nname: own\n"
OF_A_TENANT = "sites, regions, gpu_types"
ALL_TERMS_OF_A_FILE = (
    "input, stage, init, adapt, compile, execution, output, money, net, link, evict, churn, fragmentation, risk, deadline, queue, fetch"
)


def _said(text: str) -> list[str]:
    with pytest.raises(SourceErrors) as raised:
        parse_policy(text, "own.yaml")
    return [str(error) for error in raised.value.errors]


def _rules(names: st.SearchStrategy[str]) -> st.SearchStrategy[TenantRules]:
    """Any rules that say something."""
    labels = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=63)
    regions = st.lists(labels.filter(lambda text: text.isprintable() and text == text.strip()), max_size=3)
    found = st.builds(
        lambda sites, regions, gpus: TenantRules(
            sites=tuple(map(SiteId, sites)), regions=tuple(regions), gpu_types=tuple(map(GpuTypeId, gpus))
        ),
        st.lists(names, max_size=3),
        regions,
        st.lists(labels.filter(lambda text: text.isprintable() and text == text.strip()), max_size=3),
    )
    return found.filter(lambda rules: bool(rules.sites or rules.regions or rules.gpu_types))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Any legal policy."""
    base = draw(st.sampled_from(list(POLICIES.values())))
    changed = draw(st.sets(st.sampled_from(sorted(BOUNDS))))
    figures: dict[str, Any] = {name: draw(st.integers(*BOUNDS[name])) for name in sorted(changed)}
    names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,8}[a-z0-9]", fullmatch=True)
    first = draw(st.integers(0, 1_000))
    second = draw(st.integers(0, 1_000 - first))
    found = replace(
        base,
        name=draw(names.filter(lambda name: name not in POLICIES)),
        rule=draw(st.sampled_from(Rule)),
        eviction=draw(st.sampled_from(Eviction)),
        learning=draw(st.booleans()),
        terms=frozenset(draw(st.sets(st.sampled_from(sorted(ALL_TERMS))))),
        priority_weight_milli=dict(zip(Priority, sorted(draw(st.tuples(*[st.integers(10, 100_000)] * 3)), reverse=True), strict=True)),
        tenant_weight_milli={TenantId(name): weight for name, weight in draw(st.dictionaries(names, st.integers(1, 1_000_000))).items()},
        tenant_rules={TenantId(name): rules for name, rules in draw(st.dictionaries(names, _rules(names), max_size=3)).items()},
        demand_half_lives_ms=(draw(st.integers(1_000, 10**9)), draw(st.integers(1_000, 10**9)), draw(st.integers(1_000, 10**9))),
        demand_weights_milli=(first, second, 1_000 - first - second),
        **figures,
    )
    return replace(
        found,
        silent_after_ms=max(found.silent_after_ms, found.report_interval_ms),
        lost_after_max_ms=max(found.lost_after_max_ms, found.lost_after_min_ms),
        recheck_max_ms=max(found.recheck_max_ms, found.recheck_min_ms),
        breaker_pause_max_ms=min(max(found.breaker_pause_max_ms, found.breaker_pause_ms), BOUNDS["breaker_pause_max_ms"][1]),
        breaker_pause_ms=min(found.breaker_pause_ms, BOUNDS["breaker_pause_max_ms"][1]),
    )


@given(policies())
def test_what_is_written_reads_back(policy: Policy) -> None:
    assert policy.check() is policy
    again = parse_policy(write_policy(policy), "own.yaml")
    assert again == policy
    assert again.identity == policy.identity


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_registered_policies_read_back_and_differ_from_the_default_as_they_say(policy: Policy) -> None:
    assert parse_policy(write_policy(policy), "f") == policy
    assert {key for key, _, _ in differences(policy)} == (set() if policy == DEFAULT else {"rule"})
    assert parse_policy(f"{HEAD}base: {policy.name}\n", "f") == replace(policy, name="own")


def test_every_field_of_a_policy_can_be_set_and_is_bounded() -> None:
    names = {each.name for each in fields(Policy)} - {"unscaled_digest"}
    assert names == set(BY_FIELD) | set(OTHER_KEYS), "a new field needs a line in policy_settings"
    whole = {each.name for each in fields(Policy) if each.type == "int"}
    assert whole == set(BOUNDS) == set(BY_FIELD), "a new figure needs its bounds"
    assert len({setting.key for setting in SETTINGS}) == len(SETTINGS)
    for name, (low, high) in BOUNDS.items():
        assert low <= getattr(DEFAULT, name) <= high
        for beyond in (low - 1, high + 1):
            changed: dict[str, Any] = {name: beyond}
            with pytest.raises(FieldError, match=name):
                replace(DEFAULT, **changed).check()


def test_a_written_file_says_of_every_figure_what_it_is_for_and_where_it_may_lie() -> None:
    lines = write_policy(DEFAULT).splitlines()
    for setting in SETTINGS:
        (place,) = [number for number, line in enumerate(lines) if line.startswith(f"{setting.key}: ")]
        assert lines[place - 1].startswith("# ") and re.search(r"\. Default \S+; (a|0, or a) ", lines[place - 1]), lines[place - 1]


def test_what_is_left_out_is_as_in_the_base() -> None:
    assert parse_policy(HEAD, "f") == replace(DEFAULT, name="own")
    lines = ("base: random", "seed: 7", "terms: {money: false}", "demand: {hours: {half_life_s: 60}}", "priority_weights: {batch: 0.5}")
    own = parse_policy(HEAD + "\n".join(lines), "f")
    assert (own.rule, own.seed, own.terms) == (Rule.RANDOM, 7, ALL_TERMS - {"money"})
    assert own.demand_half_lives_ms == (600_000, 60_000, 604_800_000)
    assert own.priority_weight_milli == {**DEFAULT.priority_weight_milli, Priority.BATCH: 500}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("aging_s: 3", "own.yaml:3: unknown key 'aging_s', whose value is '3': did you mean 'ageing_s'?"),
        ("seconds_per_dolar: 90", "own.yaml:3: unknown key 'seconds_per_dolar', whose value is '90': did you mean 'seconds_per_dollar'?"),
        ("seconds_per_dollar: .nan", "own.yaml:3: seconds_per_dollar is '.nan': expected a whole number from 0 to 100000"),
        ("seconds_per_dollar: 1.5", "own.yaml:3: seconds_per_dollar is '1.5': expected a whole number from 0 to 100000"),
        ("seconds_per_dollar:", "own.yaml:3: seconds_per_dollar is 'nothing': expected a whole number from 0 to 100000"),
        ("k_e: -1", "own.yaml:3: k_e is '-1': expected 0, or a number from 0.001 to 100"),
        ("k_e: .inf", "own.yaml:3: k_e is '.inf': expected 0, or a number from 0.001 to 100"),
        ("k_e: 0.00001", "own.yaml:3: k_e is '0.00001': expected 0, or a number from 0.001 to 100"),
        ("tie_share: 0.0006", "own.yaml:3: tie_share is '0.0006': expected 0, or a number from 0.001 to 1"),
        ("residence_s: 59.9999", "own.yaml:3: residence_s is '59.9999': expected a number from 60 to 31449600"),
        ("tie_share: 1e30", "own.yaml:3: tie_share is '1e30': expected 0, or a number from 0.001 to 1"),
        ("ageing_s: [1]", "own.yaml:3: ageing_s is 'a list': expected a number from 0.001 to 604800"),
        ("rule: randm", "own.yaml:3: rule is 'randm': expected a known rule; did you mean 'random'?"),
        ("eviction: lur", "own.yaml:3: eviction is 'lur': expected a known eviction; did you mean 'lru'?"),
        ("base: defualt", "own.yaml:3: base is 'defualt': expected a known policy; did you mean 'default'?"),
        ("learning: yes", "own.yaml:3: learning is 'yes': expected true or false"),
        (
            "terms: {mony: false}",
            f"own.yaml:3: unknown key 'mony' in terms, whose value is 'false': did you mean 'money'? There are {ALL_TERMS_OF_A_FILE}",
        ),
        (
            "terms: {queue: false}",
            "own.yaml:3: terms.queue is 'false': expected true: queue and fetch always count, since they say when a place can begin",
        ),
        (
            "terms: {fetch: false, money: false}",
            "own.yaml:3: terms.fetch is 'false': expected true: queue and fetch always count, since they say when a place can begin",
        ),
        ("terms: [money]", "own.yaml:3: terms is 'a list': expected a mapping of keys and values"),
        ("priority_weights: {batch: 0}", "own.yaml:3: priority_weights.batch is '0': expected a number from 0.01 to 100"),
        (
            "priority_weights: {urgent: 0.1, batch: 3}",
            "own.yaml:3: priority_weights is 'urgent 0.1, normal 1, batch 3': expected urgent at least normal, and normal at least batch",
        ),
        (
            "priority_weights:\n  batch: 1.001",
            "own.yaml:3: priority_weights is 'urgent 5, normal 1, batch 1.001': expected urgent at least normal, and normal at least batch",
        ),
        ("tenant_weights: {gold: 0}", "own.yaml:3: tenant_weights.gold is '0': expected a number from 0.001 to 1000"),
        (
            "tenants: {gold: {}}",
            "own.yaml:3: tenants.gold is 'nothing': expected sites, regions or gpu_types: a tenant without rules is left out",
        ),
        (
            "tenants: {gold: {planets: [mars], sites: [s]}}",
            f"own.yaml:3: unknown key 'planets' in tenants.gold, whose value is 'a list': expected one of {OF_A_TENANT}",
        ),
        (
            "tenants: {gold: {region: [mars]}}",
            f"own.yaml:3: unknown key 'region' in tenants.gold, whose value is 'a list': did you mean 'regions'? There are {OF_A_TENANT}",
        ),
        ("tenants: {gold: {regions: []}}", "own.yaml:3: tenants.gold.regions is '0 entries': expected a list of 1 to 256: names"),
        ("demand: {days: {share: 0.9}}", "own.yaml:3: demand is 'shares of 1.7 in all': expected shares that add up to 1"),
        ("silent_after_s: 0.5", "own.yaml:3: silent_after_s is '0.5': expected at least report_interval_s, which is 1"),
        ("lost_after_min_s: 90000", "own.yaml:3: lost_after_min_s is '90000': expected at most lost_after_max_s, which is 600"),
        (
            "lost_after_max_s: 200\nlost_after_min_s: 900",
            "own.yaml:3: lost_after_max_s is '200': expected at least lost_after_min_s, which is 900",
        ),
        ("k_e: 1\nk_e: 2", "own.yaml:4: key is 'k_e': expected each key once; 'k_e' stands in line 3 already"),
        ("k_e: &one 1", "own.yaml:3: anchor is '&one': expected the value alone; anchors are not accepted"),
        ("terms: " + "{a: " * 20 + "1" + "}" * 20, "own.yaml:3: depth is 'more than 12': expected at most 12 levels"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_line_field_value_and_what_would_be_right(lines: str, said: str) -> None:
    assert _said(f"{HEAD}{lines}\n") == [said]


def test_a_name_of_ours_is_refused_for_other_figures() -> None:
    assert _said("version: 1\nname: default\nk_e: 2\n") == [
        "own.yaml:2: name is 'default': expected a name of its own: the policy that Atoll calls so has other figures"
    ]
    assert _said("version: 2\nname: own\n") == ["own.yaml:1: version is 2: expected 1, the only version there is"]
    assert _said("version: 1\n") == [
        "own.yaml:1: name is 'missing': expected a name"
    ]  # fmt: skip
    for nothing in ("", "# only a comment\n"):
        assert _said(nothing) == ["own.yaml:1: file is 'empty': expected keys with values, the first of them 'version: 1'"]


def test_all_terms_are_listed_to_whoever_names_none_and_those_that_always_count_may_be_named() -> None:
    (said,) = _said(f"{HEAD}terms: {{zzzz: true}}\n")
    assert sorted(said.partition("one of ")[2].split(", ")) == sorted(term.name for term in TERMS)
    assert parse_policy(f"{HEAD}terms: {{queue: true, fetch: true, net: false}}\n", "f").terms == ALL_TERMS - {"net"}


def test_what_may_stand_there_is_listed_once_each() -> None:
    (said,) = _said(f"{HEAD}base: default\nrule: random\nzzzz: 1\n")
    listed = said.partition("one of ")[2].removesuffix(", ...").split(", ")
    assert len(set(listed)) == len(listed) > 5


@given(st.one_of(st.text(), st.dictionaries(st.sampled_from([setting.key for setting in SETTINGS]), st.text()).map(yaml.safe_dump)))
def test_any_text_is_a_policy_or_a_list_of_mistakes(text: str) -> None:
    with suppress(SourceErrors):
        parse_policy(f"{HEAD}{text}", "own.yaml").check()


# --- identity ---------------------------------------------------------------------------------------------------------------------


def test_policies_of_one_digest_are_the_same() -> None:
    digests = {policy.identity.digest for policy in POLICIES.values()}
    assert len(digests) == len(POLICIES)
    changed = replace(DEFAULT, terms=ALL_TERMS - {"money"})
    assert changed.identity.name == "default" and changed.identity.digest not in digests
    assert DEFAULT.at_scale(60_000).identity == DEFAULT.identity, "the clock is no figure of the policy"
    assert replace(DEFAULT, terms=frozenset(sorted(ALL_TERMS, reverse=True))).identity == DEFAULT.identity


def _started(policy: Policy, before: Identity | None) -> tuple[Machine, list[object]]:
    stored = Stored(fleet_id=FleetId("f"), term=Term(2), fleet_time_us=0, last_audit_seq=ChangeSeq(0), policy=before)
    machine = new_machine(stored, policy, GPUS)
    step = machine.handle(events.TookOver(fleet_id=FleetId("f"), term=Term(2)), 1)
    return machine, list(step.records)


def test_a_policy_that_changed_over_a_restart_is_kept_and_audited() -> None:
    own = replace(DEFAULT, name="own", k_e_milli=2_000)
    machine, records = _started(own, DEFAULT.identity)
    (put,) = [record for record in records if isinstance(record, PutPolicy)]
    assert put.policy == own.identity
    (audit,) = [record.event for record in records if isinstance(record, AppendAudit)]
    assert (audit.verb, audit.subject) == ("policy_changed", "fleet")
    assert audit.detail == f"from default ({DEFAULT.identity.digest}) to own ({own.identity.digest})"
    view = machine.fleet_view(2, 1_000)
    assert (view.policy, view.policy_digest) == ("own", own.identity.digest)
    assert _started(own, own.identity)[1] == []
    first = _started(own, None)[1]
    assert [type(record) for record in first] == [PutPolicy], "a fleet's first policy is no change"


# --- the command line ---------------------------------------------------------------------------------------------------------------


def test_a_shown_policy_can_be_edited_and_fed_back(tmp_path: Path, capsys: Shown) -> None:
    assert main(["policies", "show", "default", "-o", "yaml"]) == Exit.OK
    text = capsys.readouterr().out
    file = tmp_path / "own.yaml"
    file.write_text(text.replace("name: default", "name: own").replace("k_e: 1", "k_e: 2"), encoding="utf-8")
    assert main(["policies", "check", str(file)]) == Exit.OK
    shown = capsys.readouterr().out
    assert shown.splitlines()[1:] == ["  What differs from the default:", "    k_e: 2 (default 1)"]
    assert main(["policies", "show", str(file), "-o", "json"]) == Exit.OK
    assert json.loads(capsys.readouterr().out)["k_e"] == 2
    assert main(["policies", "check", str(file), "-o", "json"]) == Exit.OK
    digest = json.loads(capsys.readouterr().out)["digest"]
    config = load_config({"policy": str(file)}, {})
    assert config.policy.identity == Identity(name="own", digest=digest)
    assert load_config({}, {"ATOLL_ORCHESTRATOR_POLICY": "two-choices"}).policy is POLICIES["two-choices"]


def test_all_policies_are_listed(capsys: Shown) -> None:
    assert main(["policies", "list", "-o", "name"]) == Exit.OK
    assert capsys.readouterr().out.split() == [f"policy/{name}" for name in POLICIES]
    assert main(["policies", "list", "-o", "wide"]) == Exit.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("default ") and DEFAULT.identity.digest in lines[1]


def test_mistakes_of_a_file_are_lines_of_their_own(tmp_path: Path, capsys: Shown) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"{HEAD}k_e: -1\nrule: best\n", encoding="utf-8")
    for arguments, code in (
        (["policies", "check", str(file)], Exit.USAGE),
        (["orchestrator", "--policy", str(file)], 2),
        (["up", "--policy", str(file), "--data-dir", str(tmp_path / "data")], Exit.USAGE),
    ):
        assert main(arguments) == code
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert [line.removeprefix(f"error: {file}:")[:2] for line in lines] == ["3:", "4:"]
    assert not (tmp_path / "data").exists()


def test_all_keys_are_listed_once_where_some_are_unknown(tmp_path: Path, capsys: Shown) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"{HEAD}k-e: 1\n", encoding="utf-8")
    assert main(["policies", "check", str(file)]) == Exit.USAGE
    assert "hint: the keys of a policy file are version, " in capsys.readouterr().err, "whatever the key looks like"
    file.write_text(f"{HEAD}k_a: 1\nseconds_per_dolar: 90\n", encoding="utf-8")
    assert main(["policies", "check", str(file)]) == Exit.USAGE
    *errors, hint = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and hint.startswith("hint: the keys of a policy file are version, name, base, ")
    for setting in SETTINGS:
        assert f" {setting.key}," in hint, setting.key
    for nothing_unknown in ("k_e: -1\n", "terms: {mony: false}\n"):
        file.write_text(HEAD + nothing_unknown, encoding="utf-8")
        assert main(["policies", "check", str(file)]) == Exit.USAGE
        assert "hint" not in capsys.readouterr().err, "those of terms stand in the error"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("randon", "policy is 'randon': expected a file that exists, or a known policy; did you mean 'random'?"),
        ("a\0b", "expected a file that can be read"),
        (".", "policy is '.': expected a file that can be read (Is a directory)"),
    ],
)
def test_no_such_policy(where: str, said: str, capsys: Shown) -> None:
    assert main(["policies", "show", where]) == Exit.USAGE
    assert said in capsys.readouterr().err
