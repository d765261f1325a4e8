"""E_link: what a fetch costs besides its own time: those that share the site's way to its sources, and the owners of peer sites.

Unit: microseconds. Formula: egress price per GB x weights bytes x seconds_per_dollar / the priority's weight, of weights that leave
peer sites (with the term `net`; of several the dearest, as if it gave all); and link x own fetch alone x flows / (flows + 1) / the
priority's weight, while other fetches are under way to the site: each flow takes all it can get, so a link with one of them is full, and
those that are there are delayed by up to what is added. It counts where flows / (flows + 1), what they keep of the link beside one more, is
above the policy's `link_used_share`; 0: from the first. A link that had a use of its own would be priced from 70 % on; here that is 0.7,
and from the third flow.
Source: flows counted by the core, the fetch of the cost model; the policy's `link` and `link_used_share`; `egress_usd_micros_per_gb` of
links and sites. Fails high where the others were about to end. What peers' owners charge counts in the choice, not against a job's price
limit.
"""

from __future__ import annotations

from orchestrator.core.placement.rows import Out

NAME = "link"
COLUMN = Out.LINK
