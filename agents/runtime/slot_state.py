"""What an agent and the process of a slot say to each other: options, what is found, and notices.

Decides the form only, and its version. Importing it costs nothing: no Ray, no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agents.core.events import (
    AttemptAdvanced,
    ReplicaAdapted,
    ReplicaAdaptFailed,
    ReplicaEvicted,
    ReplicaLoaded,
    ReplicaLoadFailed,
)
from agents.runtime.execution import MemberEnd
from atoll.model.ids import AttemptKey, FormId, ModelId, SlotRef
from atoll.model.replica import ReplicaFact

# Raised when calls or answers of the actor change: an agent of another version starts the process anew.
ACTOR_VERSION: Final = 5
# Told to stop because its time is over, an attempt may finish the step it is in. No step of a published model takes this
# long; one that does hangs, and then only the end of the process frees the slot.
STUCK_GRACE_S: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotOptions:
    """What a slot's process is. `visible_device`: the NVIDIA device as CUDA knows it, "" for a CPU. `share_compiled`: as the operator
    said of this site."""

    slot: SlotRef
    work_dir: Path
    cache_dir: Path
    cache_bytes: int
    share_compiled: bool = False
    visible_device: str = ""
    threads: int = 1
    stuck_grace_s: float = STUCK_GRACE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotState:
    """What an agent finds when it comes: `ended` is the last attempt's end, if nobody has taken it over."""

    version: int
    pid: int
    seq: int
    replicas: tuple[ReplicaFact, ...]
    digests: tuple[tuple[ModelId, int, str], ...]  # model, gang size, and digest of the replicas' weights
    running: AttemptKey | None
    ended: MemberEnd | None
    gang_size: int = 1  # of the attempt that runs, else of the one that ended
    forms: tuple[FormId, ...] = ()  # whose code is on the node's disk
    fresh: bool = False  # it has generated nothing yet

    @property
    def key(self) -> AttemptKey | None:
        """The attempt that the agent has to hear of, if there is one."""
        return self.running or (self.ended.key if self.ended is not None else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadMeasured:
    """Beside ReplicaLoaded: which weights, and the rates that the load measured, bytes per second; None: it measured none."""

    model_id: ModelId
    weights_digest: str
    disk_bytes_per_s: int | None
    h2d_bytes_per_s: int | None
    gang_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeHeld:
    """All forms whose code is on the node's disk now."""

    forms: tuple[FormId, ...]


Notice = (
    AttemptAdvanced
    | MemberEnd
    | ReplicaLoaded
    | ReplicaLoadFailed
    | ReplicaAdapted
    | ReplicaAdaptFailed
    | ReplicaEvicted
    | LoadMeasured
    | CodeHeld
)
