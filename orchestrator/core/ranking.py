"""Things in the order of a key that only rises while they are ranked: a heap that corrects itself at its top.

Decides order. Must not know what is ranked. A key that rose is noticed when its entry reaches the top, so a change that touches ten
thousand rankings costs nothing until somebody asks one of them. Whose key fell is ranked anew (`offer`). What is offered enters the heap
only when somebody asks who is first of several: most come and go alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")
Key = tuple[int | str, ...]

# The heap is rebuilt when it holds this many times more entries than things: half of the work of a rebuild was then caused by stale ones.
_STALE_FACTOR: Final = 2
_STALE_SPARE: Final = 64


class Ranking(Generic[Item]):
    """Hashable things by `key_of`, the least first. Keys of different things differ, so that the order never depends on history."""

    __slots__ = ("_heap", "_key_of", "_next", "_offered", "_tokens")

    def __init__(self, key_of: Callable[[Item], Key]) -> None:
        self._key_of = key_of
        self._heap: list[tuple[Key, int, Item]] = []
        self._tokens: dict[Item, int] = {}
        self._offered: dict[Item, None] = {}  # those of them that are to enter the heap
        self._next = 0

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, item: Item) -> bool:
        return item in self._tokens

    def __iter__(self) -> Iterator[Item]:
        return iter(self._tokens)

    def offer(self, item: Item) -> None:
        """Rank this thing by its present key."""
        self._tokens[item] = 0
        self._offered[item] = None

    def withdraw(self, item: Item) -> None:
        """Rank it no longer."""
        self._tokens.pop(item, None)
        self._offered.pop(item, None)

    def first(self) -> Item | None:
        """The thing with the least key; None if there is none."""
        tokens = self._tokens
        if len(tokens) <= 1:
            return next(iter(tokens), None)
        if self._offered:
            self._enter()
        heap, key_of = self._heap, self._key_of
        while heap:
            key, token, item = heap[0]
            if tokens.get(item) != token:
                heappop(heap)
                continue
            key_now = key_of(item)
            if key_now == key:
                return item
            heapreplace(heap, (key_now, token, item))
        return None

    def _enter(self) -> None:
        """What was offered goes into the heap."""
        heap, tokens, key_of = self._heap, self._tokens, self._key_of
        for item in self._offered:
            self._next += 1
            tokens[item] = self._next
            heappush(heap, (key_of(item), self._next, item))
        self._offered.clear()
        if len(heap) > _STALE_FACTOR * len(tokens) + _STALE_SPARE:
            self._heap = [entry for entry in heap if tokens.get(entry[2]) == entry[1]]
            heapify(self._heap)

    def walk(self) -> Iterator[tuple[Key, Item]]:
        """All things in order, with their keys, each found when asked for. Nothing may be ranked meanwhile."""
        if self._offered:
            self._enter()
        heap = self._heap
        # Entries of the heap by their index, and things whose key turned out to have risen (index -1).
        frontier: list[tuple[Key, int, int]] = [(heap[0][0], heap[0][1], 0)] if heap else []
        risen: dict[int, Item] = {}
        while frontier:
            key, token, index = heappop(frontier)
            if index < 0:
                yield key, risen[token]
                continue
            for child in (2 * index + 1, 2 * index + 2):
                if child < len(heap):
                    heappush(frontier, (heap[child][0], heap[child][1], child))
            item = heap[index][2]
            if self._tokens.get(item) != token:
                continue
            key_now = self._key_of(item)
            if key_now == key:
                yield key, item
            else:
                risen[token] = item
                heappush(frontier, (key_now, token, -1))
