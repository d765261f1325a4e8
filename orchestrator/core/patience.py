"""Patience: how many jobs of a class are better off waiting for a busy place than with the one that can be had now.

Decides where waiting ends to pay. Must not change the queue or the fleet.
"""

from __future__ import annotations

from orchestrator.core.lines import line_at, pace
from orchestrator.core.placement.choose import Board
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.queue import Queue


def patience(queue: Queue, board: Board, bound: int, patient: int | None, key: ClassKey) -> int:
    """How many jobs of a class are better off waiting for the busy place than with the one that can be had.

    One waits only while the busy place would still serve it sooner, behind those of its class before it and behind the jobs of other
    classes that rest for the same slots: were they not counted, a hundred classes would queue for one slot.
    """
    gain_us = board.gain_us(bound, patient) if patient is not None else 0
    if patient is None or gain_us <= 0:
        return 0
    line = line_at(queue, board, patient, key)
    left_us = gain_us - line.work_us - line.passing_us
    return pace(board, patient, key, bound, before=line.jobs).jobs_within(left_us) if left_us >= 0 else 0
