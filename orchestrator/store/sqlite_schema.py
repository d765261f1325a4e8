"""The tables of the embedded store, and how its file is opened.

Decides the layout and its version. A specification (up to 32 KiB, never changed) lies apart from what changes of a job, so that an
update rewrites neither it nor its pages; `stopping` names terminal jobs of which an attempt has not ended. Must not know what the
blobs hold.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from typing import Final

from atoll.model.errors import StateError
from orchestrator.store.base import StoreError

# Grows with every change of the tables. A file of a later version is refused: its rows may mean something else.
FORMAT: Final = 8
# "ATOL": tells our file from any other SQLite database.
APPLICATION_ID: Final = 0x41544F4C

# How long another process on the same file (a shell, a copy in the making) may hold a write lock before a commit fails.
_BUSY_MS: Final = 5_000
# Frames between checkpoints: 16 MB. At SQLite's own 4 MB a busy orchestrator checkpoints several times a second.
_CHECKPOINT_PAGES: Final = 4_000
# A log that a long backup let grow is cut back to this.
_LOG_BYTES_KEPT: Final = 64 * 1024 * 1024
_CACHE_KIB: Final = 64 * 1024

_TABLES: Final = f"""
PRAGMA application_id = {APPLICATION_ID};
CREATE TABLE fleet (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    format INTEGER NOT NULL,
    fleet_id TEXT NOT NULL,
    term INTEGER NOT NULL,
    fleet_time_us INTEGER NOT NULL
) STRICT;
CREATE TABLE jobs (
    n INTEGER PRIMARY KEY,
    job_id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    idempotency_key TEXT,
    payload_digest TEXT NOT NULL,
    state TEXT NOT NULL,
    live INTEGER NOT NULL,
    ended_us INTEGER NOT NULL,
    progress BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX jobs_by_key ON jobs (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_live ON jobs (live) WHERE live = 1;
CREATE INDEX jobs_ended ON jobs (ended_us, job_id, state) WHERE live = 0;
CREATE INDEX jobs_ended_of_tenant ON jobs (tenant, ended_us, job_id, state) WHERE live = 0;
CREATE TABLE stopping (n INTEGER PRIMARY KEY) STRICT;
CREATE TABLE specs (n INTEGER PRIMARY KEY, spec BLOB NOT NULL) STRICT;
CREATE TABLE sites (site_id TEXT PRIMARY KEY, site BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE models (model_id TEXT PRIMARY KEY, model BLOB NOT NULL) STRICT;
CREATE TABLE adapters (adapter_id TEXT PRIMARY KEY, adapter BLOB NOT NULL) STRICT;
CREATE TABLE pins (model_id TEXT, site_id TEXT, pin BLOB NOT NULL, PRIMARY KEY (model_id, site_id)) STRICT;
CREATE TABLE pushes (model_id TEXT PRIMARY KEY, push BLOB NOT NULL) STRICT;
CREATE TABLE links (id INTEGER PRIMARY KEY CHECK (id = 1), links BLOB NOT NULL) STRICT;
CREATE TABLE estimates (id INTEGER PRIMARY KEY CHECK (id = 1), estimates BLOB NOT NULL) STRICT;
CREATE TABLE demand (id INTEGER PRIMARY KEY CHECK (id = 1), demand BLOB NOT NULL, written_ms INTEGER NOT NULL) STRICT;
CREATE TABLE policy (id INTEGER PRIMARY KEY CHECK (id = 1), name TEXT NOT NULL, digest TEXT NOT NULL) STRICT;
CREATE TABLE audit (seq INTEGER PRIMARY KEY, line BLOB NOT NULL, written_ms INTEGER NOT NULL DEFAULT 0) STRICT;
"""

# What turns a file of an earlier format into one of the next, in the transaction that opens it.
_UPGRADES: Final = {
    1: ("CREATE TABLE adapters (adapter_id TEXT PRIMARY KEY, adapter BLOB NOT NULL) STRICT",),
    2: ("CREATE TABLE estimates (id INTEGER PRIMARY KEY CHECK (id = 1), estimates BLOB NOT NULL) STRICT",),
    3: (
        "CREATE TABLE pins (model_id TEXT, site_id TEXT, pin BLOB NOT NULL, PRIMARY KEY (model_id, site_id)) STRICT",
        "CREATE TABLE pushes (model_id TEXT PRIMARY KEY, push BLOB NOT NULL) STRICT",
    ),
    4: ("CREATE TABLE policy (id INTEGER PRIMARY KEY CHECK (id = 1), name TEXT NOT NULL, digest TEXT NOT NULL) STRICT",),
    5: ("ALTER TABLE audit ADD COLUMN written_ms INTEGER NOT NULL DEFAULT 0",),
    6: ("CREATE TABLE demand (id INTEGER PRIMARY KEY CHECK (id = 1), demand BLOB NOT NULL, written_ms INTEGER NOT NULL) STRICT",),
    7: ("CREATE TABLE stopping (n INTEGER PRIMARY KEY) STRICT",),
}


def open_writer(path: str) -> sqlite3.Connection:
    """The connection that writes; makes the file and its tables when there are none.

    StateError when the file is not this version's store; sqlite3.Error and OSError when it cannot be opened now.
    """
    _make_private(path)
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=64)
    try:
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
        _check_or_create(connection, path)
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StateError(f"{path}: the file system does not support a write-ahead log (journal mode {mode}); use a local disk")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES_KEPT}")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: str) -> sqlite3.Connection:
    """A connection that cannot write. The file must exist."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")
    connection.execute("PRAGMA query_only = 1")
    return connection


def _make_private(path: str) -> None:
    """The file exists and only its owner may read it: it holds prompts and digests of credentials."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)
    finally:
        os.close(fd)
    sync_folder(os.path.dirname(path))


def sync_folder(folder: str) -> None:
    """Names of files made in `folder` survive a loss of power."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _check_or_create(connection: sqlite3.Connection, path: str) -> None:
    connection.execute("BEGIN IMMEDIATE")
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if not tables:
        for statement in _TABLES.split(";\n"):
            connection.execute(statement)
        connection.execute("INSERT INTO fleet VALUES (1, ?, ?, 0, 0)", (FORMAT, str(uuid.uuid4())))
    elif connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise StateError(f"{path} is a database of another program: give the store a file of its own")
    row = connection.execute("SELECT format FROM fleet").fetchone()
    while row is not None and row[0] in _UPGRADES:
        for statement in _UPGRADES[row[0]]:
            connection.execute(statement)
        row = (row[0] + 1,)
        connection.execute("UPDATE fleet SET format = ?", row)
    if row is None or row[0] != FORMAT:
        found = row[0] if row else "none"
        raise StateError(f"{path} has format {found}, this version of Atoll reads {FORMAT}: run the version that wrote it")
    connection.execute("COMMIT")


def told(error: sqlite3.Error | OSError, path: str) -> StateError | StoreError:
    """The error as an operator should read it: StateError when the file itself is wrong, else StoreError: it may pass."""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    if name == "SQLITE_NOTADB":
        return StateError(f"{path} is not a database: give the store a file of its own")
    if name.startswith("SQLITE_CORRUPT"):
        return StateError(f"{path} is damaged ({error}): restore a backup")
    if name == "SQLITE_FULL":
        return StoreError(f"{path}: the disk is full; nothing is accepted until there is room")
    if isinstance(error, OSError):
        return StoreError(f"{path}: {error.strerror or error}")
    return StoreError(f"{path}: {error} ({name})")
