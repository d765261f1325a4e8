"""Becoming the one who may write: the permanent leadership key, compared and replaced.

Decides when a takeover is tried: not while another shows signs of life. Safety does not rest on that but on the revision of the key, which
every write compares. Must not know what is stored.
"""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import Mapping
from typing import Final

from atoll.model.errors import StateError
from atoll.model.orchestrators import Introduction
from orchestrator.store.base import HeldError
from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.errors import EtcdDeniedError
from orchestrator.store.etcd.layout import (
    FORMAT,
    UNFINISHED,
    CommitValue,
    FleetValue,
    HealthValue,
    Layout,
    LeadershipValue,
    decode,
    encode,
)
from orchestrator.store.etcd.loading import Head, read_head
from orchestrator.store.etcd.operations import Change, Put, Unchanged, end_of
from orchestrator.store.etcd.pb import etcd_pb2 as pb
from orchestrator.store.etcd.pulse import BEAT_S
from orchestrator.store.wall import wall_ms

# Reads in a row, each answered by a majority and a beat apart, in which no beat has come, for one that has heard none before. A busy
# machine misses two or three, and after an outage of etcd's the leader may find it again later than whoever reads.
SILENT_READS: Final = 8
_APART: Final = "give each fleet a prefix of its own, beside the others"
# Others that take over in the very moment: one of them wins each time.
_TRIES: Final = 5


def holder_name() -> str:
    """This process, for people."""
    return f"pid {os.getpid()} on {socket.gethostname()}"


async def take_over(client: EtcdClient, layout: Layout, instance: str, *, me: Introduction = Introduction(), silent: int = 0) -> Head:
    """Term + 1 under this instance's name. `silent`: the revision of the health of which is known already that nothing comes after it.

    HeldError when another one is alive, StateError when the prefix holds something else; EtcdError.
    """
    for _ in range(_TRIES):
        quiet = await _await_silence(client, layout, instance, silent)
        found = await client.read([layout.fleet, layout.leadership, layout.commit])
        _check(found, layout)
        if layout.fleet not in found:
            await _check_empty(client, layout)
        before = decode(LeadershipValue, found[layout.leadership]) if layout.leadership in found else None
        mine = LeadershipValue(
            term=before.term + 1 if before is not None else 1,
            instance=instance,
            holder=holder_name(),
            name=me.name,
            address=me.address,
            version=me.version,
            since_ms=wall_ms(),
        )
        # With the first beat: whoever wanted to take over too finds one that is alive.
        first = encode(HealthValue(instance=instance, holder=mine.holder, beat=0))
        changes: list[Change] = [Put(layout.leadership, encode(mine)), Put(layout.health, first)]
        if layout.fleet not in found:
            changes.append(Put(layout.fleet, encode(FleetValue(format=FORMAT, fleet_id=str(uuid.uuid4())))))
        if layout.commit not in found:
            changes.append(Put(layout.commit, encode(CommitValue(fleet_time_us=0, nonce=""))))
        guards = [_as_found(found, key) for key in (layout.fleet, layout.leadership)]
        # A beat that comes between is a sign of life.
        guards += [Unchanged(layout.health, quiet)] if quiet is not None else []
        await client.transact(guards, changes)
        # Whether that try or one before it, whose answer was lost: what counts is who stands there now.
        head = await read_head(client, layout)
        if head.leadership == mine:
            return head
    raise HeldError(f"the store {client.target} is being taken over by others at this moment")


async def _await_silence(client: EtcdClient, layout: Layout, instance: str, silent: int) -> int | None:
    """Until whoever wrote the health last is silent, or has gone: its revision then, 0: there is none. None: it is one's own.

    HeldError when there is a beat.
    """
    first = 0
    for _ in range(SILENT_READS):
        kv = (await client.read([layout.health])).get(layout.health)
        if kv is None:
            return 0
        health = decode(HealthValue, kv)
        if health.instance == instance:
            return None
        if first and kv.mod_revision != first:
            raise HeldError(f"the store is in use by {health.holder} ({client.target}): one orchestrator at a time may hold it")
        first = kv.mod_revision
        if first == silent:
            break
        await asyncio.sleep(BEAT_S)
    return first


def _check(found: Mapping[bytes, pb.KeyValue], layout: Layout) -> None:
    if layout.fleet not in found:
        return
    fleet = decode(FleetValue, found[layout.fleet])
    if fleet.format == UNFINISHED:
        raise StateError(f"the records of {layout.fleet.decode()} were never written to their end: repeat `atoll store restore`")
    if fleet.format != FORMAT:
        raise StateError(
            f"etcd key {layout.fleet.decode()} has format {fleet.format}, this version of Atoll reads {FORMAT}: "
            "run the version that wrote it"
        )


async def _check_empty(client: EtcdClient, layout: Layout) -> None:
    """StateError unless a new fleet may begin here: keys of the one would be taken for keys of the other."""
    below = (await client.range(layout.root, end_of(layout.root), limit=1, keys_only=True)).kvs
    # Unless another one began it in this moment: then nothing comes of what is based on there being none.
    if below and layout.fleet not in await client.read([layout.fleet]):
        raise StateError(f"below the prefix is {below[0].key.decode(errors='replace')}, of no fleet that is known here: {_APART}")
    await check_apart(client, layout)


async def check_apart(client: EtcdClient, layout: Layout) -> None:
    """StateError when the prefix lies within another fleet's."""
    for fleet in layout.fleets_above():
        try:
            above = (await client.range(fleet, keys_only=True)).kvs
        except EtcdDeniedError:
            continue  # what this user may not read it could not write either
        if above:
            raise StateError(f"the prefix lies within that of another fleet, which has {fleet.decode()}: {_APART}")


def _as_found(found: Mapping[bytes, pb.KeyValue], key: bytes) -> Unchanged:
    return Unchanged(key, found[key].mod_revision if key in found else 0)
