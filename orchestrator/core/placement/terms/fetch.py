"""T_fetch: how long until the weights are on the node's disk.

Unit: microseconds. Formula: 0 if resident or on the node's disk or in its memory; the remainder of a fetch in flight, to that node or
to its site (one flight per model and site); else bytes x (1 + flows) / origin rate. Source: `atoll.physics.coldstart`, the site's
declared or measured origin rate. Fails low when other sites crowd the origin store itself: its own capacity is not modelled here.
"""

from __future__ import annotations

from orchestrator.core.placement.rows import Out

NAME = "fetch"
COLUMN = Out.FETCH
