"""Other settings of a policy: those of a grid, of which each policy may try equally many, and each part of it turned off in its turn.

Decides which settings are tried. The policy as it is comes first, then points of the grid: all of them, or as many as the budget allows,
drawn by the policy's name alone, so that every study tries the same. Must not know how settings are judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from random import Random
from typing import Final

from atoll.model.errors import FieldError
from orchestrator.core.placement.policy import Policy, Rule
from orchestrator.core.placement.registry import TERMS

# By field of Policy the values that are tried.
Grid = Mapping[str, Sequence[int]]
# A policy with all of a part's settings at these values does without it.
_PARTS: Final[dict[str, dict[str, int | bool]]] = {
    "learning": {"learning": False},
    "regret": {"regret_classes": 1},
    "window": {"arrival_window_ms": 0},
    "depth": {"slot_depth": 1},
    "moves": {"moves_max": 0},
    "preemption": {"preemptions_max": 0},
    "claims": {"claims_share_milli": 0},
    "copies-ahead": {"residency_memory_milli": 0, "prefetch_link_milli": 0},
}


def settings_of(policy: Policy, grid: Grid, budget: int) -> tuple[Policy, ...]:
    """So many at most, the policy itself the first; each other one has a name of its own. FieldError for a value that is not allowed."""
    if budget < 1:
        raise FieldError("budget", budget, "at least 1: the policy as it is")
    names = sorted(grid)
    size = prod(len(grid[name]) for name in names)
    points = range(size) if size < budget else Random(f"{policy.name}:{names}").sample(range(size), min(budget, size))
    found = {policy.identity.digest: policy}
    for point in points:
        values, rest = {}, point
        for name in names:
            rest, index = divmod(rest, len(grid[name]))
            values[name] = grid[name][index]
        tried = replace(policy, **values)  # type: ignore[arg-type]  # fields of whole numbers
        if tried != policy and len(found) < budget:
            named = replace(tried, name=f"{policy.name}.{len(found):03}").check()
            found[named.identity.digest] = named
    return tuple(found.values())


def ablations(policy: Policy) -> tuple[Policy, ...]:
    """The policy without each term of its cost, and without each part around it, one by one. FieldError for a rule without costs."""
    if policy.rule is not Rule.COST:
        raise FieldError("ablate", policy.name, "a policy that chooses by cost: no other has terms")
    found = [replace(policy, name=f"{policy.name}.no-{term.name}", terms=policy.terms - {term.name}) for term in TERMS]
    found += [replace(policy, name=f"{policy.name}.no-{part}", **off) for part, off in _PARTS.items()]  # type: ignore[arg-type]  # as above
    return tuple(one for one in found if replace(one, name=policy.name) != policy)
