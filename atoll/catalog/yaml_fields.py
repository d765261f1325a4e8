"""Typed readers over the keys of a YAML mapping; every mistake goes to Problems with its line and path.

Decides how a value of each type is written. A reader answers a substitute after noting a mistake, so one pass finds them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from atoll.catalog.figures import parse_figure, parse_whole, range_text
from atoll.catalog.problems import Problems, one_of
from atoll.catalog.yaml_nodes import Mapping, Node, Scalar, Sequence, is_empty, kind_of
from atoll.model.errors import FieldError
from atoll.model.ids import parse_name

# Stands for a text that could not be read: no legal name, so that nothing a person wrote can equal it. Later checks pass over it.
UNREADABLE: Final = "?"
LABEL_CHARS_MAX: Final = 63


class Fields:
    """The entries of one mapping. Call `finish` last: it notes keys that no reader asked for."""

    def __init__(self, node: Node, path: str, problems: Problems) -> None:
        self.path = path
        self.line = node.line
        self.problems = problems
        self._asked: dict[str, None] = {}
        self._entries: dict[str, tuple[int, Node]] = {}
        # A mistake that covers the whole mapping: no reader adds "missing" to it.
        self._broken = not isinstance(node, Mapping)
        if isinstance(node, Mapping):
            self._entries = node.entries
        else:
            problems.add(node.line, path or "file", kind_of(node), "a mapping of keys and values")

    def at(self, key: str) -> str:
        """Path of a key, as errors show it."""
        return f"{self.path}.{key}" if self.path else key

    def line_of(self, key: str) -> int:
        """Line of a key; of the mapping where the key is absent."""
        return self._entries[key][0] if key in self._entries else self.line

    def has(self, key: str) -> bool:
        """Whether the key stands there, with whatever value."""
        return key in self._entries

    def keys(self) -> tuple[str, ...]:
        """All keys that stand there, in order."""
        return tuple(self._entries)

    def wrong(self, key: str, value: object, expected: str) -> None:
        """Note a mistake at a key."""
        self.problems.add(self.line_of(key), self.at(key), value, expected)

    def name(self, key: str) -> str:
        """A legal name of Atoll's, required."""
        text = self._scalar(key, "a name", None)
        if text is None:
            return UNREADABLE
        try:
            return parse_name(self.at(key), text)
        except FieldError as error:
            self.problems.add_field(self.line_of(key), error)
            return UNREADABLE

    def label(self, key: str, default: str | None = None) -> str:
        """One printable line; required if there is no default, and then not empty."""
        expected = f"1 to {LABEL_CHARS_MAX} printable characters on one line"
        text = self._scalar(key, expected, default)
        if text is None:
            return UNREADABLE if default is None else default
        if len(text) > LABEL_CHARS_MAX or not text.isprintable() or (not text and default is None):
            self.wrong(key, text, expected)
            return UNREADABLE if default is None else default
        return text

    def word(self, key: str, words: Iterable[str], kind: str) -> str | None:
        """One of `words`, required; None after noting that it is none."""
        known = set(words)
        text = self._scalar(key, f"a known {kind}", None)
        if text is None or text in known:
            return text
        self.wrong(key, text, one_of(text, known, kind))
        return None

    def whole(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number."""
        return self._number(key, lambda text: parse_whole(text, low, high), f"a whole number from {low} to {high}", low, default)

    def figure(self, key: str, unit: int, low: int, high: int, default: int | None = None) -> int:
        """A number of `unit`s as whole base units; low and high in base units."""
        return self._number(key, lambda text: parse_figure(text, unit, low, high), range_text(unit, low, high), low, default)

    def flag(self, key: str, *, default: bool) -> bool:
        """true or false."""
        if key not in self._entries:
            self._asked.setdefault(key)
            return default
        text = self._scalar(key, "true or false", None)
        if text is None:
            return default
        if text not in {"true", "false"}:
            self.wrong(key, text, "true or false")
            return default
        return text == "true"

    def mapping(self, key: str) -> Fields | None:
        """The mapping below a key; None where the key is absent."""
        self._asked.setdefault(key)
        if key not in self._entries:
            return None
        return Fields(self._entries[key][1], self.at(key), self.problems)

    def listed(self, key: str, most: int) -> list[Fields]:
        """The mappings of a list below a key; empty where the key is absent."""
        self._asked.setdefault(key)
        if key not in self._entries:
            return []
        line, node = self._entries[key]
        if not isinstance(node, Sequence):
            self.problems.add(line, self.at(key), kind_of(node), "a list; each entry begins with '- '")
            return []
        if len(node.items) > most:
            self.problems.add(line, self.at(key), f"{len(node.items)} entries", f"at most {most} entries")
            return []
        return [Fields(item, f"{self.at(key)}[{index}]", self.problems) for index, item in enumerate(node.items)]

    def texts(self, key: str, most: int, expected: str) -> list[str]:
        """The scalars of a list below a key, or the one that stands there; empty where the key is absent."""
        self._asked[key] = None
        if key not in self._entries:
            return []
        line, node = self._entries[key]
        items = node.items if isinstance(node, Sequence) else (node,)
        found = [item.text for item in items if isinstance(item, Scalar) and not is_empty(item)]
        if not 1 <= len(found) == len(items) <= most:
            shown = f"{len(items)} entries" if len(found) == len(items) else kind_of(node)
            self.problems.add(line, self.at(key), shown, f"a list of 1 to {most}: {expected}")
            return []
        return found

    def text(self, key: str, expected: str, *, default: str) -> str:
        """Any text; whoever asks for it says what would be right. `default` where the key is absent, or was noted as wrong."""
        return self._scalar(key, expected, default) or default

    def text_or_none(self, key: str) -> str | None:
        """The text below a key if it is a scalar with a value; nothing is noted, and the key does not count as asked for."""
        node = self._entries[key][1] if key in self._entries else None
        return node.text if isinstance(node, Scalar) and not is_empty(node) else None

    def asked(self, key: str) -> None:
        """The key is legal, whoever read it."""
        self._asked.setdefault(key)

    def finish(self) -> None:
        """Note every key that nobody asked for."""
        for key, (line, node) in self._entries.items():
            if key not in self._asked:
                # The key is quoted by the error; a path that holds it must be fit to print, too.
                shown = key if key.isidentifier() and len(key) <= LABEL_CHARS_MAX else "key"
                self.problems.add_unknown(line, self.at(shown), key, self.path, kind_of(node), self._asked)

    def _number(self, key: str, read: Callable[[str], int | None], expected: str, substitute: int, default: int | None) -> int:
        if default is not None and key not in self._entries:
            self._asked.setdefault(key)
            return default
        text = self._scalar(key, expected, None)
        if text is None:
            return substitute
        found = read(text)
        if found is None:
            self.wrong(key, text, expected)
            return substitute
        return found

    def _scalar(self, key: str, expected: str, default: str | None) -> str | None:
        """Text of a key. None after a note, or where it is absent and has a default."""
        self._asked.setdefault(key)
        if key not in self._entries:
            if default is None and not self._broken:
                self.problems.add(self.line, self.at(key), "missing", expected)
            return None
        line, node = self._entries[key]
        if not isinstance(node, Scalar) or is_empty(node):
            self.problems.add(line, self.at(key), kind_of(node), expected)
            return None
        return node.text
