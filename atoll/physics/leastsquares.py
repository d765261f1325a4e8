"""Small systems of normal equations, solved in plain floats and always in the same order.

Decides nothing about what is fitted. No numpy: this package must give the same bits wherever Python runs.
"""

from __future__ import annotations

import math
from operator import mul

Matrix = list[list[float]]


def solve(matrix: Matrix, right: list[float]) -> list[float]:
    """x of `matrix x = right` for a symmetric positive definite matrix, by Cholesky; `matrix` is overwritten with its factor."""
    size = len(right)
    for row in range(size):
        line = matrix[row]
        for column in range(row + 1):
            other = matrix[column]
            rest = line[column] - sum(map(mul, line[:column], other))
            line[column] = math.sqrt(rest) if row == column else rest / other[column]
    forward: list[float] = []
    for row in range(size):
        line = matrix[row]
        forward.append((right[row] - sum(map(mul, line[:row], forward))) / line[row])
    found = [0.0] * size
    for row in range(size - 1, -1, -1):
        rest = forward[row] - sum(matrix[below][row] * found[below] for below in range(row + 1, size))
        found[row] = rest / matrix[row][row]
    return found
