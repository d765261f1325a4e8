"""Which key holds what. All keys of a fleet are below one prefix, so that a user of etcd's can be given just that.

Decides names, their order, and the few values that are not nouns of the model: JSON, for whoever looks at them with etcdctl. What is
kept of nouns is `atoll.wire.stored`'s. Must not know transactions.
"""

from __future__ import annotations

import struct
from typing import Final, TypeVar

import msgspec

from atoll.model.errors import StateError
from atoll.model.ids import AdapterId, ChangeSeq, JobId, ModelId, SiteId
from orchestrator.store.etcd.pb import etcd_pb2 as pb

# Grows with every change of the keys. A later one is refused: its values may mean something else.
FORMAT: Final = 1
# Of a fleet whose records are still being restored.
UNFINISHED: Final = 0
# A value is cut into parts of this size: far below what etcd takes in one request.
PART_BYTES: Final = 256 * 1024
_NUMBER: Final = struct.Struct(">Q")


class FleetValue(msgspec.Struct, frozen=True, kw_only=True):
    """Of `fleet`: written once."""

    format: int
    fleet_id: str


class LeadershipValue(msgspec.Struct, frozen=True, kw_only=True):
    """Of `leadership`: permanent, and written by a takeover only. Every write compares its revision; that is the fence.

    `holder`, `name`, `address`, `version` are told to others; `since_ms` is what people's clocks said.
    """

    term: int
    instance: str
    holder: str
    name: str = ""
    address: str = ""
    version: str = ""
    since_ms: int = 0


class StandbyValue(msgspec.Struct, frozen=True, kw_only=True):
    """Below `leadership/`: one that stands by; gone a while after it is. As LeadershipValue; `lag_ms` null: it is still loading."""

    instance: str
    holder: str
    name: str
    address: str
    version: str
    since_ms: int
    lag_ms: int | None


class HealthValue(msgspec.Struct, frozen=True, kw_only=True):
    """Of `health`: gone a while after its writer is. Who leads is not decided by it, only whether it is worth trying to take over."""

    instance: str
    holder: str
    beat: int


class CommitValue(msgspec.Struct, frozen=True, kw_only=True):
    """Of `commit`, which every commit replaces and compares: none is applied twice. `staged`: parts still to be carried out."""

    fleet_time_us: int
    nonce: str
    staged: int = 0


class PolicyValue(msgspec.Struct, frozen=True, kw_only=True):
    """Of `policy`."""

    name: str
    digest: str


Value = FleetValue | LeadershipValue | StandbyValue | HealthValue | CommitValue | PolicyValue
T = TypeVar("T", bound=Value)


class EndedValue(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Of `ended/`: what is known of a terminal job without reading it. `key` "": it has none, or a younger job has it."""

    n: int
    tenant: str
    key: str
    payload_digest: str
    state: str
    stopping: bool


_ENDED: Final = msgspec.msgpack.Decoder(EndedValue)


def encode(value: Value) -> bytes:
    """As JSON."""
    return msgspec.json.encode(value)


def decode(kind: type[T], kv: pb.KeyValue) -> T:
    """What `encode` wrote; StateError naming the key for anything else."""
    try:
        return msgspec.json.decode(kv.value, type=kind)
    except msgspec.MsgspecError as error:
        raise strange(kv, error) from error


def encode_ended(value: EndedValue) -> bytes:
    """As msgpack: there are very many."""
    return msgspec.msgpack.encode(value)


def decode_ended(kv: pb.KeyValue) -> EndedValue:
    """What `encode_ended` wrote; StateError naming the key for anything else."""
    try:
        return _ENDED.decode(kv.value)
    except msgspec.MsgspecError as error:
        raise strange(kv, error) from error


def strange(kv: pb.KeyValue, error: Exception) -> StateError:
    """What to say of a key that cannot be read."""
    key = kv.key.decode(errors="replace")
    return StateError(f"etcd key {key} holds what this program does not write ({error}): give the fleet a prefix of its own")


def numbered(number: int, blob: bytes) -> bytes:
    """A value with a number before it: a job's place in the order of acceptance, or what people's clocks said."""
    return _NUMBER.pack(number) + blob


def number_of(value: bytes) -> tuple[int, bytes]:
    """Both again. ValueError when there is no number."""
    if len(value) < _NUMBER.size:
        raise ValueError(f"{len(value)} bytes, and a number has {_NUMBER.size}")
    return _NUMBER.unpack_from(value)[0], value[_NUMBER.size :]


class Layout:
    """The keys below a prefix."""

    __slots__ = (
        "adapters", "audit", "commit", "demand", "done", "ended", "estimates", "fleet", "health", "leadership", "links", "live",
        "models", "pins", "policy", "pushes", "root", "sites", "staged", "standbys",
    )  # fmt: skip

    def __init__(self, prefix: str) -> None:
        root = self.root = f"{prefix}/".encode()
        self.fleet, self.leadership, self.commit, self.health = root + b"fleet", root + b"leadership", root + b"commit", root + b"health"
        self.policy = root + b"policy"
        # Right behind `leadership`: one watch hears of both.
        self.standbys = self.leadership + b"/"
        # Folders: what follows is behind a slash.
        self.live, self.done, self.ended = root + b"live/", root + b"done/", root + b"ended/"
        self.sites, self.models, self.adapters = root + b"site/", root + b"model/", root + b"adapter/"
        self.pins, self.pushes = root + b"pin/", root + b"push/"
        self.links, self.estimates, self.demand = root + b"links/", root + b"estimates/", root + b"demand/"
        self.audit, self.staged = root + b"audit/", root + b"staged/"

    def standby(self, instance: str) -> bytes:
        """One that stands by."""
        return self.standbys + instance.encode()

    def fleets_above(self) -> list[bytes]:
        """The keys `fleet` of the prefixes that this one lies within."""
        names = self.root.split(b"/")[:-1]
        return [b"/".join([*names[:above], b"fleet"]) for above in range(1, len(names))]

    def live_job(self, job_id: str) -> bytes:
        """A job that is not terminal: its number and the whole of it."""
        return self.live + job_id.encode()

    def done_job(self, job_id: str) -> bytes:
        """A terminal job: the whole of it."""
        return self.done + job_id.encode()

    def ended_job(self, ended_us: int, job_id: JobId) -> bytes:
        """An EndedValue, in the order in which jobs ended."""
        return self.ended + b"%016x/" % ended_us + job_id.encode()

    def ended_of(self, key: bytes) -> tuple[int, JobId]:
        """Both again. ValueError when it is no such key."""
        at, _, job_id = key.removeprefix(self.ended).partition(b"/")
        return int(at, 16), JobId(job_id.decode())

    def site(self, site_id: SiteId) -> bytes:
        """A SiteRecord."""
        return self.sites + site_id.encode()

    def model(self, model_id: ModelId) -> bytes:
        """A ModelSpec."""
        return self.models + model_id.encode()

    def adapter(self, adapter_id: AdapterId) -> bytes:
        """An AdapterSpec."""
        return self.adapters + adapter_id.encode()

    def pin(self, model_id: ModelId, site_id: SiteId) -> bytes:
        """A Pin."""
        return self.pins + model_id.encode() + b"/" + site_id.encode()

    def push(self, model_id: ModelId) -> bytes:
        """A Push."""
        return self.pushes + model_id.encode()

    def audit_line(self, seq: ChangeSeq | int) -> bytes:
        """An AuditEvent, and when it was written."""
        return self.audit + b"%016x" % seq

    def part(self, folder: bytes, number: int) -> bytes:
        """A part of a large value."""
        return folder + b"%06x" % number
