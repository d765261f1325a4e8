"""Which of several orchestrators is asked: one leads, the others stand by, and any may be gone.

Decides where to ask next, after each answer that was none. Agents and clients do the asking, and the waiting. Must not know what is asked.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

from atoll.model.address import Address, parse_address
from atoll.model.errors import FieldError

# Trailing metadata of a refusal by one that stands by: where the leader is, or that nobody leads at this moment.
LEADER_KEY: Final = "atoll-leader"
# Of one that answers, but has trouble, so many refusals in a row are put up with: it may be cut off from its store while another leads.
_TROUBLES_MAX: Final = 2


class Whereabouts:
    """The addresses of one fleet's orchestrators. `current` is the one to ask.

    What is said of a try that went wrong is answered by whether the next one was not asked yet, in this round through all of them.
    """

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = tuple(addresses)
        self._next = 0
        self._asked: set[Address] = set()
        self._troubles = 0
        self.current = self._addresses[0]

    @property
    def several(self) -> bool:
        """Whether there is anybody else to ask."""
        return len(self._addresses) > 1 or self.current != self._addresses[0]

    @property
    def hinted(self) -> bool:
        """Whether the one to ask is known by another's word only."""
        return self.current not in self._addresses

    def found(self, address: Address) -> None:
        """This one leads."""
        self.current = address
        self.answered()

    def answered(self) -> None:
        """The one asked does its work."""
        self._asked.clear()
        self._troubles = 0

    def unanswered(self) -> bool:
        """The one asked does not answer."""
        return self._turn_to(self._following())

    def troubled(self) -> bool:
        """The one asked answers that it cannot now."""
        self._troubles += 1
        return self._turn_to(self._following()) if self._troubles >= _TROUBLES_MAX else False

    def told(self, leader: str) -> bool:
        """The one asked stands by, and says who leads."""
        try:
            named = parse_address(LEADER_KEY, leader) if ":" in leader else None
        except FieldError:
            named = None
        # An address that is good on the other's machine only would lead to whatever listens there on this one.
        if named is not None and _is_loopback(named.host) and not _is_loopback(self.current.host):
            named = None
        return self._turn_to(named if named is not None and named != self.current else self._following())

    def _following(self) -> Address:
        if self.current in self._addresses:
            self._next = (self._addresses.index(self.current) + 1) % len(self._addresses)
        return self._addresses[self._next]

    def _turn_to(self, address: Address) -> bool:
        self._asked.add(self.current)
        self._troubles = 0
        self.current = address
        if address not in self._asked:
            return True
        self._asked.clear()
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
