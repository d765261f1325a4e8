"""Records -> rows, and rows -> what was promised.

Decides the statements. Within one transaction only the last state of each noun is written: the whole of it replaces what was there.
Must not know transactions, terms or threads.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from atoll.model.audit import AuditEvent
from atoll.model.errors import FieldError, StateError
from atoll.model.ids import ChangeSeq, FleetId, JobId, TenantId, Term
from atoll.model.job import TERMINAL, Job, JobState
from atoll.wire import stored
from orchestrator.core.durable import EndedKey, Stored
from orchestrator.core.ends import EndAttempt, applied, is_stopping
from orchestrator.core.placement.policy import Identity
from orchestrator.store import sqlite_learned
from orchestrator.store.base import BEGUN_IDS_MAX
from orchestrator.store.changes import Changes

_INSERT_JOB: Final = "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_INSERT_SPEC: Final = "INSERT INTO specs VALUES (?, ?)"
_UPDATE_JOB: Final = "UPDATE jobs SET state = ?, live = ?, ended_us = ?, progress = ? WHERE n = ?"
# The youngest job has the key: an ended one that the core no longer remembers gives way.
_ENDED_JOB: Final = "SELECT n, progress, spec FROM jobs JOIN specs USING (n) WHERE job_id = ? AND live = 0"
_STOPPING_JOBS: Final = "SELECT progress, spec FROM stopping JOIN jobs USING (n) JOIN specs USING (n) ORDER BY n"
_FREE_KEY: Final = "UPDATE jobs SET idempotency_key = NULL WHERE tenant = ? AND idempotency_key = ? AND live = 0"


@dataclass(slots=True, kw_only=True)
class LiveRows:
    """Row numbers of jobs that are not terminal, so that an update needs no search; `next_n` is the number of the next new row."""

    by_job: dict[JobId, int] = field(default_factory=dict)
    next_n: int = 1


def write(connection: sqlite3.Connection, rows: LiveRows, changes: Changes, wall_ms: int) -> list[tuple[JobId, int]]:
    """Execute within the open transaction; the row numbers of jobs that are new. `rows` stays as it is: the commit may fail.

    `wall_ms` is what people's clocks say.
    """
    new = _write_jobs(connection, rows, changes.jobs)
    for end in changes.ends:
        _write_end(connection, end)
    for site_id, site in changes.sites.items():
        if site is None:
            connection.execute("DELETE FROM sites WHERE site_id = ?", (site_id,))
        else:
            connection.execute("INSERT OR REPLACE INTO sites VALUES (?, ?)", (site_id, stored.encode_site(site)))
    for model_id, model in changes.models.items():
        if model is None:
            connection.execute("DELETE FROM models WHERE model_id = ?", (model_id,))
        else:
            connection.execute("INSERT OR REPLACE INTO models VALUES (?, ?)", (model_id, stored.encode_model(model)))
    for adapter_id, adapter in changes.adapters.items():
        if adapter is None:
            connection.execute("DELETE FROM adapters WHERE adapter_id = ?", (adapter_id,))
        else:
            connection.execute("INSERT OR REPLACE INTO adapters VALUES (?, ?)", (adapter_id, stored.encode_adapter(adapter)))
    _write_wishes(connection, changes)
    if changes.links is not None:
        connection.execute("INSERT OR REPLACE INTO links VALUES (1, ?)", (stored.encode_links(changes.links),))
    sqlite_learned.write(connection, changes.estimates, changes.demand, wall_ms)
    if changes.policy is not None:
        connection.execute("INSERT OR REPLACE INTO policy VALUES (1, ?, ?)", (changes.policy.name, changes.policy.digest))
    if changes.audit:
        lines = [(event.seq, stored.encode_audit(event), wall_ms) for event in changes.audit]
        connection.executemany("INSERT INTO audit VALUES (?, ?, ?)", lines)
    return new


def _write_wishes(connection: sqlite3.Connection, changes: Changes) -> None:
    """Pins and pushes."""
    for place, pin in changes.pins.items():
        if pin is None:
            connection.execute("DELETE FROM pins WHERE model_id = ? AND site_id = ?", place)
        else:
            connection.execute("INSERT OR REPLACE INTO pins VALUES (?, ?, ?)", (*place, stored.encode_pin(pin)))
    for model_id, push in changes.pushes.items():
        if push is None:
            connection.execute("DELETE FROM pushes WHERE model_id = ?", (model_id,))
        else:
            connection.execute("INSERT OR REPLACE INTO pushes VALUES (?, ?)", (model_id, stored.encode_push(push)))


def settle(rows: LiveRows, changes: Changes, new: list[tuple[JobId, int]]) -> None:
    """The transaction is durable: take note of the rows it made and of the jobs that ended."""
    rows.by_job.update(new)
    rows.next_n += len(new)
    for job_id, job in changes.jobs.items():
        if job.state in TERMINAL:
            rows.by_job.pop(job_id, None)


def _write_jobs(connection: sqlite3.Connection, rows: LiveRows, jobs: dict[JobId, Job]) -> list[tuple[JobId, int]]:
    updated: list[tuple[str, bool, int, bytes, int]] = []
    inserted: list[tuple[int, str, str, str | None, str, str, bool, int, bytes]] = []
    specs: list[tuple[int, bytes]] = []
    new: list[tuple[JobId, int]] = []
    stopping: list[tuple[int]] = []
    for job_id, job in jobs.items():
        live = job.state not in TERMINAL
        progress = stored.encode_job_progress(job)
        n = rows.by_job.get(job_id)
        if n is None and (job.attempts or not live):
            # Not a new job, or one that ended in the transaction that accepted it.
            found = connection.execute("SELECT n FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
            n = found[0] if found else None
        if n is not None:
            updated.append((job.state.value, live, job.ended_us, progress, n))
        else:
            n = rows.next_n + len(new)
            new.append((job_id, n))
            key = job.idempotency_key or None
            inserted.append((n, job_id, job.spec.tenant, key, job.payload_digest, job.state.value, live, job.ended_us, progress))
            specs.append((n, stored.encode_job_spec(job.spec)))
        if is_stopping(job):
            stopping.append((n,))
    connection.executemany(_UPDATE_JOB, updated)
    try:
        connection.executemany(_INSERT_JOB, inserted)
    except sqlite3.IntegrityError:
        _insert_singly(connection, inserted)
    connection.executemany(_INSERT_SPEC, specs)
    connection.executemany("INSERT OR IGNORE INTO stopping VALUES (?)", stopping)
    return new


def _write_end(connection: sqlite3.Connection, end: EndAttempt) -> None:
    """An attempt of a terminal job is over; nothing else of the job changes. A job that is retained no more is nobody's."""
    found = connection.execute(_ENDED_JOB, (end.key.job_id,)).fetchone()
    job = applied(job_of(found[1], found[2]), end) if found is not None else None
    if job is not None:
        connection.execute("UPDATE jobs SET progress = ? WHERE n = ?", (stored.encode_job_progress(job), found[0]))
        connection.execute("DELETE FROM stopping WHERE n = ?", (found[0],))


def _insert_singly(connection: sqlite3.Connection, inserted: list[tuple[int, str, str, str | None, str, str, bool, int, bytes]]) -> None:
    """As `executemany` stopped half-way: what is missing, each with a free key. IntegrityError when a live job has it."""
    for row in inserted:
        if connection.execute("SELECT 1 FROM jobs WHERE n = ?", (row[0],)).fetchone() is None:
            if row[3] is not None:
                connection.execute(_FREE_KEY, (row[2], row[3]))
            connection.execute(_INSERT_JOB, row)


# --- reading ------------------------------------------------------------------------------------------------------------------


def job_of(progress: bytes, spec: bytes) -> Job:
    """A job of its two blobs."""
    return stored.decode_job_progress(progress, stored.decode_job_spec(spec))


def load(connection: sqlite3.Connection, *, ended_keys_max: int, wall_ms: int) -> tuple[Stored, LiveRows]:
    """Everything that was promised, as of one instant, which is `wall_ms` by people's clocks."""
    connection.execute("BEGIN")
    try:
        fleet_id, term, fleet_time_us = connection.execute("SELECT fleet_id, term, fleet_time_us FROM fleet").fetchone()
        rows = LiveRows()
        jobs: list[Job] = []
        live = "SELECT n, progress, spec FROM jobs JOIN specs USING (n) WHERE live = 1 ORDER BY n"
        for n, progress, spec in connection.execute(live):
            job = job_of(progress, spec)
            jobs.append(job)
            rows.by_job[job.job_id] = n
        rows.next_n = (connection.execute("SELECT max(n) FROM jobs").fetchone()[0] or 0) + 1
        links = connection.execute("SELECT links FROM links").fetchone()
        policy = connection.execute("SELECT name, digest FROM policy").fetchone()
        demand, demand_age_us = sqlite_learned.read_demand(connection, wall_ms)
        loaded = Stored(
            fleet_id=FleetId(fleet_id),
            term=Term(term),
            fleet_time_us=fleet_time_us,
            last_audit_seq=ChangeSeq(connection.execute("SELECT max(seq) FROM audit").fetchone()[0] or 0),
            jobs=tuple(jobs),
            stopping=tuple(job_of(*row) for row in connection.execute(_STOPPING_JOBS)),
            sites=tuple(stored.decode_site(row[0]) for row in connection.execute("SELECT site FROM sites ORDER BY site_id")),
            links=stored.decode_links(links[0]) if links else (),
            models=tuple(stored.decode_model(row[0]) for row in connection.execute("SELECT model FROM models ORDER BY model_id")),
            adapters=tuple(stored.decode_adapter(row[0]) for row in connection.execute("SELECT adapter FROM adapters ORDER BY adapter_id")),
            pins=tuple(stored.decode_pin(row[0]) for row in connection.execute("SELECT pin FROM pins ORDER BY model_id, site_id")),
            pushes=tuple(stored.decode_push(row[0]) for row in connection.execute("SELECT push FROM pushes ORDER BY model_id")),
            ended_keys=_youngest_keys(connection, ended_keys_max),
            ended_count=count_ended(connection),
            estimates=sqlite_learned.read_estimates(connection),
            demand=demand,
            demand_age_us=demand_age_us,
            policy=Identity(name=policy[0], digest=policy[1]) if policy else None,
        )
    finally:
        connection.execute("ROLLBACK")
    return loaded, rows


def _youngest_keys(connection: sqlite3.Connection, most: int) -> tuple[EndedKey, ...]:
    youngest = (
        "SELECT tenant, idempotency_key, job_id, payload_digest FROM jobs INDEXED BY jobs_ended"
        " WHERE live = 0 AND idempotency_key IS NOT NULL ORDER BY ended_us DESC, job_id DESC LIMIT ?"
    )
    keys = [_key_of(row) for row in connection.execute(youngest, (most,))]
    keys.reverse()
    return tuple(keys)


def _key_of(row: tuple[str, str, str, str]) -> EndedKey:
    tenant, key, job_id, payload_digest = row
    return EndedKey(tenant=TenantId(tenant), idempotency_key=key, job_id=JobId(job_id), payload_digest=payload_digest)


def count_ended(connection: sqlite3.Connection) -> int:
    """How many terminal jobs are retained."""
    return int(connection.execute("SELECT count(*) FROM jobs INDEXED BY jobs_ended WHERE live = 0").fetchone()[0])


def get_job(connection: sqlite3.Connection, job_id: JobId) -> Job | None:
    """One job, live or ended."""
    row = connection.execute("SELECT progress, spec FROM jobs JOIN specs USING (n) WHERE job_id = ?", (job_id,)).fetchone()
    return None if row is None else job_of(row[0], row[1])


def find_ids(connection: sqlite3.Connection, prefix: str, tenant: TenantId | None, limit: int) -> tuple[JobId, ...]:
    """Jobs whose ids begin so, by the index of ids. Whose they are is looked at one by one, so only so many are looked at."""
    begun = "SELECT job_id, tenant FROM jobs WHERE job_id >= ? AND job_id < ? ORDER BY job_id LIMIT ?"
    # Ids are of ASCII characters: what begins with the prefix sorts before it with the last code point behind.
    looked_at = connection.execute(begun, (prefix, f"{prefix}\U0010ffff", BEGUN_IDS_MAX + 1)).fetchall()
    found = tuple(JobId(job_id) for job_id, owner in looked_at if tenant is None or owner == tenant)[:limit]
    if len(looked_at) > BEGUN_IDS_MAX and len(found) < limit:
        raise FieldError("job_id", prefix, f"more of the id: more than {BEGUN_IDS_MAX} begin so")
    return found


def find_keys(connection: sqlite3.Connection, tenant: TenantId, keys: Sequence[str]) -> tuple[EndedKey, ...]:
    """Terminal jobs of these keys."""
    one = "SELECT tenant, idempotency_key, job_id, payload_digest FROM jobs WHERE tenant = ? AND idempotency_key = ? AND live = 0"
    found = (connection.execute(one, (tenant, key)).fetchone() for key in keys)
    return tuple(_key_of(row) for row in found if row is not None)


def list_ended(
    connection: sqlite3.Connection, tenant: TenantId | None, states: frozenset[JobState], before: tuple[int, JobId] | None, limit: int
) -> tuple[Job, ...]:
    """A page of terminal jobs, youngest first."""
    where, values = ["live = 0"], list[str | int]()
    if tenant is not None:
        where.append("tenant = ?")
        values.append(tenant)
    if states:
        where.append(f"state IN ({','.join('?' * len(states))})")
        values.extend(sorted(states))
    if before is not None:
        where.append("(ended_us, job_id) < (?, ?)")
        values.extend(before)
    index = "jobs_ended" if tenant is None else "jobs_ended_of_tenant"
    # Only constants are put together here; every value is bound.
    page = (
        f"SELECT progress, spec FROM jobs INDEXED BY {index} JOIN specs USING (n) WHERE {' AND '.join(where)}"  # noqa: S608
        " ORDER BY ended_us DESC, job_id DESC LIMIT ?"
    )
    return tuple(job_of(progress, spec) for progress, spec in connection.execute(page, (*values, limit)))


def list_audit(connection: sqlite3.Connection, after: ChangeSeq, limit: int) -> tuple[AuditEvent, ...]:
    """Lines after a number, in order."""
    page = "SELECT line, written_ms FROM audit WHERE seq > ? ORDER BY seq LIMIT ?"
    found = connection.execute(page, (after, limit))
    return tuple(replace(stored.decode_audit(line), written_ms=written_ms) for line, written_ms in found)


def audit_tail(connection: sqlite3.Connection, most: int) -> ChangeSeq:
    """The number after which at most so many lines follow."""
    row = connection.execute("SELECT seq FROM audit ORDER BY seq DESC LIMIT 1 OFFSET ?", (most,)).fetchone()
    return ChangeSeq(row[0] if row is not None else 0)


# --- forgetting ---------------------------------------------------------------------------------------------------------------


def forget_ended(connection: sqlite3.Connection, *, before_us: int, limit: int) -> int:
    """Delete the oldest terminal jobs that ended before an instant, at most `limit`; how many went."""
    oldest = "SELECT n FROM jobs INDEXED BY jobs_ended WHERE live = 0 AND ended_us < ? ORDER BY ended_us, job_id LIMIT ?"
    numbers = connection.execute(oldest, (before_us, limit)).fetchall()
    connection.executemany("DELETE FROM specs WHERE n = ?", numbers)
    connection.executemany("DELETE FROM stopping WHERE n = ?", numbers)
    connection.executemany("DELETE FROM jobs WHERE n = ?", numbers)
    return len(numbers)


def forget_audit(connection: sqlite3.Connection, *, keep: int, limit: int) -> int:
    """Delete the oldest lines beyond the last `keep`, at most `limit`; how many went."""
    last = connection.execute("SELECT max(seq) FROM audit").fetchone()[0] or 0
    oldest = "DELETE FROM audit WHERE seq IN (SELECT seq FROM audit WHERE seq <= ? ORDER BY seq LIMIT ?)"
    return connection.execute(oldest, (last - keep, limit)).rowcount


def check_term(connection: sqlite3.Connection, term: Term, now_us: int) -> bool:
    """Whether `term` is still the store's, within the open transaction; notes the fleet time with it."""
    guarded = "UPDATE fleet SET fleet_time_us = max(fleet_time_us, ?) WHERE term = ?"
    return connection.execute(guarded, (now_us, term)).rowcount == 1


def raise_term(connection: sqlite3.Connection) -> None:
    """The next term begins, within the open transaction."""
    if connection.execute("UPDATE fleet SET term = term + 1").rowcount != 1:
        raise StateError("the store has no fleet: it is damaged, restore a backup")
