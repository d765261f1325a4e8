"""A process that commits batch after batch until it is killed, and says after each commit what was promised.

Run as `python -m tests.integration.store_writer FILE|URL ROUND [JOBS_MAX]`.
"""

from __future__ import annotations

import asyncio
import random
import sys

from orchestrator.core.outputs import AppendAudit, PutJob, Record
from orchestrator.store.base import CommitOutcome, Store
from orchestrator.store.etcd.store import EtcdStore
from orchestrator.store.etcd.target import SCHEME, parse_url
from orchestrator.store.sqlite import SqliteStore
from tests.integration.store_backends import audit, placed, queued


async def write(where: str, number: int, jobs_max: int) -> None:
    """One line per durable batch: its number and how many jobs it has."""
    store: Store = EtcdStore(parse_url("store", where)) if where.startswith(SCHEME) else SqliteStore(where)
    stored = await store.take_over()
    sizes = random.Random(number)
    seq: int = stored.last_audit_seq
    for batch in range(1_000_000):
        jobs = sizes.randint(1, jobs_max)
        accepted = [queued(f"r{number}-b{batch}-j{job}", prompt="x" * sizes.randint(0, 9_000)) for job in range(jobs)]
        seq += 1
        records: list[Record] = [*(PutJob(job=job) for job in accepted), AppendAudit(event=audit(seq, f"r{number}-b{batch} {jobs}"))]
        assert await store.commit(stored.term, batch, records) is CommitOutcome.COMMITTED
        print(f"{batch} {jobs}", flush=True)
        # The next transaction changes what the last one wrote.
        if batch % 3 == 0:
            assert await store.commit(stored.term, batch, [PutJob(job=placed(job)) for job in accepted]) is CommitOutcome.COMMITTED


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 40))
