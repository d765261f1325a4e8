"""Policies by name: the default, and the baselines that it is measured against.

Decides which there are. A baseline is the same machine in everything but how a place is chosen (`rules`): the same filters, feasibility,
queue, reservations, preemption, residency and explanations. What weighs costs beside the choice (the order of regret, moves to slots that
came free) is off with any rule but that of least cost.
"""

from __future__ import annotations

from typing import Final

from orchestrator.core.placement.policy import Policy, Rule
from orchestrator.core.placement.rules import RULES

DEFAULT: Final = Policy()
POLICIES: Final[dict[str, Policy]] = {DEFAULT.name: DEFAULT, **{rule.value: Policy(name=rule.value, rule=rule) for rule in RULES}}


def summary(policy: Policy) -> str:
    """How a policy chooses, in a line."""
    return "least expected cost in seconds" if policy.rule is Rule.COST else RULES[policy.rule].summary
