"""Logarithms of ratios in integers: exact on every machine, so that a replay of what was learned is one too.

Decides the unit of this package: a log is an integer number of 2^-16 octaves (log2 x 65536); 656 of them are one percent of an octave,
about 0.7 % of a ratio. A libm may differ from another in the last bit, and one bit moves a rounded factor once in a while; a table of 257
entries, made by repeated squaring, does not. Interpolating it is off by less than one unit. Must not know what the ratios are of.
"""

from __future__ import annotations

from math import isqrt
from typing import Final

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

ONE: Final = 1 << 16
_TABLE_BITS: Final = 8
_TABLE: Final = 1 << _TABLE_BITS
# Bits kept of a number whose log is taken, and of a table's powers.
_MANTISSA_BITS: Final = 30
_STEP_BITS: Final = 16 - _TABLE_BITS


def _log2_exactly(numerator: int, denominator: int, bits: int) -> int:
    """log2 of a ratio in [1, 2), in 2^-bits, rounded down: bit by bit, by squaring in 128-bit fixed point."""
    scale = 128
    x = (numerator << scale) // denominator
    result = 0
    for _ in range(bits):
        x = x * x >> scale
        result <<= 1
        if x >> (scale + 1):
            x >>= 1
            result |= 1
    return result


def _power_exactly(numerator: int) -> int:
    """2^(numerator / 256) in 2^-30: by as many square roots of 2 as the fraction has bits."""
    scale = 120
    root, result = 2 << scale, 1 << scale
    for bit in range(_TABLE_BITS - 1, -1, -1):
        root = isqrt(root << scale)
        if numerator >> bit & 1:
            result = result * root >> scale
    return (result + (1 << (scale - _MANTISSA_BITS - 1))) >> (scale - _MANTISSA_BITS)


# In 2^-24, so that only the sum is rounded.
_LOGS: Final = (*(_log2_exactly(_TABLE + index, _TABLE, 24) for index in range(_TABLE)), ONE << 8)
_POWERS: Final = tuple(_power_exactly(index) for index in range(_TABLE)) + (2 << _MANTISSA_BITS,)
_POWERS_ARRAY: Final = np.array(_POWERS, dtype=np.int64)


def log2(value: int) -> int:
    """log2 of a positive integer."""
    bits = value.bit_length() - 1
    mantissa = value << (_MANTISSA_BITS - bits) if bits <= _MANTISSA_BITS else value >> (bits - _MANTISSA_BITS)
    index = (mantissa >> (_MANTISSA_BITS - _TABLE_BITS)) - _TABLE
    rest = mantissa & ((1 << (_MANTISSA_BITS - _TABLE_BITS)) - 1)
    low = _LOGS[index]
    return (bits << 16) + ((low + ((_LOGS[index + 1] - low) * rest >> (_MANTISSA_BITS - _TABLE_BITS)) + 128) >> 8)


def log_ratio(numerator: int, denominator: int) -> int:
    """log2 of a ratio of two positive integers."""
    return log2(numerator) - log2(denominator)


def times(value: int, log: int) -> int:
    """A non-negative integer times 2^log, rounded down."""
    fraction = log & (ONE - 1)
    index = fraction >> _STEP_BITS
    low = _POWERS[index]
    power = low + ((_POWERS[index + 1] - low) * (fraction & ((1 << _STEP_BITS) - 1)) >> _STEP_BITS)
    shift = _MANTISSA_BITS - (log >> 16)
    return value * power >> shift if shift >= 0 else value * power << -shift


def milli(log: int) -> int:
    """2^log in thousandths, rounded; log within [-20, 20] octaves. The same integer as `millis` gives."""
    fraction = log & (ONE - 1)
    index = fraction >> _STEP_BITS
    low = _POWERS[index]
    power = low + ((_POWERS[index + 1] - low) * (fraction & ((1 << _STEP_BITS) - 1)) >> _STEP_BITS)
    shift = _MANTISSA_BITS - (log >> 16)
    return (power * 1_000 + (1 << (shift - 1))) >> shift


def millis(logs: Ints) -> Ints:
    """2^log in thousandths, for an array."""
    fraction = logs & (ONE - 1)
    index = fraction >> _STEP_BITS
    low = _POWERS_ARRAY[index]
    power = low + ((_POWERS_ARRAY[index + 1] - low) * (fraction & ((1 << _STEP_BITS) - 1)) >> _STEP_BITS)
    shift = _MANTISSA_BITS - (logs >> 16)
    return np.asarray((power * 1_000 + (np.int64(1) << (shift - 1))) >> shift, dtype=np.int64)


def nats_milli(log: int) -> int:
    """The log as thousandths of a natural logarithm, in which the gates are stated."""
    return (log * 693_147 + (ONE * 500)) // (ONE * 1_000)
