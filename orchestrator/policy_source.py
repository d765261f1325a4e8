"""Where a policy comes from: a registered name, or a file.

Decides which of the two a word means: a name that Atoll knows is that policy, anything else a file. Reads that file and nothing else.
"""

from __future__ import annotations

from pathlib import Path

from atoll.catalog.decoding import NotTextError, decode, refuse_packed
from atoll.catalog.problems import one_of
from atoll.model.errors import FieldError
from orchestrator.core.placement.policies import POLICIES
from orchestrator.core.placement.policy import Policy
from orchestrator.core.placement.policy_file import FILE_BYTES_MAX, parse_policy


def load_policy(where: str) -> Policy:
    """The policy of this name, or of this file. FieldError where there is neither, SourceErrors with every mistake of the file."""
    if where in POLICIES:
        return POLICIES[where]
    return parse_policy(_text(where), where)


def _text(where: str) -> str:
    try:
        with Path(where).expanduser().open("rb") as opened:
            content = opened.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise FieldError("policy", where, f"a file that exists, or {one_of(where, POLICIES, 'policy')}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        raise FieldError("policy", where, f"a file that can be read ({getattr(error, 'strerror', None) or error})") from None
    try:
        refuse_packed(content)
        if len(content) > FILE_BYTES_MAX:
            raise FieldError("policy", where, f"a file of at most {FILE_BYTES_MAX} bytes")
        return decode(content)
    except NotTextError as error:
        raise FieldError("policy", where, str(error)) from None
