"""A policy file (YAML) -> Policy, and a policy back to a file that can be edited.

    version: 1
    name: thrifty             # a name of its own
    base: default             # where keys that are left out have their values from
    seconds_per_dollar: 240

Decides how a policy is written; what may be set is `policy_settings`, what is legal is `Policy.check`. Opens no file: text is handed in.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Any, Final, TypeVar

from atoll.catalog.figures import range_text, written
from atoll.catalog.problems import Problems
from atoll.catalog.sites import quoted_text
from atoll.catalog.yaml_fields import Fields
from atoll.catalog.yaml_nodes import parse_yaml
from atoll.model.errors import FieldError
from atoll.model.ids import GpuTypeId, SiteId, TenantId, parse_name
from atoll.model.job import Priority
from atoll.model.limits import CONSTRAINT_NAMES_MAX
from orchestrator.core.placement.policies import DEFAULT, POLICIES, summary
from orchestrator.core.placement.policy import (
    BOUNDS,
    HALF_LIFE_MS,
    IN_ORDER,
    PRIORITY_WEIGHT_MILLI,
    TENANT_WEIGHT_MILLI,
    TENANTS_MAX,
    WEIGHTS_IN_ORDER,
    WHOLE_MILLI,
    Eviction,
    Policy,
    Rule,
)
from orchestrator.core.placement.policy_settings import AVERAGES, BY_FIELD, OTHER_KEYS, SECTIONS, SETTINGS, Setting
from orchestrator.core.placement.tenants import TenantRules

VERSION: Final = 1
# Terms that always count.
_NOT_LEFT_OUT: Final = ("queue", "fetch")
# A policy of every key with its comments is 8 KB; one of 100,000 tenants 4 MB.
FILE_BYTES_MAX: Final = 4 * 1024 * 1024
_MILLI: Final = 1_000
Word = TypeVar("Word", bound=StrEnum)
_TERMS_IN_ORDER: Final = (
    "input", "stage", "init", "adapt", "compile", "execution", "output",
    "money", "net", "link", "evict", "churn", "fragmentation", "risk", "deadline",
)  # fmt: skip


def parse_policy(text: str, file_name: str, *, in_use: bool = False) -> Policy:
    """The policy of a file, checked. Raises SourceErrors with every mistake found.

    `in_use`: what an orchestrator says that it runs by. It fits some figures of a known policy to its settings, and the name stays.
    """
    problems = Problems(file_name)
    fields = Fields(parse_yaml(text, problems), "", problems)
    version = fields.whole("version", 1, 1_000_000)
    if version != VERSION:
        fields.wrong("version", version, f"{VERSION}, the only version there is")
    name = fields.name("name")
    base = POLICIES.get((fields.word("base", POLICIES, "policy") or "") if fields.has("base") else DEFAULT.name, DEFAULT)
    fields.asked("base")
    found: dict[str, Any] = {"name": name, "learning": fields.flag("learning", default=base.learning)}
    found["rule"], found["eviction"] = _one_of(fields, "rule", base.rule), _one_of(fields, "eviction", base.eviction)
    for setting in SETTINGS:
        found[setting.field] = _number(fields, setting, getattr(base, setting.field))
    found["terms"] = _terms(fields, base)
    found["priority_weight_milli"] = _priorities(fields, base)
    found["tenant_weight_milli"] = _tenants(fields, base)
    found["tenant_rules"] = _rules(fields, base)
    found["demand_half_lives_ms"], found["demand_weights_milli"] = _demand(fields, base)
    fields.finish()
    problems.check()
    policy = replace(base, **found)
    _check_order(fields, policy)
    known = POLICIES.get(name)
    if known is not None and policy != known and not in_use:
        fields.wrong("name", name, "a name of its own: the policy that Atoll calls so has other figures")
    problems.check()
    return policy.check()


def _check_order(fields: Fields, policy: Policy) -> None:
    """Figures of which one may not exceed another: told of the one that the file sets, with what the other one is."""
    for lesser, greater in IN_ORDER:
        low, high = getattr(policy, lesser), getattr(policy, greater)
        if high >= low:
            continue
        small, large = BY_FIELD[lesser], BY_FIELD[greater]
        if fields.has(large.key) or not fields.has(small.key):
            fields.wrong(large.key, written(high, large.unit), f"at least {small.key}, which is {written(low, small.unit)}")
        else:
            fields.wrong(small.key, written(low, small.unit), f"at most {large.key}, which is {written(high, large.unit)}")
    if not policy.has_weights_in_order():
        told = ", ".join(f"{priority} {written(policy.weight_milli(priority), _MILLI)}" for priority in Priority)
        fields.wrong("priority_weights", told, WEIGHTS_IN_ORDER)


def _number(fields: Fields, setting: Setting, default: int) -> int:
    low, high = BOUNDS[setting.field]
    if setting.unit == 1:
        return fields.whole(setting.key, low, high, default)
    return fields.figure(setting.key, setting.unit, low, high, default)


def _one_of(fields: Fields, key: str, default: Word) -> Word:
    """One of the words of an enumeration."""
    if not fields.has(key):
        fields.asked(key)
        return default
    kind = type(default)
    return kind(fields.word(key, (each.value for each in kind), key) or default)


def _terms(fields: Fields, base: Policy) -> frozenset[str]:
    """Which terms count: `money: false` leaves one out."""
    inner = fields.mapping("terms")
    if inner is None:
        return base.terms
    found = frozenset(term for term in _TERMS_IN_ORDER if inner.flag(term, default=term in base.terms))
    for term in _NOT_LEFT_OUT:
        if not inner.flag(term, default=True):
            inner.wrong(term, "false", f"true: {' and '.join(_NOT_LEFT_OUT)} always count, since they say when a place can begin")
    inner.finish()
    return found


def _priorities(fields: Fields, base: Policy) -> dict[Priority, int]:
    inner = fields.mapping("priority_weights")
    if inner is None:
        return base.priority_weight_milli
    low, high = PRIORITY_WEIGHT_MILLI
    found = {priority: inner.figure(priority.value, _MILLI, low, high, base.priority_weight_milli[priority]) for priority in Priority}
    inner.finish()
    return found


def _tenants(fields: Fields, base: Policy) -> dict[TenantId, int]:
    inner = fields.mapping("tenant_weights")
    if inner is None:
        return base.tenant_weight_milli
    low, high = TENANT_WEIGHT_MILLI
    return {name: inner.figure(name, _MILLI, low, high) for name in _names_of(fields, inner, "tenant_weights")}


def _rules(fields: Fields, base: Policy) -> dict[TenantId, TenantRules]:
    """Where tenants may run: `gold: {regions: [Frankfurt]}`."""
    inner = fields.mapping("tenants")
    if inner is None:
        return base.tenant_rules
    found = {}
    for name in _names_of(fields, inner, "tenants"):
        rules = inner.mapping(name)
        if rules is None:
            continue
        sites, regions, gpu_types = (rules.texts(key, CONSTRAINT_NAMES_MAX, "names") for key in ("sites", "regions", "gpu_types"))
        one = TenantRules(
            sites=tuple(SiteId(site) for site in sites),
            regions=tuple(regions),
            gpu_types=tuple(GpuTypeId(gpu_type) for gpu_type in gpu_types),
        )
        rules.finish()
        if not rules.keys():
            inner.wrong(name, "nothing", "sites, regions or gpu_types: a tenant without rules is left out")
            continue
        try:
            found[name] = one.check(name) if sites or regions or gpu_types else one
        except FieldError as error:
            inner.problems.add_field(inner.line_of(name), error)
    return found


def _names_of(fields: Fields, inner: Fields, key: str) -> list[TenantId]:
    """The tenants that stand below a key, those that are none left out and noted."""
    names = inner.keys()
    if len(names) > TENANTS_MAX:
        fields.wrong(key, f"{len(names)} tenants", f"at most {TENANTS_MAX} tenants")
        return []
    found = []
    for name in names:
        try:
            found.append(TenantId(parse_name(key, name)))
        except FieldError as error:
            inner.problems.add_field(inner.line_of(name), error)
    return found


def _demand(fields: Fields, base: Policy) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Half-lives in milliseconds and shares in thousandths of the three averages."""
    outer = fields.mapping("demand")
    half_lives, shares = list(base.demand_half_lives_ms), list(base.demand_weights_milli)
    if outer is not None:
        for index, average in enumerate(AVERAGES):
            inner = outer.mapping(average)
            if inner is not None:
                half_lives[index] = inner.figure("half_life_s", _MILLI, *HALF_LIFE_MS, half_lives[index])
                shares[index] = inner.figure("share", _MILLI, 0, WHOLE_MILLI, shares[index])
                inner.finish()
        outer.finish()
        if sum(shares) != WHOLE_MILLI:
            fields.wrong("demand", f"shares of {written(sum(shares), _MILLI)} in all", "shares that add up to 1")
    return tuple(half_lives), tuple(shares)


# --- writing --------------------------------------------------------------------------------------------------------------------


def write_policy(policy: Policy) -> str:
    """A file that reads back to this policy. Comments: what each figure is for, where it may lie, and what the default is."""
    lines = [
        f"# {summary(policy)[:1].upper()}{summary(policy)[1:]}. A key that is left out has the value of `base` (default: {DEFAULT.name}).",
        "# Change the name when you change a figure: explanations, the fleet and recordings name the policy.",
        f"version: {VERSION}",
        f"name: {quoted_text(policy.name)}",
        "",
        f"# How a place is chosen among those that can be bound: {', '.join(Rule)}.",
        f"rule: {policy.rule}",
        f"# Which of a GPU's models makes room first: {', '.join(Eviction)}.",
        f"eviction: {policy.eviction}",
        "# Whether predictions are corrected by what settled attempts took. They are judged all the same.",
        f"learning: {_flag(policy.learning)}",
        "# What counts in a cost. Waiting and fetching always do.",
        "terms:",
        *(f"  {term}: {_flag(term in policy.terms)}" for term in _TERMS_IN_ORDER),
        "# What a second of delay is worth; an urgent job's outbids money, but does not ignore it. None is less than the next.",
        "priority_weights:",
        *(f"  {priority}: {written(policy.priority_weight_milli[priority], _MILLI)}" for priority in Priority),
        "# Shares of tenants while they wait: 2 gets twice the GPU-seconds of 1, which is what others have.",
        f"tenant_weights:{'' if policy.tenant_weight_milli else ' {}'}",
        *(f"  {quoted_text(name)}: {written(weight, _MILLI)}" for name, weight in sorted(policy.tenant_weight_milli.items())),
        "# Where jobs of a tenant may run at all, whatever they ask for: sites, regions, gpu_types. Others may run anywhere.",
        f"tenants:{'' if policy.tenant_rules else ' {}'}",
        *(f"  {quoted_text(name)}: {{{_ruled(rules)}}}" for name, rules in sorted(policy.tenant_rules.items())),
    ]
    for section in SECTIONS:
        lines += ["", f"# --- {section.title}", *(line for setting in section.settings for line in _written(policy, setting))]
    lines += ["# Demand is a mixture of three averages; shares add up to 1.", "demand:"]
    for average, half_life_ms, share in zip(AVERAGES, policy.demand_half_lives_ms, policy.demand_weights_milli, strict=True):
        lines.append(f"  {average}: {{half_life_s: {written(half_life_ms, _MILLI)}, share: {written(share, _MILLI)}}}")
    return "\n".join(lines) + "\n"


def _ruled(rules: TenantRules) -> str:
    kinds = (("sites", rules.sites), ("regions", rules.regions), ("gpu_types", rules.gpu_types))
    return ", ".join(f"{key}: [{', '.join(quoted_text(name) for name in names)}]" for key, names in kinds if names)


def _written(policy: Policy, setting: Setting) -> tuple[str, str]:
    low, high = BOUNDS[setting.field]
    default = written(getattr(DEFAULT, setting.field), setting.unit)
    bounds = f"a whole number from {low} to {high}" if setting.unit == 1 else range_text(setting.unit, low, high)
    return f"# {setting.reason} Default {default}; {bounds}.", f"{setting.key}: {written(getattr(policy, setting.field), setting.unit)}"


def _flag(on: bool) -> str:
    return "true" if on else "false"


def differences(policy: Policy) -> list[tuple[str, str, str]]:
    """(key, value, default) of what is not as in the default policy, in the words and units of a file."""
    found = [
        (setting.key, written(getattr(policy, setting.field), setting.unit), written(getattr(DEFAULT, setting.field), setting.unit))
        for setting in SETTINGS
        if getattr(policy, setting.field) != getattr(DEFAULT, setting.field)
    ]
    for field, key in OTHER_KEYS.items():
        if field != "name" and getattr(policy, field) != getattr(DEFAULT, field):
            found.append((key, _shown(getattr(policy, field)), _shown(getattr(DEFAULT, field))))
    return found


def _shown(value: object) -> str:
    """A value that is no single number, in a line."""
    match value:
        case bool():
            return _flag(value)
        case frozenset():
            left_out = [term for term in _TERMS_IN_ORDER if term not in value]
            return f"without {', '.join(left_out)}" if left_out else "all"
        case dict() if any(isinstance(one, TenantRules) for one in value.values()):
            return "; ".join(f"{name} only {_ruled(rules)}" for name, rules in sorted(value.items()))
        case dict():
            return ", ".join(f"{name} {written(weight, _MILLI)}" for name, weight in sorted(value.items())) or "none"
        case tuple():
            return ", ".join(f"{average} {written(each, _MILLI)}" for average, each in zip(AVERAGES, value, strict=True))
        case _:
            return str(value)
