"""What a trace says about itself: where it is from, what its licence permits, and what in it was made up.

Decides how that is written: one JSON object, which is the first line of a JSONL file, the first line after "# " of a CSV file, and the
value of the key `atoll_trace` in a Parquet file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from atoll.model.errors import FieldError

KEY: Final = "atoll_trace"
VERSION: Final = 1
# A page of text. What says more is no header.
HEADER_CHARS_MAX: Final = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceMeta:
    """Empty texts: not stated. `synthesised` names what no record says and was drawn instead; `settings` what it was made with."""

    source: str = ""
    licence: str = ""
    synthesised: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line."""
        said = {
            KEY: VERSION,
            "source": self.source,
            "licence": self.licence,
            "synthesised": list(self.synthesised),
            "settings": dict(self.settings),
        }
        return json.dumps(said)


def parse_meta(text: str) -> TraceMeta | None:
    """What a header says; None when the text is no header. FieldError for one that cannot be read."""
    if KEY not in text:
        return None
    if len(text) > HEADER_CHARS_MAX:
        raise FieldError(KEY, f"{len(text)} characters", f"a header of at most {HEADER_CHARS_MAX} characters")
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        raise FieldError(KEY, text, "a header that is one JSON object") from None
    if not isinstance(said, dict) or KEY not in said:
        return None
    if said[KEY] != VERSION:
        raise FieldError(KEY, said[KEY], f"{VERSION}, the version of the format that is read here")
    synthesised, settings = said.get("synthesised", []), said.get("settings", {})
    if not isinstance(synthesised, list) or not isinstance(settings, dict):
        raise FieldError(KEY, text, "a header whose synthesised is a list and whose settings are an object")
    return TraceMeta(
        source=str(said.get("source", "")),
        licence=str(said.get("licence", "")),
        synthesised=tuple(map(str, synthesised)),
        settings={str(name): str(value) for name, value in settings.items()},
    )
