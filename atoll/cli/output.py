"""How answers are printed: tables for people, JSON, YAML and names for programs.

Decides the forms. `json` and `yaml` give the whole noun with the names of its fields, which are stable; `name` gives `kind/id`.
Texts from outside never reach a terminal with control characters in them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum, IntEnum, StrEnum
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")


class Form(StrEnum):
    """What `-o` takes."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


STYLES: Final = {
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "expired": "yellow",
    "running": "cyan",
    "placed": "blue",
    "connected": "green",
    "silent": "yellow",
    "lost": "red",
    "cordoned": "yellow",
    "draining": "yellow",
    "drained": "yellow",
    "warning": "yellow",
    "alarm": "bold red",
}
# A column that is cut still shows what it is about.
_CELL_CHARS_MAX: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Column(Generic[T]):
    """One column: its heading, what stands in it, and whether only `-o wide` shows it. `right`: figures."""

    title: str
    cell: Callable[[T], str]
    wide: bool = False
    right: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing(Generic[T]):
    """How one kind of noun is listed. `ref` is what follows `kind/`."""

    kind: str
    ref: Callable[[T], str]
    columns: Sequence[Column[T]]


def printable(text: str) -> str:
    """`text` on one line without control characters: it may come from anybody who may submit a job."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(text.split()))


def plain(value: object) -> Any:
    """A noun as dictionaries, lists and values, with its fields' names as keys."""
    match value:
        case IntEnum():  # an order: its figures are our own, its names what people and options say
            return value.name.lower()
        case Enum():
            return value.value
        case str() | int() | float() | None:
            return value
        case dict():
            return {str(plain(key)): plain(item) for key, item in value.items()}
        case tuple() if hasattr(value, "_asdict"):
            return {name: plain(item) for name, item in value._asdict().items()}
        case [*_] | set() | frozenset():
            return [plain(item) for item in value]
        case _ if is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        case _:
            return str(value)


def show_list(form: Form, listing: Listing[T], items: Iterable[T], *, empty: str = "") -> None:
    """Print any number of nouns. `empty` is said (on standard error) in place of a table without lines."""
    found = list(items)
    match form:
        case Form.JSON | Form.YAML:
            show_plain(form, [plain(item) for item in found])
        case Form.NAME:
            for item in found:
                say(f"{listing.kind}/{listing.ref(item)}")
        case Form.TABLE | Form.WIDE:
            if not found and empty:
                note(empty)
                return
            columns = [column for column in listing.columns if form is Form.WIDE or not column.wide]
            table([column.title for column in columns], [[column.cell(item) for column in columns] for item in found], _rights(columns))


def show_one(form: Form, listing: Listing[T], item: T) -> None:
    """Print one noun."""
    if form in {Form.JSON, Form.YAML}:
        show_plain(form, plain(item))
    else:
        show_list(form, listing, [item])


def show_plain(form: Form, value: object) -> None:
    """Print dictionaries and lists as JSON or YAML."""
    if form is Form.YAML:
        import yaml

        sys.stdout.write(yaml.safe_dump(value, sort_keys=False, allow_unicode=False, width=120))
    else:
        sys.stdout.write(json.dumps(value, indent=2) + "\n")


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], rights: frozenset[int] = frozenset(), *, indent: str = "") -> None:
    """Print lines in columns; words that name a state are coloured on a terminal."""
    from rich.cells import cell_len

    clean = [[printable(cell)[:_CELL_CHARS_MAX] or "-" for cell in row] for row in rows]
    widths = [max(cell_len(row[index]) for row in [titles, *clean]) for index in range(len(titles))]
    for number, row in enumerate([titles, *clean]):
        cells = []
        for index, cell in enumerate(row):
            gap = " " * (widths[index] - cell_len(cell))
            text = f"{gap}{cell}" if index in rights else f"{cell}{gap}"
            cells.append((text, "bold" if number == 0 else STYLES.get(cell.split(" ", 1)[0], "")))
        _styled(indent, cells)


def say(text: str) -> None:
    """One line of the answer, on standard output."""
    sys.stdout.write(f"{text}\n")


def note(text: str) -> None:
    """One line beside the answer, on standard error."""
    sys.stdout.flush()
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _styled(indent: str, cells: Sequence[tuple[str, str]]) -> None:
    if not sys.stdout.isatty():
        say((indent + "   ".join(text for text, _ in cells)).rstrip())
        return
    from rich.console import Console
    from rich.text import Text

    line = Text(indent)
    for position, (text, style) in enumerate(cells):
        line.append("   " if position else "")
        line.append(text, style=style)
    line.rstrip()
    Console(file=sys.stdout, highlight=False).print(line, soft_wrap=True)


def _rights(columns: Sequence[Column[T]]) -> frozenset[int]:
    return frozenset(index for index, column in enumerate(columns) if column.right)
