"""What is kept for gangs that wait, as it is remembered and told.

Decides nothing: `claims` does.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.model.placement import Candidate, Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A block that is kept together for a class of gangs. `until_us`: by when its gang should have come and gone; `moves`: how often it
    was given for a better one; `candidate`: what the place costs, as it was found."""

    block: Claim
    until_us: int
    moves: int
    candidate: Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimDropped:
    """A block is no longer kept for a gang that has not begun there."""

    claim: Claim
    reason: str
