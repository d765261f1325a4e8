"""All mistakes of one text at once, each with its line, so that a person repairs a file in one go.

Decides how many are worth showing, and what a misspelt word probably meant. Must not know what the text describes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from atoll.catalog.likeness import alike
from atoll.model.errors import AtollError, FieldError, SourceError, UnknownKeyError

# A screen of errors; beyond it one mistake (wrong indentation, another format) has usually caused the rest.
PROBLEMS_MAX: Final = 20
# The variants of one GPU are this many.
_MEANT_WORDS: Final = 3
# So many known words are listed when none resembles the wrong one: all terms of a cost, which are the most of anything short.
_LISTED_WORDS: Final = 17


class SourceErrors(AtollError):  # noqa: N818 - several SourceError in one
    """What is wrong in a file: 1 to PROBLEMS_MAX `errors` in order of line."""

    def __init__(self, errors: Iterable[SourceError]) -> None:
        self.errors = tuple(sorted(errors, key=lambda error: error.line))
        more = f"\n(only the first {PROBLEMS_MAX} are shown)" if len(self.errors) >= PROBLEMS_MAX else ""
        super().__init__("\n".join(str(error) for error in self.errors) + more)


class Problems:
    """Collects the mistakes of one text while its reading goes on with substitutes."""

    def __init__(self, file_name: str) -> None:
        self.file_name = file_name
        self._found: list[SourceError] = []

    def add(self, line: int, field: str, value: object, expected: str) -> None:
        """Note one mistake; raises SourceErrors when there are as many as anybody reads."""
        self._note(SourceError(self.file_name, line, field, value, expected))

    def _note(self, error: SourceError) -> None:
        self._found.append(error)
        if len(self._found) >= PROBLEMS_MAX:
            raise SourceErrors(self._found)

    def add_unknown(self, line: int, path: str, key: str, within: str, value: str, known: Iterable[str]) -> None:
        """Note a key that means nothing where it stands; `known` are those that do."""
        words = tuple(known)
        close = alike(key, words, most=_MEANT_WORDS)
        listed = ", ".join(words[:_LISTED_WORDS]) + (", ..." if len(words) > _LISTED_WORDS else "")
        expected = f"expected one of {listed}"
        if close:
            # A list of many after each mistake would hide what it is about: whoever shows the mistakes has them all in `known`.
            rest = f" There are {listed}" if len(words) <= _LISTED_WORDS else ""
            expected = f"did you mean {' or '.join(map(repr, close))}?{rest}"
        self._note(UnknownKeyError(self.file_name, line, path, key, within, value, expected, words))

    def add_field(self, line: int, error: FieldError) -> None:
        """Note what a check of a value said."""
        self.add(line, error.field, error.value, error.expected)

    def give_up(self, line: int, field: str, value: object, expected: str) -> SourceErrors:
        """The error to raise when nothing after this mistake can be understood."""
        error = SourceError(self.file_name, line, field, value, expected)
        return SourceErrors([*self._found, error])

    def check(self) -> None:
        """Raises SourceErrors if there was any mistake."""
        if self._found:
            raise SourceErrors(self._found)


def one_of(word: str, known: Iterable[str], kind: str) -> str:
    """What would be right instead of `word`: the most similar of `known`, else a few of them."""
    words = sorted(known)
    close = alike(word, words, most=_MEANT_WORDS)
    if close:
        return f"a known {kind}; did you mean {' or '.join(map(repr, close))}?"
    shown = ", ".join(words[:_LISTED_WORDS]) + (", ..." if len(words) > _LISTED_WORDS else "")
    return f"a known {kind}: one of {shown}" if words else f"a known {kind}, of which there is none"
