"""YAML text -> nodes that know their line, for the small YAML in which Atoll's files are written.

Decides which YAML is accepted: one document of mappings, sequences and scalars. Anchors, aliases and tags are refused,
because a file that a person reviews should say what it means (and an alias can make a page of text mean gigabytes).
Scalars stay text: `NO` is a region and not `false`, until a reader asks for a truth value. Built from the parser's
events, so that depth is bounded here and not by a stack.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import yaml

from atoll.catalog.problems import Problems, SourceErrors

# The reference fleet takes 40 KB; 10,000 sites with four pools each take 10 MB less their notes, and are applied in parts.
YAML_BYTES_MAX: Final = 4 * 1024 * 1024
# sites > site > pools > pool > node > figure are six.
_DEPTH_MAX: Final = 12
# Bounds the memory of a hostile text of the size above to some hundred MB.
_NODES_MAX: Final = 1_000_000
# All but what YAML 1.1 counts as printable. Looked for here, because libyaml tells its place in bytes and no line.
_UNPRINTABLE: Final = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# libyaml where it is built in (ten times faster), else the same in Python.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(slots=True)
class Scalar:
    """Text of one value. `plain` if it stands without quotes."""

    line: int
    text: str
    plain: bool


@dataclass(slots=True)
class Sequence:
    """Values in order."""

    line: int
    items: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Mapping:
    """Values by key, with the line of each key."""

    line: int
    entries: dict[str, tuple[int, Node]] = field(default_factory=dict)


Node: TypeAlias = Scalar | Sequence | Mapping


def kind_of(node: Node) -> str:
    """What a person calls this node."""
    match node:
        case Mapping():
            return "a mapping"
        case Sequence():
            return "a list"
        case Scalar():
            return "nothing" if is_empty(node) else node.text


def is_empty(node: Node) -> bool:
    """Whether nothing stands where a value should."""
    return isinstance(node, Scalar) and node.plain and node.text in {"", "~", "null", "Null", "NULL"}


def parse_yaml(text: str, problems: Problems) -> Node:
    """The one document of `text`. Duplicate keys are noted in `problems`; what makes the rest unreadable raises SourceErrors."""
    unprintable = _UNPRINTABLE.search(text)
    if unprintable:
        line = text.count("\n", 0, unprintable.start()) + 1
        raise problems.give_up(line, "character", unprintable.group(), "printable text; YAML allows no control characters")
    size_bytes = len(text.encode())
    if size_bytes > YAML_BYTES_MAX:
        raise problems.give_up(1, "file", f"{size_bytes} bytes", f"at most {YAML_BYTES_MAX} bytes")
    builder = _Builder(problems, len(text.splitlines()))
    try:
        for event in yaml.parse(text, Loader=_LOADER):  # type: ignore[no-untyped-call, unused-ignore]
            builder.take(event)
    except yaml.reader.ReaderError as error:
        raise problems.give_up(1, "character", error.character, "printable text") from None
    except yaml.MarkedYAMLError as error:
        raise _malformed(problems, text, error) from None
    if builder.root is None or is_empty(builder.root):
        raise problems.give_up(1, "file", "empty", "keys with values, the first of them 'version: 1'")
    return builder.root


def _malformed(problems: Problems, text: str, error: yaml.MarkedYAMLError) -> SourceErrors:
    mark = error.problem_mark or error.context_mark
    context = f" ({error.context}, which begins in line {error.context_mark.line + 1})" if error.context and error.context_mark else ""
    # The end of a half-written file lies behind its last line.
    line = min(mark.line + 1, len(text.splitlines())) if mark else 0
    if error.problem and "nesting" in error.problem:
        # Newer libyaml has a bound of its own and meets it while it reads ahead, before the first of these levels gets here.
        return problems.give_up(line, "depth", f"more than {_DEPTH_MAX}", f"at most {_DEPTH_MAX} levels")
    return problems.give_up(line, "YAML", error.problem or "unreadable", f"well-formed YAML{context}")


class _Builder:
    """Puts events together. A key waits in `_keys` until its value is there."""

    def __init__(self, problems: Problems, last_line: int) -> None:
        self.root: Node | None = None
        self._problems = problems
        # What is missing at the end of a file is said to stand behind its last line.
        self._last_line = last_line
        self._open: list[Mapping | Sequence] = []
        self._keys: list[tuple[int, str] | None] = []
        self._nodes = 0
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        line = min(event.start_mark.line + 1, self._last_line) if event.start_mark else 0
        match event:
            case yaml.AliasEvent():
                raise self._problems.give_up(line, "alias", f"*{event.anchor}", "the value itself; aliases are not accepted")
            case yaml.ScalarEvent():
                self._check_plain_yaml(event, line)
                # None, or empty from libyaml where nothing is written at all.
                self._add(Scalar(line, event.value, not event.style))
            case yaml.MappingStartEvent():
                self._check_plain_yaml(event, line)
                self._begin(Mapping(line))
            case yaml.SequenceStartEvent():
                self._check_plain_yaml(event, line)
                self._begin(Sequence(line))
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._open.pop()
                self._keys.pop()
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise self._problems.give_up(line, "document", "---", "one document in a file")
            case _:
                # Begin and end of the stream, end of the document: they hold nothing.
                pass

    def _check_plain_yaml(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, line: int) -> None:
        if event.anchor is not None:
            raise self._problems.give_up(line, "anchor", f"&{event.anchor}", "the value alone; anchors are not accepted")
        if event.tag is not None:
            raise self._problems.give_up(line, "tag", event.tag, "the value alone; tags are not accepted")
        self._nodes += 1
        if self._nodes > _NODES_MAX:
            raise self._problems.give_up(line, "file", f"more than {_NODES_MAX} values", f"at most {_NODES_MAX} values")

    def _begin(self, node: Mapping | Sequence) -> None:
        if len(self._open) >= _DEPTH_MAX:
            raise self._problems.give_up(node.line, "depth", f"more than {_DEPTH_MAX}", f"at most {_DEPTH_MAX} levels")
        self._add(node)
        self._open.append(node)
        self._keys.append(None)

    def _add(self, node: Node) -> None:
        if not self._open:
            self.root = node
            return
        parent = self._open[-1]
        if isinstance(parent, Sequence):
            parent.items.append(node)
            return
        key = self._keys[-1]
        if key is None:
            if not isinstance(node, Scalar):
                raise self._problems.give_up(node.line, "key", kind_of(node), "a word as key")
            self._keys[-1] = (node.line, node.text)
            return
        self._keys[-1] = None
        line, name = key
        if name in parent.entries:
            before = parent.entries[name][0]
            self._problems.add(line, "key", name, f"each key once; {name[:40]!r} stands in line {before} already")
            return
        parent.entries[name] = (line, node)
