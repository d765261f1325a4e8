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

# Reads in a row, each answered by a majority and a beat apart, in which no beat has come. A busy machine misses two or three.
SILENT_READS: Final = 8
_APART: Final = "give each fleet a prefix of its own, beside the others"
# Others that take over in the very moment: one of them wins each time.
_TRIES: Final = 5


def holder_name() -> str:
    """This process, for people."""
    return f"pid {os.getpid()} on {socket.gethostname()}"


async def take_over(client: EtcdClient, layout: Layout, instance: str) -> Head:
    """Term + 1 under this instance's name. StateError when another one is alive, or the prefix holds something else; EtcdError."""
    for _ in range(_TRIES):
        await _await_silence(client, layout, instance)
        found = await client.read([layout.fleet, layout.leadership, layout.commit])
        _check(found, layout)
        if layout.fleet not in found:
            await _check_empty(client, layout)
        before = decode(LeadershipValue, found[layout.leadership]) if layout.leadership in found else None
        mine = LeadershipValue(term=before.term + 1 if before is not None else 1, instance=instance, holder=holder_name())
        changes: list[Change] = [Put(layout.leadership, encode(mine))]
        if layout.fleet not in found:
            changes.append(Put(layout.fleet, encode(FleetValue(format=FORMAT, fleet_id=str(uuid.uuid4())))))
        if layout.commit not in found:
            changes.append(Put(layout.commit, encode(CommitValue(fleet_time_us=0, nonce=""))))
        guards = [_as_found(found, key) for key in (layout.fleet, layout.leadership)]
        await client.transact(guards, changes)
        # Whether that try or one before it, whose answer was lost: what counts is who stands there now.
        head = await read_head(client, layout)
        if head.leadership == mine:
            return head
    raise StateError(f"the store {client.target} is being taken over by others at this moment")


async def _await_silence(client: EtcdClient, layout: Layout, instance: str) -> None:
    """Until whoever wrote the health last is silent, or has gone. StateError when there is a beat."""
    first = 0
    for _ in range(SILENT_READS):
        kv = (await client.read([layout.health])).get(layout.health)
        if kv is None:
            return
        health = decode(HealthValue, kv)
        if health.instance == instance:
            return
        if first and kv.mod_revision != first:
            raise StateError(f"the store is in use by {health.holder} ({client.target}): one orchestrator at a time may hold it")
        first = kv.mod_revision
        await asyncio.sleep(BEAT_S)


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
    if below:
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
