"""Typed errors that name the field, the value and what would be right.

Decides how an error reads. Must not know gRPC or HTTP: `orchestrator.api` maps these to status codes.
"""

from __future__ import annotations

# A value is quoted in an error so that a person recognises it; more than this many characters only hide the message.
_QUOTED_CHARS = 80
# Of a longer one so much of its end is kept: what tells one long path from another is the name in it.
_QUOTED_END_CHARS = 30


def quoted(value: object) -> str:
    """`value` as one short printable line, whatever it holds (newlines, NUL, a megabyte of text)."""
    text = repr(value)
    if len(text) > _QUOTED_CHARS:
        start, end = text[: _QUOTED_CHARS - _QUOTED_END_CHARS], text[-_QUOTED_END_CHARS:]
        text = f"{start}...{end} ({len(text)} characters)"
    return text


class AtollError(Exception):
    """Root of every error that Atoll raises on purpose."""


class FieldError(AtollError):
    """An input is wrong. `field` is a dotted path, `expected` says what would be right."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(f"{field} is {quoted(value)}: expected {expected}")
        self.field = field
        self.value = value
        self.expected = expected


class SourceError(AtollError):
    """A mistake in a file: names file, line (from 1; 0 where a file has no such line), field, value and the remedy."""

    def __init__(self, file: str, line: int, field: str, value: object, expected: str) -> None:
        super().__init__(f"{file}:{line}: {field} is {quoted(value)}: expected {expected}")
        self.file = file
        self.line = line
        self.field = field
        self.value = value
        self.expected = expected


class UnknownKeyError(SourceError):
    """A key of a file that means nothing there. `path` is that of the key, `within` that of what it stands in ("": the whole file), `value`
    what stands there, `known` all that could."""

    def __init__(self, file: str, line: int, path: str, key: str, within: str, value: str, expected: str, known: tuple[str, ...]) -> None:
        super().__init__(file, line, path, key, expected)
        where = f" in {within}" if within else ""
        self.args = (f"{file}:{line}: unknown key {quoted(key)}{where}, whose value is {quoted(value)}: {expected}",)
        self.within = within
        self.known = known


class NotFoundError(AtollError):
    """There is no such thing, or it is not the caller's: one text for both. `hint`: what may have been meant."""

    def __init__(self, kind: str, name: str, hint: str = "") -> None:
        super().__init__(f"no {kind} {quoted(name)}{f'; {hint}' if hint else ''}")
        self.kind = kind
        self.name = name


class ConflictError(AtollError):
    """The thing exists already with other content (same idempotency key, other payload; a site of that name)."""


class StateError(AtollError):
    """The thing is not in a state that allows this (a stale attempt, an illegal transition, removing a busy site)."""


class LimitError(AtollError):
    """A bound was reached. `retry_after_ms` says when another try makes sense (0: not by waiting)."""

    def __init__(self, message: str, *, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms
