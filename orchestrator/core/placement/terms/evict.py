"""E_evict: what it costs others that replicas leave to make room.

Unit: microseconds. Formula: k_e x sum over victims of their price / the priority's weight; prices are those of `placement.eviction`.
Source: demand, copies, reload times; for a place that is waited for, of the slot that should be free first.
Fails where demand jumps, and where another slot comes free than the one that was looked at.
"""

from __future__ import annotations

from orchestrator.core.placement.rows import Out

NAME = "evict"
COLUMN = Out.EVICT
