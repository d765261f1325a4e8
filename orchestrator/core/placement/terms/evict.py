"""E_evict: what it costs others that replicas leave to make room.

Unit: microseconds. Formula: k_e x sum over victims of their price / the priority's weight; prices are those of `placement.eviction`.
Source: demand, copies, reload times. Fails where demand jumps, and before a busy slot is free: what will have to leave it is not priced
while it is only waited for.
"""

from __future__ import annotations

from orchestrator.core.placement.rows import Out

NAME = "evict"
COLUMN = Out.EVICT
