"""E_tardy: what a deadline makes of the delay.

Unit: microseconds. Formula: for a job with a deadline, minus the delay itself where 95 of 100 such predictions end in time (slow and cheap
GPUs then absorb the slack work), else w_D x the expected lateness of a normal error (`lateness`); 0 for a job without one. Source: the
job's deadline, the policy's w_D, and how wide errors are for such a start at such a pool (`learning.widths`; before anything is seen the
policy's spread). Fails where errors are not normal: loads of two modes are late more often than their width says, and then by less.
"""

from __future__ import annotations

from orchestrator.core.placement.rows import Out

NAME = "deadline"
COLUMN = Out.TARDY
