"""Fragmentation: a job on one GPU that would break the last whole block of a pool in which gangs of that size run.

Unit: microseconds. Formula: fragmentation_milli x half of what the job occupies the GPU for (see `money`) / the priority's weight, on a
cold row that can begin at once, while the free slots of the pool are exactly one block of g slots and a replica of gangs of g is there;
else 0. A gang that comes meanwhile waits half of that time on average until the block is whole again.
Source: free slots and resident replicas, counted by the core. Fails low where gangs are about to come to a pool for the first time, and
high where none comes any more while their replica is still resident.
"""

from __future__ import annotations

from orchestrator.core.placement.rows import Out

NAME = "fragmentation"
COLUMN = Out.FRAGMENT
