"""What is asked of a cluster during a soak, and what must be true of it: takers of turns, a follower, a store that is written to."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from atoll.model.errors import StateError
from atoll.model.ids import ChangeSeq
from atoll.model.job import Job
from orchestrator.core.outputs import AppendAudit, PutJob, Record
from orchestrator.store.base import CommitOutcome, StoreError
from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.errors import EtcdUnavailableError
from orchestrator.store.etcd.operations import Put, Unchanged, end_of
from orchestrator.store.etcd.store import EtcdStore
from orchestrator.store.etcd.target import EtcdTarget
from orchestrator.store.etcd.watch import Changes, Listing, follow
from tests.integration.store_backends import audit, queued

WRITERS: Final = 8
# Each writer takes a turn so often: the cluster is busy, not drowned.
_TURN_S: Final = 0.02
_PAUSE_S: Final = 0.05


@dataclass(slots=True)
class Ledger:
    """What happened."""

    turns: Counter[str] = field(default_factory=Counter)
    batches: dict[str, int] = field(default_factory=dict)
    followed: list[int] = field(default_factory=list)
    listings: int = 0
    reloads: int = 0
    refusals: int = 0
    commits_s: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


class Turns:
    """Writers who number their entries by comparison: none may be lost, none made twice, and a follower hears of all in order."""

    def __init__(self, target: EtcdTarget, ledger: Ledger) -> None:
        self._target = target
        self._ledger = ledger
        self._counter, self._entries = b"turns/counter", b"turns/entry/"

    def _entry(self, number: int) -> bytes:
        return self._entries + b"%012d" % number

    async def write(self, name: str, stop: asyncio.Event) -> None:
        """Take turns until told to stop; what was begun is brought to its end."""
        client = await EtcdClient.open(self._target)
        seq = 0
        while not stop.is_set():
            seq += 1
            mine = f"{name}-{seq}".encode()
            made = False
            while not made:
                made = await self._turn(client, mine)
            self._ledger.turns[name] = seq
            await asyncio.sleep(_TURN_S)
        await client.close()

    async def _turn(self, client: EtcdClient, mine: bytes) -> bool:
        """Whether the entry was made, by this try or one before it whose answer was lost."""
        try:
            kv = (await client.read([self._counter])).get(self._counter)
            number, revision = (int(kv.value) + 1, kv.mod_revision) if kv is not None else (1, 0)
            changes = [Put(self._counter, b"%d" % number), Put(self._entry(number), mine)]
            answer = await client.transact([Unchanged(self._counter, revision)], changes, otherwise=[self._entry(number)])
            if answer.succeeded:
                return True
            return any(kv.value == mine for one in answer.responses for kv in one.response_range.kvs)
        except EtcdUnavailableError:
            # Applied or not: looked up, not tried again blindly.
            return await self._find(client, mine)

    async def _find(self, client: EtcdClient, mine: bytes) -> bool:
        while True:
            try:
                return any(value == mine for _, value in await self._made(client))
            except EtcdUnavailableError:
                await asyncio.sleep(_PAUSE_S)

    async def _made(self, client: EtcdClient) -> list[tuple[int, bytes]]:
        pages = client.pages(self._entries, end_of(self._entries), limit=5_000)
        return [(int(kv.key[-12:]), kv.value) async for page in pages for kv in page]

    async def follow(self) -> None:
        """Hear of every entry, until cancelled."""
        client = await EtcdClient.open(self._target)
        try:
            async with aclosing(follow(client, self._entries, end_of(self._entries))) as updates:
                async for update in updates:
                    match update:
                        case Listing(kvs=kvs):
                            self._ledger.listings += 1
                            known = self._ledger.followed[-1] if self._ledger.followed else 0
                            self._hear([number for kv in kvs if (number := int(kv.key[-12:])) > known])
                        case Changes(events=events):
                            self._hear([int(event.kv.key[-12:]) for event in events])
        finally:
            await client.close()

    def _hear(self, numbers: list[int]) -> None:
        for number in numbers:
            expected = self._ledger.followed[-1] + 1 if self._ledger.followed else 1
            if number != expected:
                self._ledger.broken.append(f"the follower heard of {number} where {expected} was next")
            self._ledger.followed.append(number)

    async def check(self) -> None:
        """Once all is well again."""
        client = await EtcdClient.open(self._target, patience_s=60.0)
        made = [(number, value.decode()) for number, value in await self._made(client)]
        await client.close()
        broken = self._ledger.broken
        if [number for number, _ in made] != list(range(1, len(made) + 1)):
            broken.append("entries are missing")
        doubled = [text for text, times in Counter(text for _, text in made).items() if times > 1]
        promised = {f"{name}-{seq}" for name, last in self._ledger.turns.items() for seq in range(1, last + 1)}
        lost = promised - {text for _, text in made}
        if doubled or lost:
            broken.append(f"{len(doubled)} entries were made twice, {len(lost)} were lost: {sorted(doubled)[:3]} {sorted(lost)[:3]}")
        for _ in range(600):  # the follower is a moment behind
            if len(self._ledger.followed) >= len(made):
                break
            await asyncio.sleep(0.1)
        if self._ledger.followed != list(range(1, len(made) + 1)):
            broken.append(f"the follower heard of {len(self._ledger.followed)} of {len(made)} entries")


class Orchestration:
    """A store that is written to as an orchestrator does: batch after batch, loaded again whenever an outcome is not known."""

    def __init__(self, store: EtcdStore, ledger: Ledger, seed: int) -> None:
        self._store = store
        self._ledger = ledger
        self._chance = random.Random(seed)

    async def write(self, stop: asyncio.Event) -> None:
        """Commit until told to stop."""
        loop, batch = asyncio.get_running_loop(), 0
        while not stop.is_set():
            try:
                stored = await self._store.take_over()
            except (StoreError, StateError) as error:
                if isinstance(error, StateError):
                    self._ledger.broken.append(f"nobody else writes here: {error}")
                await asyncio.sleep(_PAUSE_S)
                continue
            seq: int = stored.last_audit_seq
            while not stop.is_set():
                batch += 1
                seq += 1
                jobs = self._chance.choice((1, 3, 10, 300))
                name = f"b{batch}"
                records: list[Record] = [PutJob(job=self._job(name, job)) for job in range(jobs)]
                records.append(AppendAudit(event=audit(seq, f"{name} {jobs}")))
                began_s = loop.time()
                try:
                    outcome = await self._store.commit(stored.term, batch, records)
                except StoreError:
                    outcome = CommitOutcome.UNKNOWN
                self._ledger.commits_s.append(loop.time() - began_s)
                if outcome is not CommitOutcome.COMMITTED:
                    self._ledger.reloads += 1
                    self._ledger.refusals += outcome is CommitOutcome.REFUSED
                    break
                self._ledger.batches[name] = jobs
                await asyncio.sleep(_TURN_S)

    def _job(self, batch: str, number: int) -> Job:
        return queued(f"{batch}-{number}", prompt="x" * self._chance.randint(0, 4_000))

    async def check(self) -> None:
        """Every batch that was promised is whole, and so is every other: its jobs and its line of the audit, or neither."""
        stored = None
        for _ in range(100):
            try:
                stored = await self._store.take_over()
                break
            except StoreError:
                await asyncio.sleep(0.5)
        if stored is None:
            self._ledger.broken.append("the store does not come back")
            return
        held = Counter(job.job_id.rpartition("-")[0] for job in stored.jobs)
        torn = [name for name, jobs in self._ledger.batches.items() if held[name] != jobs]
        told: dict[str, int] = {}
        after = ChangeSeq(0)
        while lines := await self._store.list_audit(after=after, limit=1_000):
            after = lines[-1].seq
            told.update((name, int(jobs)) for name, jobs in (line.detail.split() for line in lines))
        agree = told == dict(held)
        if torn or not agree:
            self._ledger.broken.append(f"{len(torn)} promised batches are not whole: {torn[:5]}; lines and jobs agree: {agree}")
        await self._store.close()
