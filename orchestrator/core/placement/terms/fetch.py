"""T_fetch: how long until the weights are on the node's disk.

Unit: microseconds. Formula: 0 if resident or on the node's disk or in its memory; the remainder of a fetch in flight, to that node or
to its site (one flight per model and site); else (1 + flows) x the least of bytes / origin rate and, over sets of peer sites that hold the
weights on a disk and serve them, and perhaps the origin store, longest RTT + bytes / min(sum of rates, the site's own link). A peer's rate
is the least of link and its own link, / (1 + what it gives to others already); one that is charged for must be that much quicker
(`sources`). Source: the site's declared or measured origin rate, `links`, `weights_url` and `wan_gbit_per_s` of the fleet file, flows
counted by the core; the own link is the declared one, or the measured origin rate where that is more. Fails low when other sites crowd
the origin store: its own capacity is not modelled here. And where a flow that shares a peer's link began later: it slows down what was
predicted without it.
"""

from __future__ import annotations

from orchestrator.core.placement.rows import Out

NAME = "fetch"
COLUMN = Out.FETCH
