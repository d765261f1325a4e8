"""Ids: one NewType per noun, and the one place that says which characters they may hold.

Decides what a legal name is. Must not know where names come from.
"""

from __future__ import annotations

import re
from typing import NamedTuple, NewType

from atoll.model.errors import FieldError

JobId = NewType("JobId", str)
SiteId = NewType("SiteId", str)
PoolId = NewType("PoolId", str)
NodeId = NewType("NodeId", str)
ModelId = NewType("ModelId", str)
AdapterId = NewType("AdapterId", str)
# What code is compiled for, and under what it is kept (`atoll.model.compiled`).
FormId = NewType("FormId", str)
ArtifactKey = NewType("ArtifactKey", str)
TenantId = NewType("TenantId", str)
GpuTypeId = NewType("GpuTypeId", str)
FleetId = NewType("FleetId", str)
# Which orchestrator may write: grows by one at each takeover.
Term = NewType("Term", int)
# Number of one state of a site's assignment; grows within a term.
Generation = NewType("Generation", int)
# Number of an event in an agent's outbox, from 1; survives the agent's restart.
EventSeq = NewType("EventSeq", int)
# The fencing token of an attempt: from 1 within its job.
Ordinal = NewType("Ordinal", int)
# Number of a change that watchers see; grows over the life of the fleet.
ChangeSeq = NewType("ChangeSeq", int)

# Names end up in paths, labels and URLs: no slash, no leading dot or dash, 63 as in DNS labels.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?\Z")
# GPU types keep the spelling of the data sheet ("H100-SXM").
_GPU_TYPE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.+-]{0,61}[A-Za-z0-9])?\Z")
_KEY = re.compile(r"[\x21-\x7e]{1,128}\Z")

NAME_RULE = "1 to 63 of a-z, 0-9, '.', '_' and '-', beginning and ending with a letter or digit, without '..'"
GPU_TYPE_RULE = "the name of a GPU type such as 'H100-SXM': 1 to 63 of letters, digits, '.', '+' and '-'"
KEY_RULE = "1 to 128 printable ASCII characters without spaces"


def parse_name(field: str, value: object) -> str:
    """`value` if it is a legal name; else FieldError for `field`."""
    if not isinstance(value, str) or not _NAME.match(value) or ".." in value:
        raise FieldError(field, value, NAME_RULE)
    return value


def parse_gpu_type(field: str, value: object) -> GpuTypeId:
    """`value` if it can name a GPU type (whether the catalogue has it is another question); else FieldError."""
    if not isinstance(value, str) or not _GPU_TYPE.match(value) or ".." in value:
        raise FieldError(field, value, GPU_TYPE_RULE)
    return GpuTypeId(value)


def parse_key(field: str, value: object) -> str:
    """`value` if it can be an idempotency key; else FieldError."""
    if not isinstance(value, str) or not _KEY.match(value):
        raise FieldError(field, value, KEY_RULE)
    return value


class AttemptKey(NamedTuple):
    """One try to run a job: `(job, ordinal)`. A named tuple, as `SlotRef` is:
    both are keys of the largest tables, and a tuple is hashed at once."""

    job_id: JobId
    ordinal: Ordinal

    def __str__(self) -> str:
        return f"{self.job_id}/{self.ordinal}"


class SlotRef(NamedTuple):
    """One GPU of one node of one pool of a site. `index` counts from 0 within the node."""

    pool_id: PoolId
    node_id: NodeId
    index: int  # type: ignore[assignment]  # of the GPU; nobody looks for a name in a slot's
