"""The churn guard: a copy of a model beyond its target + 1 must beat the copies there are by more than half its reload time.

Unit: microseconds. Formula: (fetch + stage + init) / 2 of a cold row while the model has more copies than its target and the job could run
on one of them, now or after waiting, unless the row without it beats the best of these by more than that; else 0.
Source: copies counted by the core, targets of the residency loop. Fails low where a model's demand has just outgrown its target: the best
copy is compared as if nobody else waited for it.
"""

from __future__ import annotations

from orchestrator.core.placement.rows import Out

NAME = "churn"
COLUMN = Out.CHURN
