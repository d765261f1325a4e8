"""What a transaction compares and does, as values, and how large it may be.

Decides the limits: those that etcd has unless it is started with others. Must not know what keys mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from orchestrator.store.etcd.pb import etcd_pb2 as pb

# etcd's --max-txn-ops. It counts the operations of each branch, and compares, apart.
OPERATIONS_MAX: Final = 128
# etcd's --max-request-bytes is 1.5 MiB; the rest is for what surrounds keys and values.
REQUEST_BYTES_MAX: Final = 1_000_000
# Tags, lengths and the wrapping of one operation.
_OPERATION_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Put:
    """The key has this value from now on; while the lease lives (0: for good)."""

    key: bytes
    value: bytes = field(repr=False)
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """The key is gone, or every key of [key, end) is."""

    key: bytes
    end: bytes = b""


Change = Put | Delete


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Holds if the key was last changed at this revision; 0: it does not exist."""

    key: bytes
    mod_revision: int


def end_of(prefix: bytes) -> bytes:
    """The first key behind all that begin with `prefix`, which ends in a byte less than 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def bytes_of(change: Change) -> int:
    """What it adds to a request, roughly from above."""
    match change:
        case Put(key=key, value=value):
            return len(key) + len(value) + _OPERATION_BYTES
        case Delete(key=key, end=end):
            return len(key) + len(end) + _OPERATION_BYTES


def in_requests(changes: Iterable[Change], *, operations: int = OPERATIONS_MAX, size: int = REQUEST_BYTES_MAX) -> Iterator[list[Change]]:
    """The changes in order, in as few lists as etcd takes one by one; a change that is too large for any is alone in its own."""
    batch: list[Change] = []
    batch_bytes = 0
    for change in changes:
        change_bytes = bytes_of(change)
        if batch and (len(batch) >= operations or batch_bytes + change_bytes > size):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(change)
        batch_bytes += change_bytes
    if batch:
        yield batch


def transaction(guards: Sequence[Unchanged], changes: Sequence[Change], otherwise: Sequence[bytes] = ()) -> pb.TxnRequest:
    """All `changes` if every guard holds; else nothing, and the keys of `otherwise` are read."""
    return pb.TxnRequest(
        compare=[
            pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.MOD, key=guard.key, mod_revision=guard.mod_revision) for guard in guards
        ],
        success=[_operation(change) for change in changes],
        failure=[pb.RequestOp(request_range=pb.RangeRequest(key=key)) for key in otherwise],
    )


def _operation(change: Change) -> pb.RequestOp:
    match change:
        case Put(key=key, value=value, lease=lease):
            return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease))
        case Delete(key=key, end=end):
            return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=end))
