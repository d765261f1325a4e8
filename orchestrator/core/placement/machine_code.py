"""Loops over tables as machine code, where numba is installed, and when code that was kept may be used again.

Decides only these: everything that is compiled has a twin in `vectors`, and runs as plain Python too. Must not know what they do.

A compiled loop holds whatever it calls and the constants that it reads, also those of other modules; numba asks only whether the loop's own
file is as it was. So what is kept goes by a digest of all of it: an upgrade in place compiles again just what has become different. What a
loop calls must stand above it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, TypeVar, cast

try:
    import numba
    from numba.core.options import DefaultOptions
except ImportError:  # the optional extra `fast` is not installed
    numba = DefaultOptions = None

COMPILED: Final = numba is not None
F = TypeVar("F", bound=Callable[..., Any])
# Of 64 bits: no two versions of a loop will ever have the same.
_DIGITS: Final = 16
# What was compiled, by the name it is kept under: a file's name begins with it.
KEPT: Final[dict[str, Any]] = {}
# Not to count references is private to numba: a later one that has no word for it counts them.
_OPTIONS: Final[dict[str, object]] = {"error_model": "numpy"} | ({"_nrt": False} if hasattr(DefaultOptions, "_nrt") else {})


def jit(function: F) -> F:
    """`function` as machine code where numba is installed. What is compiled is kept beside the sources, or where they are read-only in the
    user's cache folder, so that only the first start pays; each start pays where neither can be written.

    It reads and writes the tables that it is given, and makes none: so nobody counts references to them, which takes as long as all the
    rest. A division by zero, which would be our mistake, is not looked for either."""
    return function if numba is None else cast(F, _compiled(function, _OPTIONS))


def jit_making_tables(function: F) -> F:
    """`function` as machine code where numba is installed, as `jit`; it makes tables of its own."""
    return function if numba is None else cast(F, _compiled(function, {}))


def _compiled(function: Callable[..., Any], options: dict[str, object]) -> object:
    plain = cast(FunctionType, function)
    # numba names the files that it keeps by the function's name.
    named = FunctionType(plain.__code__, plain.__globals__, plain.__name__, plain.__defaults__, plain.__closure__)
    named.__qualname__ = f"{plain.__name__}_{digest(plain, options)}"
    named.__module__, named.__doc__, named.__annotations__ = plain.__module__, plain.__doc__, plain.__annotations__
    try:
        compiled = numba.njit(cache=True, **options)(named)
    except RuntimeError:  # no folder can be written to
        compiled = numba.njit(**options)(named)
    KEPT[named.__qualname__] = compiled
    return compiled


def digest(function: FunctionType, options: Mapping[str, object]) -> str:
    """Of all that the machine code of a function is made from: its own code, the constants of modules that it reads, what it calls, and
    the compiler's options.

    TypeError: it reads something else, of which nobody could say whether it is as it was."""
    if function.__closure__:
        raise TypeError(f"{function.__qualname__} reads variables of another function: pass them to it")
    parts: list[object] = [sorted(options.items())]
    _tell_code(function.__code__, function, parts)
    return sha256(repr(parts).encode()).hexdigest()[:_DIGITS]


def _tell_code(code: CodeType, function: FunctionType, parts: list[object]) -> None:
    parts += (code.co_code, code.co_names, code.co_varnames, function.__defaults__)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _tell_code(constant, function, parts)
        else:
            parts.append(constant)
    for name in code.co_names:
        if name not in function.__globals__:
            continue  # of the language, or an attribute
        value = function.__globals__[name]
        if isinstance(value, int):
            parts += (type(value).__name__, int(value))
        elif isinstance(value, tuple) and all(type(part) is int for part in value):
            parts.append(value)
        elif hasattr(value, "py_func"):
            parts.append(value.py_func.__qualname__)
        elif not isinstance(value, ModuleType | type):
            raise TypeError(f"{function.__qualname__} reads {name}: compiled code reads whole numbers and calls what is compiled, no more")
