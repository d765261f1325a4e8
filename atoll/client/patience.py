"""When a failed call is made again, and when a broken stream is taken up again.

Decides repeats only, as values: the two clients do the waiting. What may be repeated is what cannot double an effect.
"""

from __future__ import annotations

import random
from enum import Enum
from typing import Final

from atoll.client.calls import Position
from atoll.client.errors import ClientError, NotLeadingError, UnavailableError

# Commits take milliseconds; a restart of the orchestrator some seconds, and a call that may be repeated outlives it.
TIMEOUT_S: Final = 30.0
# A store of a million jobs is copied in a minute or two.
BACKUP_TIMEOUT_S: Final = 600.0
# A person waits for this long without wondering.
CONNECT_TIMEOUT_S: Final = 3.0
# Beyond the deadline of a unary call there is no sense in asking why no connection came about.
PROBE_S: Final = 0.5
FIRST_PAUSE_S: Final = 0.1
# As long as an orchestrator takes to restart; longer pauses only delay finding it again.
LONGEST_PAUSE_S: Final = 2.0
# Where several orchestrators are known, a takeover is what is waited for: about a second. After so many pauses it is something else.
_TAKEOVER_PAUSE_S: Final = 0.5
_TAKEOVER_PAUSES: Final = 12
# Before one is asked that was not asked yet.
_ELSEWHERE_PAUSE_S: Final = 0.05
# Jitter between a half and the whole of a pause: clients of one orchestrator do not come back at once.
_JITTER_FROM: Final = 0.5
# A stream that has found no orchestrator for so long says so. A restart with a large queue takes seconds, a failover too.
STREAM_PATIENCE_S: Final = 60.0

_CHANCE = random.Random()


class Turn(Enum):
    """Whom the next try asks."""

    SAME = "same"  # nobody else is known
    FRESH = "fresh"  # one that was not asked yet, in this round through all of them
    KNOWN = "known"  # one that was


class Patience:
    """Pauses between repeats of one call, until its deadline. Times are seconds of a monotonic clock."""

    def __init__(self, *, repeatable: bool, deadline_s: float, chance: random.Random = _CHANCE) -> None:
        self._repeatable = repeatable
        self._deadline_s = deadline_s
        self._chance = chance
        self._failures = 0

    def left_s(self, now_s: float) -> float:
        """Seconds until the deadline, at least a millisecond: gRPC takes no timeout of 0."""
        return max(self._deadline_s - now_s, 0.001)

    def pause_s(self, error: ClientError, now_s: float, turn: Turn = Turn.SAME) -> float:
        """Seconds to wait before the next try. Raises `error` when there is none: not repeatable, not transient, or no time left.

        What met one that stands by had no effect: it is repeatable, whatever it is.
        """
        if not (isinstance(error, UnavailableError) and (self._repeatable or isinstance(error, NotLeadingError))):
            raise error
        if turn is Turn.FRESH:
            pause_s = _ELSEWHERE_PAUSE_S * self._chance.uniform(_JITTER_FROM, 1.0)
        else:
            longest_s = _TAKEOVER_PAUSE_S if turn is Turn.KNOWN and self._failures < _TAKEOVER_PAUSES else LONGEST_PAUSE_S
            backoff_s = min(longest_s, FIRST_PAUSE_S * (1 << self._failures))
            self._failures = min(self._failures + 1, 16)
            pause_s = max(backoff_s, error.retry_after_ms / 1_000) * self._chance.uniform(_JITTER_FROM, 1.0)
            pause_s = max(pause_s, error.retry_after_ms / 1_000)
        if now_s + pause_s >= self._deadline_s:
            raise error
        return pause_s


class Resuming:
    """Where a stream stands: the position to take it up from, and how long it has been broken."""

    def __init__(self, *, after_seq: int = 0, patience_s: float = STREAM_PATIENCE_S, chance: random.Random = _CHANCE) -> None:
        self.after_seq = after_seq
        self._seen = after_seq
        self._patience_s = patience_s
        self._chance = chance
        self._patience: Patience | None = None

    def heard(self) -> None:
        """The stream is whole."""
        self._patience = None

    def advance(self, position: Position) -> None:
        """A message came: the stream is whole, and whatever was numbered before it has come."""
        self.heard()
        if position.seq != self._seen:
            self.after_seq = max(self.after_seq, self._seen)
            self._seen = position.seq
        if position.complete:
            self.after_seq = max(self.after_seq, position.seq)

    def pause_s(self, error: ClientError, now_s: float, turn: Turn = Turn.SAME) -> float:
        """Seconds to wait before the stream is opened again. Raises `error` when it is not transient or has lasted too long."""
        if self._patience is None:
            self._patience = Patience(repeatable=True, deadline_s=now_s + self._patience_s, chance=self._chance)
        return self._patience.pause_s(error, now_s, turn)
