"""Standing by: hear the leader's beats, keep what a takeover needs at hand, say that one is there, and notice when the beats stop.

Decides after what silence a takeover is tried. Safety does not rest on it: the takeover compares the health's revision, so that a leader
who was only slow keeps its place, and whoever is deposed finds the revision of the leadership changed. Must not know what records mean.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

from atoll.model.orchestrators import Introduction, OrchestratorView
from orchestrator.store.etcd import leading
from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.layout import Layout, StandbyValue, encode
from orchestrator.store.etcd.mirror import Mirror
from orchestrator.store.etcd.pb import etcd_pb2 as pb
from orchestrator.store.etcd.pulse import BEAT_S, Pulse
from orchestrator.store.etcd.roster import Roster
from orchestrator.store.etcd.target import EtcdTarget
from orchestrator.store.wall import wall_ms

_log = structlog.get_logger(__name__)

# Of a leader whose beats came one by one until then, so many are missing: 0.6 to 0.8 s.
SILENT_READS: Final = 3
# An answer that took longer came after an outage of etcd's. The leader's beats had to wait for its end too, and may come later than this.
_OUTAGE_S: Final = 1.0
# One try of a read. It goes to another member then.
_READ_S: Final = 0.5
# A watch is milliseconds behind, unless the member that it came from died with the leader: then everything is read, and that should begin.
_LEVEL_S: Final = 1.0
# That one stands by is worth a write a second.
_BEAT_S: Final = 1.0


class Standby:
    """One that stands by, from `begin` to `end`. Uses a client that is open; asks of another what only that one may do."""

    def __init__(self, client: EtcdClient, target: EtcdTarget, layout: Layout, instance: str, me: Introduction) -> None:
        self._client = client
        self._layout = layout
        self._roster = Roster(layout)
        self._heard_s = time.monotonic()
        # A revision of `commit` to which the mirror has to come up, and since when that is known.
        self._wanted_revision, self._wanted_since_s = 0, self._heard_s
        self.mirror = Mirror(client, layout, self._heard)
        self._mirroring: asyncio.Task[None] | None = None
        self._pulse = Pulse(target, key=layout.standby(instance), value=self._value(instance, me), guard=None, beat_s=_BEAT_S)

    def begin(self) -> None:
        """Say that one is there, and begin to read."""
        self._pulse.start()
        self._mirroring = asyncio.create_task(self._mirror())

    async def end(self) -> None:
        """Stand by no more, and say so."""
        if self._mirroring is not None:
            self._mirroring.cancel()
            await asyncio.gather(self._mirroring, return_exceptions=True)
        await asyncio.to_thread(self._pulse.stop)

    def views(self) -> tuple[OrchestratorView, ...]:
        """Who leads and who stands by."""
        return self._roster.views(leader_silent_s=time.monotonic() - self._heard_s)

    async def level(self, commit_revision: int) -> bool:
        """Whether the mirror has come up to this commit, or does so soon."""
        if not self.mirror.commit_revision:
            return False
        try:
            async with asyncio.timeout(_LEVEL_S):
                await self.mirror.level(commit_revision)
        except TimeoutError:
            _log.warning("not_level", advice="the store is read anew")
            return False
        return True

    async def until_silent(self) -> int:
        """The revision of the health after which no beat came; 0: the leader has said goodbye, or there was none. Raises EtcdError."""
        wanted, silent, last = leading.SILENT_READS, 0, -1
        while True:
            asked_s = time.monotonic()
            found = await self._client.read([self._layout.health, self._layout.leadership, self._layout.commit], try_s=_READ_S)
            if self._layout.leadership in found:
                self._roster.put(found[self._layout.leadership])
            self._compare(found[self._layout.commit].mod_revision if self._layout.commit in found else 0)
            health = found.get(self._layout.health)
            if health is None:
                return 0
            if health.mod_revision != last:
                wanted = SILENT_READS if last >= 0 else wanted
                last, silent, self._heard_s = health.mod_revision, 0, time.monotonic()
            else:
                silent += 1
            if time.monotonic() - asked_s > _OUTAGE_S:
                wanted, silent = leading.SILENT_READS, 0
            if silent >= wanted:
                return last
            await asyncio.sleep(BEAT_S)

    # --- how far the mirror is -----------------------------------------------------------------------------------------------

    @property
    def lag_ms(self) -> int | None:
        """For how long the mirror has been behind; None: it is still reading."""
        reached = self.mirror.commit_revision
        if not reached:
            return None
        return 0 if reached >= self._wanted_revision else round((time.monotonic() - self._wanted_since_s) * 1_000)

    def _compare(self, revision: int) -> None:
        if self.mirror.commit_revision >= self._wanted_revision:
            self._wanted_revision, self._wanted_since_s = revision, time.monotonic()

    def _heard(self, event: pb.Event) -> None:
        if event.kv.key.startswith(self._layout.leadership):
            self._roster.heard(event)
        elif event.kv.key == self._layout.health:
            self._heard_s = time.monotonic()

    async def _mirror(self) -> None:
        try:
            await self.mirror.run()
        except Exception as error:  # noqa: BLE001 - it is worth a warning; a takeover then reads everything itself
            _log.warning("not_followed", error=str(error), error_type=type(error).__name__)
            self.mirror.commit_revision = 0

    def _value(self, instance: str, me: Introduction) -> Callable[[int], bytes]:
        since_ms, holder = wall_ms(), leading.holder_name()

        def value(_beat: int) -> bytes:
            return encode(
                StandbyValue(
                    instance=instance,
                    holder=holder,
                    name=me.name,
                    address=me.address,
                    version=me.version,
                    since_ms=since_ms,
                    lag_ms=self.lag_ms,
                )
            )

        return value
