"""How full etcd is, and from when on nothing new is accepted.

Decides the bound: a full etcd refuses everything that is written, the ends of jobs and the lease of its leader among them, so the last part
of its space is kept for what was accepted. Must not know how jobs are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from orchestrator.store.etcd.pb import etcd_pb2 as pb

# etcd's own where --quota-backend-bytes is not given; before 3.6 nobody can be asked for it.
DEFAULT_QUOTA_BYTES: Final = 2 * 1024**3
# Of the rest, 15 %: the ends of 100,000 jobs are 0.3 GB.
ADMISSION_PERCENT: Final = 85
_MB: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fullness:
    """What one member says of itself. `quota_bytes` 0: it does not say. `used_bytes` is what its file holds, free pages included."""

    used_bytes: int
    live_bytes: int
    quota_bytes: int
    alarms: tuple[str, ...] = ()


def fullness_of(status: pb.StatusResponse) -> Fullness:
    """What a member answered."""
    # Among its errors is also that it sees no leader: no alarm, and it passes.
    alarms = tuple(error.strip() for error in status.errors if "alarm:" in error)
    return Fullness(used_bytes=status.dbSize, live_bytes=status.dbSizeInUse, quota_bytes=status.dbSizeQuota, alarms=alarms)


def why_shed(members: list[Fullness], quota_bytes: int) -> str:
    """Why no new job may be accepted, for whoever wanted one; "": it may. The fullest member counts. `quota_bytes`: where none says."""
    alarms = sorted({alarm for one in members for alarm in one.alarms})
    if alarms:
        return f"the store's etcd has raised an alarm ({', '.join(alarms)}): what runs goes on, nothing new is accepted"
    fullest = max(members, key=lambda one: one.used_bytes / (one.quota_bytes or quota_bytes), default=None)
    if fullest is None:
        return ""
    quota = fullest.quota_bytes or quota_bytes
    if fullest.used_bytes * 100 < quota * ADMISSION_PERCENT:
        return ""
    return (
        f"the store's etcd is {fullest.used_bytes * 100 // quota} % full ({fullest.used_bytes // _MB} of {quota // _MB} MB, of which "
        f"{fullest.live_bytes // _MB} MB are in use): from {ADMISSION_PERCENT} % on nothing new is accepted"
    )
