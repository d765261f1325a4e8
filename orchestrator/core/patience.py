"""Patience: how many jobs of a class are better off waiting for a busy place than with the one that can be had now.

Decides where waiting ends to pay. Must not change the queue or the fleet.
"""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.core.placement.choose import Board
from orchestrator.core.placement.classes import ClassKey
from orchestrator.core.queue import Queue


class Line(NamedTuple):
    """Who rests for the busy place of a row. Times are by how much they put off whoever comes after: several slots serve them."""

    jobs: int
    work_us: int  # all of them
    each_us: int  # one job of the class that asks


def patience(queue: Queue, board: Board, bound: int, patient: int | None, key: ClassKey, *, at_place: int) -> int:
    """How many jobs of a class are better off waiting for the busy place than with the one that can be had; `at_place` rest for it now.

    One waits only while the busy place would still serve it sooner, behind those of its class before it and behind the jobs of other
    classes that rest for the same place: were they not counted, a hundred classes of a model would queue for its one replica.
    """
    gain_us = board.gain_us(bound, patient) if patient is not None else 0
    if patient is None or gain_us <= 0:
        return 0
    line = line_at(queue, board, patient, key)
    left_us = gain_us - max(line.work_us - at_place * line.each_us, 0)
    return left_us // line.each_us + 1 if left_us >= 0 else 0


def line_at(queue: Queue, board: Board, patient: int, key: ClassKey) -> Line:
    """The line at the busy place of a row, which its own work makes up: twenty films before a picture are twenty films."""
    column, cold = board.column(patient), board.is_cold(patient)
    servers = column.pool.spec.slots if cold else column.copies(key.model_id)
    jobs, work_us = queue.resting.at(patient % board.pools, key.rank, None if cold else key.model_id)
    return Line(jobs=jobs, work_us=work_us // servers, each_us=max(hold_us(board, patient) // servers, 1))


def hold_us(board: Board, row: int) -> int:
    """For how long a job would hold the slot that a row waits for: it executes, and loads before if the row is cold."""
    return board.delay_us(row) - board.wait_us(row) if board.is_cold(row) else int(board.estimate.execution_us[row])
