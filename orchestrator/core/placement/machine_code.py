"""Loops over tables as machine code, where numba is installed.

Decides only whether they are: everything that is compiled has a twin in `vectors`, and runs as plain Python too. Must not know what
they do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

try:
    import numba
except ImportError:  # the optional extra `fast` is not installed
    numba = None

COMPILED: Final = numba is not None
F = TypeVar("F", bound=Callable[..., Any])


def jit(function: F) -> F:
    """`function` as machine code where numba is installed. Compiled code is kept beside this file, so that only the first start pays."""
    return function if numba is None else cast(F, numba.njit(cache=True)(function))
