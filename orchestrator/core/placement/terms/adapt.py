"""T_adapt: bringing the adapters to a replica that it lacks.

Unit: microseconds. Formula: sum over the adapters that the row's replica lacks of fetch + patch; the fetch is 0 where the file is on the
disk of the replica's node, else the least of bytes / origin rate and, over peer sites that have it, RTT + bytes / rate. 0 where the
replica holds all of them; all of them where it has to be loaded. Of a pool's replicas that lack some, a free one goes first, then the one
that is adapted soonest: when it is free plus what it lacks. A gang's block lacks what the slot does that lacks most. The file is read from
disk into the replica: host memory is no tier of adapters. The factor `adapt` that was learned multiplies the sum.
Source: what sites report of replicas and disks, and what bound jobs will put there (`presence`); `atoll.physics.coldstart.patch_us`; the
ways of each adapter (`sources`). Fails high where files come while the slot is still at work or the weights are on their way, where one is
on its way to the node already, and where a cold load goes to a node that has them: each is counted as if it came by itself. Fails high
where a busy replica lacks less than the free one that goes first, and for a gang where another of its blocks does. Fails low where a
replica is full, and those that leave for the new ones are wanted again.
"""

from __future__ import annotations

from orchestrator.core.placement.inputs import Inputs
from orchestrator.core.placement.rows import Ints

NAME = "adapt"


def cost_us(inputs: Inputs) -> Ints:
    """Microseconds of fetching and patching, per row."""
    return inputs.adapt_us
