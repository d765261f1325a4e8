"""One commit, however large: all of it is applied or nothing, and once.

Every write compares two keys: `leadership`, so that who was deposed changes nothing, and `commit`, which each commit replaces, so that
a request that was asked twice, or that arrives long after it was given up, changes nothing either. What is too large for one request is
staged in parts first; the transaction that replaces `commit` says how many, and from then on they are carried out, by whoever leads.
Must not know what is stored.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import msgspec

from atoll.model.errors import StateError
from orchestrator.store.base import CommitOutcome, StoreError
from orchestrator.store.etcd.client import LARGE_TRY_S, TRY_S, EtcdClient
from orchestrator.store.etcd.layout import CommitValue, Layout, decode, encode
from orchestrator.store.etcd.loading import Head
from orchestrator.store.etcd.operations import OPERATIONS_MAX, Change, Delete, Put, Unchanged, bytes_of, end_of, in_requests
from orchestrator.store.etcd.pb import etcd_pb2 as pb

# Requests of a megabyte on their way at once: enough to keep a disk busy, few enough for its members' memories.
_IN_FLIGHT: Final = 4
# Up to so much a slow disk is no reason to wait longer for one answer.
_SMALL_BYTES: Final = 100_000


class Writer:
    """Writes for one term. After anything but `committed` it is of no more use: take over again."""

    def __init__(self, client: EtcdClient, layout: Layout, head: Head) -> None:
        self._client = client
        self._layout = layout
        self._leadership = Unchanged(layout.leadership, head.leadership_revision)
        self._commit_revision = head.commit_revision
        self._value = head.commit
        self._quiet_revision = 0
        self._usable = True
        self.written_bytes = 0

    @property
    def revision(self) -> int:
        """As of which all is as it was last committed: that commit's, or a later one at which nothing had been committed since."""
        return max(self._commit_revision, self._leadership.mod_revision, self._quiet_revision)

    @property
    def commit_revision(self) -> int:
        """That of `commit`, when this writer replaced it last."""
        return self._commit_revision

    @property
    def leadership(self) -> Unchanged:
        """What only this term's writer finds unchanged."""
        return self._leadership

    async def recover(self) -> CommitValue:
        """Carry out what was committed and not yet carried out; the commit as it is then. Once, before anything is read."""
        if self._value.staged:
            folder = self._staged(self._value.nonce)
            parts = [kv.value async for page in self._client.pages(folder, end_of(folder), limit=1) for kv in page]
            if len(parts) != self._value.staged:
                raise StateError(
                    f"etcd key {folder.decode()} has {len(parts)} parts of {self._value.staged}: it is damaged, restore a backup"
                )
            self._led(await self._carry_out([change for part in parts for change in _unpacked(part)]))
        # Parts of commits that were never decided. Not by `apply`: a request of this that arrives late must not find the parts of the next.
        value = msgspec.structs.replace(self._value, nonce=_new_nonce())
        self._led(await self._decide([Delete(self._layout.staged, end_of(self._layout.staged))], value))
        return self._value

    def _led(self, outcome: CommitOutcome) -> None:
        if outcome is not CommitOutcome.COMMITTED:
            raise StoreError("another took over meanwhile")

    async def commit(self, now_us: int, changes: Sequence[Change]) -> CommitOutcome:
        """All changes (no key twice) or none. Raises EtcdError: then, and after `unknown`, nobody knows."""
        if not self._usable:
            raise StateError("the store was not taken over again after a commit whose outcome is not known")
        self._usable = False
        value = CommitValue(fleet_time_us=max(self._value.fleet_time_us, now_us), nonce=_new_nonce())
        requests = list(in_requests(changes, operations=OPERATIONS_MAX - 1))
        if len(requests) <= 1:
            outcome = await self._decide([change for request in requests for change in request], value)
        else:
            outcome = await self._in_parts(requests, value)
        self._usable = outcome is CommitOutcome.COMMITTED
        return outcome

    async def apply(self, changes: Sequence[Change]) -> bool:
        """All changes at once, outside the order of commits; whether this term still leads. Raises EtcdError.

        They may be made twice, and late: until the next commit, whatever else was applied meanwhile.
        """
        self.written_bytes += sum(map(bytes_of, changes))
        return (await self._client.transact(self._guards(), changes, try_s=LARGE_TRY_S)).succeeded

    async def look(self) -> bool:
        """Whether this term still leads and all is as it committed it; `revision` is then now's. Raises EtcdError."""
        if not self._usable:
            return False
        answer = await self._client.transact(self._guards(), [])
        if answer.succeeded:
            self._quiet_revision = answer.header.revision
        return answer.succeeded

    def _guards(self) -> tuple[Unchanged, Unchanged]:
        return self._leadership, Unchanged(self._layout.commit, self._commit_revision)

    async def _decide(self, changes: Sequence[Change], value: CommitValue) -> CommitOutcome:
        """The transaction after which it is so."""
        layout = self._layout
        size = sum(map(bytes_of, changes))
        self.written_bytes += size
        answer = await self._client.transact(
            self._guards(),
            [*changes, Put(layout.commit, encode(value))],
            otherwise=[layout.leadership, layout.commit],
            try_s=LARGE_TRY_S if size > _SMALL_BYTES else TRY_S,
        )
        if answer.succeeded:
            self._commit_revision, self._value = answer.header.revision, value
            return CommitOutcome.COMMITTED
        found = {kv.key: kv for one in answer.responses for kv in one.response_range.kvs}
        return self._judged(found, value)

    def _judged(self, found: dict[bytes, pb.KeyValue], value: CommitValue) -> CommitOutcome:
        """What became of a transaction of which this try found something changed: perhaps by a try before it."""
        leadership, commit = found.get(self._layout.leadership), found.get(self._layout.commit)
        if leadership is None or leadership.mod_revision != self._leadership.mod_revision:
            return CommitOutcome.REFUSED
        if commit is not None and decode(CommitValue, commit) == value:
            self._commit_revision, self._value = commit.mod_revision, value
            return CommitOutcome.COMMITTED
        return CommitOutcome.UNKNOWN

    # --- more than one request -----------------------------------------------------------------------------------------------

    async def _in_parts(self, requests: Sequence[Sequence[Change]], value: CommitValue) -> CommitOutcome:
        folder = self._staged(value.nonce)
        parts = [Put(self._layout.part(folder, number), _packed(request)) for number, request in enumerate(requests)]
        if not all(await _few_at_once([partial(self.apply, [part]) for part in parts])):
            return await self._why_not()
        outcome = await self._decide([], msgspec.structs.replace(value, staged=len(parts)))
        if outcome is not CommitOutcome.COMMITTED:
            return outcome
        return await self._carry_out([change for request in requests for change in request])

    async def _carry_out(self, changes: Sequence[Change]) -> CommitOutcome:
        """What is committed already. Asked twice it is the same, and once it is done `commit` is another."""
        requests = list(in_requests(changes))
        if not all(await _few_at_once([partial(self.apply, request) for request in requests])):
            return await self._why_not()
        folder = self._staged(self._value.nonce)
        return await self._decide([Delete(folder, end_of(folder))], msgspec.structs.replace(self._value, staged=0))

    async def _why_not(self) -> CommitOutcome:
        found = (await self._client.read([self._layout.leadership])).get(self._layout.leadership)
        led = found is not None and found.mod_revision == self._leadership.mod_revision
        return CommitOutcome.UNKNOWN if led else CommitOutcome.REFUSED

    def _staged(self, nonce: str) -> bytes:
        return self._layout.staged + nonce.encode() + b"/"


def _new_nonce() -> str:
    return secrets.token_hex(8)


async def _few_at_once(asks: Sequence[Callable[[], Awaitable[bool]]]) -> list[bool]:
    room = asyncio.Semaphore(_IN_FLIGHT)

    async def one(ask: Callable[[], Awaitable[bool]]) -> bool:
        async with room:
            return await ask()

    # None is left behind when one fails: it would write on.
    answers = await asyncio.gather(*map(one, asks), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if not isinstance(answer, BaseException)]


def _packed(changes: Sequence[Change]) -> bytes:
    return msgspec.msgpack.encode(
        [(change.key, change.value) if isinstance(change, Put) else (change.key, None, change.end) for change in changes]
    )


def _unpacked(part: bytes) -> list[Change]:
    rows: list[list[bytes | None]] = msgspec.msgpack.decode(part)
    return [_change(*row) for row in rows]


def _change(key: bytes | None, value: bytes | None, end: bytes | None = b"") -> Change:
    assert key is not None
    return Delete(key, end or b"") if value is None else Put(key, value)
