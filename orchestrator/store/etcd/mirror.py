"""What a takeover has to know, kept at hand: read once as of one revision, then every change, in order, over one watch of the prefix.

Decides what of it is kept, and when jobs are decoded: soon, many at once and in a thread, for a job that is changed five times within a
second is read once. Terminal jobs and the audit stay where they are. Must not know who leads, nor when to take over.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Final

from atoll.model.ids import JobId
from atoll.model.job import Job
from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.errors import EtcdCompactedError
from orchestrator.store.etcd.index import JobIndex
from orchestrator.store.etcd.layout import Layout
from orchestrator.store.etcd.loading import Jobs, Reader, ended_of, entry_of, live_of
from orchestrator.store.etcd.operations import end_of
from orchestrator.store.etcd.pb import etcd_pb2 as pb
from orchestrator.store.etcd.watch import changes

# What was not decoded yet is decoded at the takeover: of 10,000 changes a second that is half a second's worth of them, 0.2 s.
_DECODE_EVERY_S: Final = 0.5
# Parts of large values are among them, a quarter of a megabyte each.
_PAGE: Final = 64
_AGAIN_S: Final = 0.5


class Mirror:
    """What is below a prefix. `heard` hears of every change there, whatever it is of."""

    def __init__(self, client: EtcdClient, layout: Layout, heard: Callable[[pb.Event], None]) -> None:
        self._client = client
        self._layout = layout
        self._heard = heard
        self._live: dict[JobId, tuple[int, Job]] = {}
        self._index = JobIndex()
        # Values of jobs that were not looked at yet.
        self._undecoded: dict[JobId, bytes] = {}
        self._nouns: dict[bytes, pb.KeyValue] = {}
        self._elsewhere = (layout.done, layout.audit, layout.staged, layout.standbys)
        self._changed = asyncio.Event()
        # Of `commit`, which every commit replaces: all that was written before is here. 0: nothing was read yet.
        self.commit_revision = 0

    async def run(self) -> None:
        """Read, then follow, for ever. Raises EtcdError for what waiting does not cure, StateError for what cannot be read."""
        while True:
            try:
                revision = await self._read()
                async with aclosing(changes(self._client, self._layout.root, end_of(self._layout.root), after=revision)) as following:
                    decoding = asyncio.create_task(self._decode_for_ever())
                    try:
                        async for change in following:
                            self._apply(change.events)
                    finally:
                        decoding.cancel()
                        await asyncio.gather(decoding, return_exceptions=True)
            except EtcdCompactedError:
                # Changes were missed for good.
                self.commit_revision = 0
                await asyncio.sleep(_AGAIN_S)

    async def level(self, commit_revision: int) -> None:
        """Returns once everything up to this commit is here."""
        while self.commit_revision < commit_revision:
            self._changed.clear()
            await self._changed.wait()

    async def jobs(self) -> Jobs:
        """All jobs as they are now."""
        await self._decode()
        return Jobs(sorted(self._live.values(), key=lambda each: each[0]), self._index)

    async def pages(self, key: bytes, end: bytes, *, limit: int, revision: int = 0) -> AsyncGenerator[Sequence[pb.KeyValue]]:
        """See `Pages`: of whatever is neither a job nor a line of the audit; as it is now, whatever the revision."""
        found = [self._nouns[each] for each in sorted(self._nouns) if key <= each < end]
        for start in range(0, len(found), limit):
            yield found[start : start + limit]

    # --- reading -------------------------------------------------------------------------------------------------------------

    async def _read(self) -> int:
        """Everything as of one revision: that."""
        layout, client = self._layout, self._client
        revision: int = (await client.range(layout.fleet)).header.revision
        collecting = gc.isenabled()
        # As at a takeover: very many new objects, none of them garbage.
        gc.disable()
        try:
            jobs = await Reader(client, layout, revision=revision).jobs()
        finally:
            if collecting:
                gc.enable()
        nouns: dict[bytes, pb.KeyValue] = {}
        for start, end in self._ranges():
            async for kvs in client.pages(start, end, limit=_PAGE, revision=revision):
                nouns.update((kv.key, kv) for kv in kvs)
        self._index = jobs.index
        self._live = {job.job_id: (n, job) for n, job in jobs.live}
        self._undecoded, self._nouns = {}, nouns
        self._level()
        return revision

    def _ranges(self) -> list[tuple[bytes, bytes]]:
        """All of the prefix but the folders that are not kept as they are."""
        skipped = sorted((self._layout.live, self._layout.ended, *self._elsewhere))
        starts = [self._layout.root, *(end_of(folder) for folder in skipped)]
        return list(zip(starts, [*skipped, end_of(self._layout.root)], strict=True))

    # --- following -----------------------------------------------------------------------------------------------------------

    def _apply(self, events: Sequence[pb.Event]) -> None:
        for event in events:
            key = event.kv.key
            gone = event.type == pb.Event.DELETE
            if key.startswith(self._layout.live):
                self._lives(JobId(key.removeprefix(self._layout.live).decode()), None if gone else event.kv.value)
            elif key.startswith(self._layout.ended):
                self._ended(event.kv, gone=gone)
            elif not key.startswith(self._elsewhere):
                if gone:
                    self._nouns.pop(key, None)
                else:
                    # Of its own: what came in one message is kept as long as any part of it.
                    self._nouns[key] = pb.KeyValue(key=key, value=event.kv.value, mod_revision=event.kv.mod_revision)
            self._heard(event)
        self._level()

    def _level(self) -> None:
        commit = self._nouns.get(self._layout.commit)
        self.commit_revision = commit.mod_revision if commit is not None else 0
        self._changed.set()

    def _lives(self, job_id: JobId, value: bytes | None) -> None:
        if value is not None:
            self._undecoded[job_id] = value
            return
        self._undecoded.pop(job_id, None)
        self._live.pop(job_id, None)
        entry = self._index.get(job_id)
        # One transaction ends a job: in it the other key may come before this one or after it.
        if entry is not None and entry.live:
            self._index.remove(job_id)

    def _ended(self, kv: pb.KeyValue, *, gone: bool) -> None:
        if not gone:
            job_id, entry = ended_of(self._layout, kv)
            self._index.put(job_id, entry)
            return
        ended_us, job_id = self._layout.ended_of(kv.key)
        known = self._index.get(job_id)
        if known is not None and not known.live and known.ended_us == ended_us:
            self._index.remove(job_id)

    # --- decoding ------------------------------------------------------------------------------------------------------------

    async def _decode_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_DECODE_EVERY_S)
            await self._decode()

    async def _decode(self) -> None:
        waiting = list(self._undecoded.items())
        if not waiting:
            return
        decoded = await asyncio.to_thread(lambda: [live_of(value) for _, value in waiting])
        for (job_id, value), (n, job) in zip(waiting, decoded, strict=True):
            # Unless it changed or ended meanwhile.
            if self._undecoded.get(job_id) is value:
                del self._undecoded[job_id]
                self._live[job_id] = (n, job)
                self._index.put(job_id, entry_of(n, job))
