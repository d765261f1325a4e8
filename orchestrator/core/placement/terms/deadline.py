"""E_tardy: what a deadline makes of the delay.

Unit: microseconds. Formula: for a job with a deadline, minus the delay itself where 95 of 100 such predictions end in time (slow and cheap
GPUs then absorb the slack work), else w_D x the predicted lateness; 0 for a job without one. Source: the job's deadline, the policy's
w_D and spread. Fails where predictions are worse than the spread says.
"""

from __future__ import annotations

from orchestrator.core.placement.rows import Out

NAME = "deadline"
COLUMN = Out.TARDY
