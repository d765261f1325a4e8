"""What any figure or text from outside must satisfy before it becomes part of a noun.

Decides lengths, ranges and characters. Must not know which noun a value belongs to; `field` names it in the error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from atoll.model.errors import FieldError
from atoll.model.ids import parse_name

M = TypeVar("M")
N = TypeVar("N")

# Sums of three of these still fit int64, so no arithmetic on a checked figure can overflow where numpy computes it.
COUNT_MAX: Final = 2**61
# Instants and durations: 3,000 years. Larger is a mistake of units.
TIME_US_MAX: Final = 10**17
TIME_MS_MAX: Final = TIME_US_MAX // 1_000
INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
# Titles, regions, versions: one line on a screen.
LABEL_CHARS: Final = 200
# As long as web servers take an address.
URL_CHARS: Final = 2_048
# One line that a person can act on; a stack trace belongs in the log.
MESSAGE_CHARS: Final = 2_000
LOG_LINE_CHARS: Final = 4_000

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
# One component of a path on any file system and in any URL.
_FILE_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+=@-]{0,126}[A-Za-z0-9])?\Z")
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}/[a-z0-9][a-z0-9.+-]{0,63}\Z")
_URL = re.compile(r"[\x21-\x7e]*\Z")
# Stands where a character was that no terminal should get.
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"

FILE_NAME_RULE: Final = "a file name: 1 to 128 of letters, digits and '._+=@-', beginning and ending with a letter or digit, without '..'"


def number(field: str, value: int, low: int, high: int) -> int:
    """`value` if in low..high."""
    if low <= value <= high:
        return value
    raise FieldError(field, value, f"a whole number from {low} to {high}")


def instant(field: str, value_us: int) -> int:
    """`value_us` if it can be an instant of fleet time or a duration; 0: none."""
    if 0 <= value_us <= TIME_US_MAX:
        return value_us
    raise FieldError(field, value_us, f"microseconds from 0 to {TIME_US_MAX}")


def label(field: str, value: str, most: int = LABEL_CHARS) -> str:
    """`value` if it is one printable line of at most `most` characters, perhaps empty."""
    if len(value) <= most and value.isprintable():
        return value
    raise FieldError(field, value, f"at most {most} printable characters on one line")


def line(value: str, most: int = MESSAGE_CHARS) -> str:
    """`value` made printable and cut to length: for messages that are shown to people and decide nothing, so none is worth a refusal."""
    if len(value) > most:
        value = value[: most - 3] + "..."
    if value.isprintable():
        return value
    flat = " ".join(value.split())
    return "".join(char if char.isprintable() else _REPLACEMENT for char in flat)


def digest(field: str, value: str) -> str:
    """`value` if it reads "sha256:<64 hex digits>"."""
    if _DIGEST.match(value):
        return value
    raise FieldError(field, value, "'sha256:' and 64 lower-case hex digits")


def optional_digest(field: str, value: str) -> str:
    """As `digest`, or empty."""
    return digest(field, value) if value else ""


def file_name(field: str, value: str) -> str:
    """`value` if it is one safe component of a path."""
    if _FILE_NAME.match(value) and ".." not in value:
        return value
    raise FieldError(field, value, FILE_NAME_RULE)


def relative_path(field: str, value: str) -> str:
    """`value` if it is empty or safe components joined by '/'."""
    if len(value) > URL_CHARS:
        raise FieldError(field, value, f"at most {URL_CHARS} characters")
    if value:
        for part in value.split("/"):
            if not _FILE_NAME.match(part) or ".." in part:
                raise FieldError(field, value, f"a relative path; each part of it {FILE_NAME_RULE}")
    return value


def media_type(field: str, value: str) -> str:
    """`value` if it reads like "image/png"."""
    if _MEDIA_TYPE.match(value):
        return value
    raise FieldError(field, value, "a media type such as 'image/png'")


def url(field: str, value: str) -> str:
    """`value` if it is empty or can be an address; whether its scheme is allowed is said by who opens it."""
    if len(value) > URL_CHARS or not _URL.match(value) or ".." in value.split("/"):
        raise FieldError(field, value, f"at most {URL_CHARS} printable ASCII characters without spaces and '..' parts")
    return value


def optional_name(field: str, value: str) -> str:
    """`value` if it is a legal name of Atoll's, or empty."""
    return parse_name(field, value) if value else ""


def bounded(field: str, items: Sequence[object], most: int) -> None:
    """FieldError when there are more than `most`."""
    if len(items) > most:
        raise FieldError(field, f"{len(items)} entries", f"at most {most}")


def names(field: str, items: Sequence[str], most: int) -> tuple[str, ...]:
    """All of `items` if each is a legal name and they are at most `most`."""
    bounded(field, items, most)
    return tuple([parse_name(field, item) for item in items])


def labels(field: str, items: Sequence[str], most: int) -> tuple[str, ...]:
    """All of `items` if each is one printable line and they are at most `most`."""
    bounded(field, items, most)
    return tuple([label(field, item) for item in items])


def inside(prefix: str, error: FieldError) -> FieldError:
    """The same error, seen from the message around it."""
    return FieldError(f"{prefix}.{error.field}", error.value, error.expected)


def part(field: str, message: M, parse: Callable[[M], N]) -> N:
    """A message within a message; an error inside names the whole way to it."""
    try:
        return parse(message)
    except FieldError as error:
        raise inside(field, error) from None


def each(field: str, items: Sequence[M], most: int, parse: Callable[[M], N]) -> tuple[N, ...]:
    """Every message of a list of at most `most`; an error inside names the entry."""
    bounded(field, items, most)
    parsed: list[N] = []
    try:
        for item in items:
            parsed.append(parse(item))  # noqa: PERF401 - its length tells which entry is wrong
    except FieldError as error:
        raise inside(f"{field}[{len(parsed)}]", error) from None
    return tuple(parsed)
