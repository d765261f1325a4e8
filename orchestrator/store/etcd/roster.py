"""Who leads and who stands by, as heard over one watch of `leadership` and what is behind it.

Decides how old a sign of life is: by when it was heard here, never by what another's clock says. Must not know what is done about it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from atoll.model.errors import StateError
from atoll.model.ids import Term
from atoll.model.limits import ORCHESTRATORS_MAX
from atoll.model.orchestrators import OrchestratorRole, OrchestratorView
from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.layout import Layout, LeadershipValue, StandbyValue, decode
from orchestrator.store.etcd.operations import end_of
from orchestrator.store.etcd.pb import etcd_pb2 as pb
from orchestrator.store.etcd.watch import Changes, Listing, follow


@dataclass(frozen=True, slots=True)
class _Heard:
    value: StandbyValue
    at_s: float


class Roster:
    """The orchestrators on one store."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._standbys: dict[bytes, _Heard] = {}
        self.leader: LeadershipValue | None = None

    def put(self, kv: pb.KeyValue) -> None:
        """A key has this value now. StateError when the leader's is none of ours; such a standby's is left out."""
        if kv.key == self._layout.leadership:
            self.leader = decode(LeadershipValue, kv)
        elif kv.key.startswith(self._layout.standbys) and (kv.key in self._standbys or len(self._standbys) < ORCHESTRATORS_MAX - 1):
            try:
                self._standbys[kv.key] = _Heard(decode(StandbyValue, kv), time.monotonic())
            except StateError:
                self.gone(kv.key)

    def gone(self, key: bytes) -> None:
        """A key is no more."""
        self._standbys.pop(key, None)

    def heard(self, event: pb.Event) -> None:
        """Either."""
        if event.type == pb.Event.DELETE:
            self.gone(event.kv.key)
        else:
            self.put(event.kv)

    async def follow(self, client: EtcdClient) -> AsyncGenerator[LeadershipValue]:
        """Who leads, after each change of who leads or stands by, for ever. StateError, EtcdError."""
        leadership = self._layout.leadership
        async with aclosing(follow(client, leadership, end_of(leadership))) as updates:
            async for update in updates:
                match update:
                    case Listing(kvs=kvs):
                        for kv in kvs:
                            self.put(kv)
                    case Changes(events=events):
                        for event in events:
                            self.heard(event)
                if self.leader is not None:
                    yield self.leader

    @property
    def others(self) -> bool:
        """Whether anybody stands by."""
        return bool(self._standbys)

    def views(self, *, leader_silent_s: float) -> tuple[OrchestratorView, ...]:
        """The leader, of whom nothing was heard for so long, then those that stand by, by name."""
        leader, now_s = self.leader, time.monotonic()
        if leader is None:
            return ()
        first = OrchestratorView(
            name=leader.name,
            address=leader.address,
            role=OrchestratorRole.LEADER,
            term=Term(leader.term),
            since_ms=leader.since_ms,
            last_beat_ms=round(leader_silent_s * 1_000),
            lag_ms=0,
            process=leader.holder,
            version=leader.version,
        )
        # One that has just taken over is not both.
        others = [heard for heard in self._standbys.values() if heard.value.instance != leader.instance]
        return first, *(_standby(heard, Term(leader.term), now_s) for heard in sorted(others, key=_by_name))


def _by_name(heard: _Heard) -> tuple[str, str, str]:
    return heard.value.name, heard.value.address, heard.value.instance


def _standby(heard: _Heard, term: Term, now_s: float) -> OrchestratorView:
    value = heard.value
    return OrchestratorView(
        name=value.name,
        address=value.address,
        role=OrchestratorRole.STANDBY,
        term=term,
        since_ms=value.since_ms,
        last_beat_ms=round((now_s - heard.at_s) * 1_000),
        lag_ms=value.lag_ms,
        process=value.holder,
        version=value.version,
    )
