"""T_queue: how long the slot is busy with work at this or a higher priority.

Unit: microseconds. Formula: predicted end of the slot's last bound attempt minus now, by step progress where it executes;
0 if the slot is free. Source: the core's own reservations, corrected by reports. Fails low when a running attempt is slower than
predicted and its steps are not yet reported.
"""

from __future__ import annotations

from orchestrator.core.placement.rows import Out

NAME = "queue"
COLUMN = Out.WAIT
