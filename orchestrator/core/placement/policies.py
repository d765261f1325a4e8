"""Policies by name: the default, and the baselines that it is measured against.

Decides which there are. A baseline is the same machine in everything but how a place is chosen (`rules`): the same filters, feasibility,
queue, reservations, preemption, residency and explanations. What weighs costs after the choice is off: the order of regret, and moves to
slots that came free.
"""

from __future__ import annotations

from typing import Final

from orchestrator.core.placement.policy import Policy, Rule
from orchestrator.core.placement.rules import RULES

DEFAULT: Final = Policy()
POLICIES: Final[dict[str, Policy]] = {
    DEFAULT.name: DEFAULT,
    **{rule.value: Policy(name=rule.value, rule=rule, regret_classes=1, moves_max=0) for rule in RULES},
}


def summary(policy: Policy) -> str:
    """How a policy chooses, in a line."""
    return "least expected cost in seconds" if policy.rule is Rule.COST else RULES[policy.rule].summary
