"""Exit codes: what a script may rely on.

Decides which code an error ends with. Servers (`atoll orchestrator`, `atoll agent`, `atoll rehearse`) end with codes of their own.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from atoll.model.errors import AtollError, ConflictError, FieldError, LimitError, NotFoundError, SourceError, StateError


class Exit(IntEnum):
    """How a command ended."""

    OK = 0
    FAILED = 1  # the thing asked for: a job that failed, was cancelled or expired; bytes that are wrong; our own bug
    USAGE = 2  # a command, option or input that is wrong
    NOT_FOUND = 3
    UNAVAILABLE = 4  # no orchestrator answers, or it asks to come back
    REFUSED = 5  # no credential, one that does not allow this, or a quota
    CONFLICT = 6  # exists with other content, or is in a state that does not allow this
    TIMEOUT = 7
    UNDECIDED = 8  # no answer yet: too little was measured to say yes or no
    INTERRUPTED = 130


HELP: Final = (
    "Exit codes: 0 done; 1 what was asked for failed (a job, a transfer); 2 wrong usage or input; 3 no such thing; "
    "4 no orchestrator answers; 5 refused (credential or quota); 6 conflict or wrong state; 7 took too long; 8 too little is known to say; "
    "130 interrupted."
)


class CliError(AtollError):
    """An error of the command line itself, with the code it ends with, what to do about it, and `more` of the same kind."""

    def __init__(self, message: str, *, code: int = Exit.FAILED, hint: str = "", more: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint
        self.more = more


def code_of(error: AtollError) -> int:
    """The exit code of an error."""
    if isinstance(error, CliError):
        return error.code
    if isinstance(error, FieldError | SourceError):
        return Exit.USAGE
    if isinstance(error, NotFoundError):
        return Exit.NOT_FOUND
    if isinstance(error, ConflictError | StateError):
        return Exit.CONFLICT
    if isinstance(error, LimitError):
        return Exit.REFUSED
    return _client_code(error)


def _client_code(error: AtollError) -> int:
    """As above, for what the SDK raises; it is loaded already when it has raised."""
    from atoll.client import errors

    match error:
        case errors.InputError() | errors.SettingsError() | errors.UnsupportedError():
            return Exit.USAGE
        case errors.NotFoundError():
            return Exit.NOT_FOUND
        case errors.UnavailableError():
            return Exit.UNAVAILABLE
        case errors.AuthError() | errors.LimitError():
            return Exit.REFUSED
        case errors.ConflictError() | errors.StateError():
            return Exit.CONFLICT
        case errors.DeadlineError():
            return Exit.TIMEOUT
        case _:
            return Exit.FAILED


def hint_of(error: AtollError) -> str:
    """What a person may try next; "" when the message says it all."""
    if isinstance(error, CliError):
        return error.hint
    from atoll.client import errors

    match error:
        case errors.InternalError(reference=reference) if reference:
            return f"the orchestrator's log has the cause under reference {reference}"
        case errors.UnavailableError() if errors.SAYS_NOTHING in str(error):
            return "an orchestrator that is starting answers in a moment, the first time after some 10 s: try again; it logs 'serving' then"
        case errors.UnavailableError() if "no orchestrator" in str(error):
            return "start one with 'atoll up', or name another with --address HOST:PORT or ATOLL_ADDRESS"
        case errors.ForbiddenError():
            return ""
        case errors.AuthError():
            return "give a token with --token, ATOLL_TOKEN or the configuration file"
        case errors.ClientError(retry_after_ms=pause) if pause:
            return f"try again in {pause / 1000:.1f} s"
        case errors.UnsupportedError():
            return "the orchestrator is of another version than this command line (see 'atoll version')"
        case _:
            return ""
