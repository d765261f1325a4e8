"""What can go wrong between a model folder and a picture, each with the failure kind that an attempt reports.

Decides the kinds only; whether to retry is the retry table's matter. A wrong request is a `FieldError` (kind
`bad_input`).
"""

from __future__ import annotations

from atoll.model.attempt import Failure, FailureKind
from atoll.model.errors import AtollError, FieldError, quoted
from atoll.model.limits import REASON_CHARS_MAX


class EngineError(AtollError):
    """Something failed for the reason `kind`."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class BadWeightsError(EngineError):
    """A model folder is not what its manifest says, or holds what is never loaded. Names the file and what would be
    right."""

    def __init__(self, file: str, problem: str, expected: str) -> None:
        super().__init__(FailureKind.BAD_WEIGHTS, f"{file}: {problem}: expected {expected}")
        self.file = file
        self.problem = problem
        self.expected = expected


class GenerationStoppedError(AtollError):
    """The generation was told to stop, after `steps_done` steps; the pipeline remains usable."""

    def __init__(self, steps_done: int) -> None:
        super().__init__(f"stopped after step {steps_done}")
        self.steps_done = steps_done


def failure_of(error: Exception, otherwise: FailureKind) -> Failure:
    """`error` as the one line that a report carries; `otherwise` is the kind of an error that is not Atoll's own."""
    message = str(error)
    match error:
        case EngineError():
            kind = error.kind
        case FieldError():
            kind = FailureKind.BAD_INPUT
        case _:
            kind = otherwise
            message = f"{type(error).__name__}: {message}"
    line = " ".join(message.split())
    if len(line) > REASON_CHARS_MAX:
        line = line[: REASON_CHARS_MAX - 3] + "..."
    return Failure(kind=kind, message=line or quoted(error))
