"""T_fetch: how long until the weights are on the node's disk.

Unit: microseconds. Formula: 0 if resident or on the node's disk or in its memory; the remainder of a fetch in flight, to that node or
to its site (one flight per model and site); else the least of bytes x (1 + flows) / origin rate and, over peer sites that hold the weights
on a disk and serve them, (RTT + bytes / min(link rate, the two sites' links)) x (1 + flows); a peer that is charged for must be that much
quicker (`sources`). Source: the site's declared or measured origin rate, `links` and `weights_url` of the fleet file. Fails low when other
sites crowd the origin store or the peer itself: their own capacity is not modelled here. One source is read at a time: rates do not add up.
"""

from __future__ import annotations

from orchestrator.core.placement.rows import Out

NAME = "fetch"
COLUMN = Out.FETCH
