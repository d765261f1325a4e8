"""What an agent keeps across its own restarts: the outbox, the fleet it belongs to, its credential.

Decides when a record counts as kept. One folder per site, for its owner only; two agents never share one. A journal in memory is for
twins, which lose everything with their process by choice.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol, assert_never

import structlog
from google.protobuf.message import DecodeError

from agents.core.outputs import AgentRecord, IdentityChanged, OutboxAppended, OutboxTrimmed
from atoll.model.errors import AtollError, FieldError
from atoll.model.ids import EventSeq, FleetId, SiteId, Term
from atoll.model.report import AttemptEvent
from atoll.v1 import site_service_pb2 as pb
from atoll.wire.reports import attempt_event_from_proto, attempt_event_to_proto

_log = structlog.get_logger(__name__)

_FILE: Final = "agent.sqlite"
_LOCK: Final = "agent.lock"
_FORMAT: Final = "1"
# A full disk is usually freed by somebody within minutes; until then nothing is performed and nothing lost.
_RETRY_S: Final = 1.0


class JournalError(AtollError):
    """The state folder cannot be used; names the folder and the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What an earlier life left."""

    fleet_id: FleetId = FleetId("")
    term: Term = Term(0)
    credential: str = ""
    outbox: tuple[AttemptEvent, ...] = ()
    next_event_seq: EventSeq = EventSeq(1)


class Journal(Protocol):
    """Keeps records. All methods are called on one event loop."""

    def load(self) -> Kept:
        """What was kept. Once, before anything else. Raises JournalError."""

    def begin(self, records: tuple[AgentRecord, ...]) -> asyncio.Future[None] | None:
        """Keep records; None: they are kept already, else a future of that. One at a time."""

    async def keep_credential(self, credential: str) -> None:
        """Keep what the orchestrator issued; returns once it is kept."""

    async def close(self) -> None:
        """Let go of the folder."""


class MemoryJournal:
    """Keeps nothing beyond the process."""

    def load(self) -> Kept:
        """Nothing: every life is the first."""
        return Kept()

    def begin(self, records: tuple[AgentRecord, ...]) -> asyncio.Future[None] | None:
        """Kept at once, by the core itself."""
        del records
        return None

    async def keep_credential(self, credential: str) -> None:
        """The session holds it while the process lives."""
        del credential

    async def close(self) -> None:
        """Nothing to let go of."""


class DiskJournal:
    """SQLite in a folder of the site's own: WAL, synchronous=FULL, written on one thread."""

    def __init__(self, folder: Path, site_id: SiteId) -> None:
        """Raises JournalError when the folder cannot be written, is another site's, or another agent's just now."""
        self._folder = folder
        self._site_id = site_id
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        with ExitStack() as undo:
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._lock = undo.enter_context(_lock(folder))
                self._db = undo.enter_context(closing(_open(folder / _FILE)))
                self._claim()
            except (OSError, sqlite3.Error) as error:
                raise JournalError(f"state folder {folder} cannot be used: {error}") from error
            undo.pop_all()  # all is well: `close` lets go of it

    def _claim(self) -> None:
        self._db.executescript(
            "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
            "CREATE TABLE IF NOT EXISTS outbox (seq INTEGER PRIMARY KEY, event BLOB NOT NULL);"
        )
        facts = self._facts()
        if facts.get("format", _FORMAT) != _FORMAT:
            raise JournalError(f"state folder {self._folder} has format {facts['format']}: expected {_FORMAT}")
        if facts.get("site", self._site_id) != self._site_id:
            raise JournalError(f"state folder {self._folder} belongs to site {facts['site']}, this agent is of site {self._site_id}")
        self._put({"format": _FORMAT, "site": self._site_id})
        self._db.commit()

    def _facts(self) -> dict[str, str]:
        return dict(self._db.execute("SELECT name, value FROM facts").fetchall())

    def _put(self, facts: dict[str, str]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", list(facts.items()))

    def load(self) -> Kept:
        """What was kept."""
        facts = self._facts()
        try:
            rows = self._db.execute("SELECT event FROM outbox ORDER BY seq").fetchall()
            events = tuple(attempt_event_from_proto(pb.AttemptEvent.FromString(row[0])) for row in rows)
            return Kept(
                fleet_id=FleetId(facts.get("fleet", "")),
                term=Term(int(facts.get("term", "0"))),
                credential=facts.get("credential", ""),
                outbox=events,
                next_event_seq=EventSeq(int(facts.get("next_event_seq", "1"))),
            )
        except (sqlite3.Error, DecodeError, FieldError, ValueError) as error:
            raise JournalError(f"state folder {self._folder} is damaged: {error}") from error

    def begin(self, records: tuple[AgentRecord, ...]) -> asyncio.Future[None] | None:
        """Kept once the future is done. A disk that refuses is asked again until it takes them."""
        return asyncio.ensure_future(self._insist(records))

    async def _insist(self, records: Iterable[AgentRecord]) -> None:
        loop = asyncio.get_running_loop()
        kept = tuple(records)
        while True:
            try:
                return await loop.run_in_executor(self._thread, self._write, kept)
            except sqlite3.Error as error:
                _log.error("journal_failed", folder=str(self._folder), error=str(error), retry_in_s=_RETRY_S)
                await asyncio.sleep(_RETRY_S)

    def _write(self, records: tuple[AgentRecord, ...]) -> None:
        with self._db:
            for record in records:
                match record:
                    case OutboxAppended(event=event):
                        data = attempt_event_to_proto(event).SerializeToString()
                        self._db.execute("INSERT OR REPLACE INTO outbox VALUES (?, ?)", (event.seq, data))
                        self._put({"next_event_seq": str(event.seq + 1)})
                    case OutboxTrimmed(acked_event_seq=acked):
                        self._db.execute("DELETE FROM outbox WHERE seq <= ?", (acked,))
                    case IdentityChanged(fleet_id=fleet_id, term=term):
                        self._put({"fleet": fleet_id, "term": str(term)})
                    case _:
                        assert_never(record)

    async def keep_credential(self, credential: str) -> None:
        """Kept once this returns. Raises JournalError: a credential is issued once, so its loss must not go unnoticed."""

        def write() -> None:
            with self._db:
                self._put({"credential": credential})

        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, write)
        except sqlite3.Error as error:
            raise JournalError(f"the site's credential cannot be kept in {self._folder}: {error}") from error

    async def close(self) -> None:
        """Let go, after what is being written."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._db.close)
        self._thread.shutdown()
        self._lock.close()


def _lock(folder: Path) -> IO[bytes]:
    opened = (folder / _LOCK).open("ab")
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        opened.close()
        raise JournalError(f"state folder {folder} is used by another agent that is running: stop that one first") from None
    return opened


def _open(path: Path) -> sqlite3.Connection:
    # Made with these permissions, because the file holds the credential; SQLite gives its other files the same.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    path.chmod(0o600)
    db = sqlite3.connect(path, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    return db
