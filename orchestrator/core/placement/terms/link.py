"""E_link: what one more fetch costs those that share the way to the origin.

Unit: microseconds. Formula: link x own fetch alone x flows / (flows + 1) / the priority's weight, while other fetches are under way to the
site: each flow takes all it can get, so a link with one of them is full, and those that are there are delayed by up to what is added.
Source: flows counted by the core, the fetch of the cost model; the policy's `link`. Fails high where the others were about to end.
"""

from __future__ import annotations

from orchestrator.core.placement.rows import Out

NAME = "link"
COLUMN = Out.LINK
