"""What is kept for gangs that wait, as it is remembered and told.

Decides nothing: `claims` does.
"""

from __future__ import annotations

from collections.abc import ItemsView, ValuesView
from dataclasses import dataclass
from typing import NamedTuple

from atoll.model.ids import SiteId, SlotRef, TenantId
from atoll.model.placement import Candidate, Claim
from orchestrator.core.placement.classes import ClassKey


class Kept(NamedTuple):
    """Which claim: for which class, and where its block begins."""

    key: ClassKey
    site_id: SiteId
    lead: SlotRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A block that is kept together for a class of gangs. `until_us`: by when its gang should have come and gone; `moves`: how often it
    was given for a better one; `candidate`: what the place costs, as it was found; `tenant`: whose turn it was, and `charge_us`: what
    a gang there is charged; `drains`: its slots come free one after the other, and stand idle until the last has. What a gang executes in
    comes free as a whole."""

    block: Claim
    until_us: int
    moves: int
    candidate: Candidate
    tenant: TenantId
    charge_us: int
    drains: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimDropped:
    """A block is no longer kept for a gang that has not begun there."""

    claim: Claim
    reason: str


class Claims:
    """All claims, and those of each class, in the order in which they were made."""

    __slots__ = ("_all", "_by_class")

    def __init__(self) -> None:
        self._all: dict[Kept, Claimed] = {}
        self._by_class: dict[ClassKey, dict[Kept, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, key: ClassKey) -> bool:
        return key in self._by_class

    def __getitem__(self, kept: Kept) -> Claimed:
        return self._all[kept]

    def get(self, kept: Kept) -> Claimed | None:
        """A claim, if it still stands."""
        return self._all.get(kept)

    def items(self) -> ItemsView[Kept, Claimed]:
        """All of them."""
        return self._all.items()

    def values(self) -> ValuesView[Claimed]:
        """All of them, whosever they are."""
        return self._all.values()

    def of(self, key: ClassKey) -> list[Kept]:
        """Those of a class."""
        return list(self._by_class.get(key, ()))

    def put(self, kept: Kept, claimed: Claimed) -> None:
        """A claim is made, or says something else from now on."""
        self._all[kept] = claimed
        self._by_class.setdefault(kept.key, {})[kept] = None

    def pop(self, kept: Kept) -> Claimed:
        """A claim ends."""
        own = self._by_class[kept.key]
        del own[kept]
        if not own:
            del self._by_class[kept.key]
        return self._all.pop(kept)
