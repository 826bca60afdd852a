"""Durations to buckets of an OTLP ExponentialHistogram, exactly, in columns.

At scale s, bucket i holds the values above 2**(i / 2**s) up to 2**((i + 1) / 2**s), that
included. A double's exponent gives whole powers of two; within one, the first bits of its
mantissa say between which two borders it can lie at most, and one comparison decides.

Source: https://opentelemetry.io/docs/specs/otel/metrics/data-model/#exponentialhistogram.
"""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]

# The finest scale: buckets are 0.27 % wide.
SCALE = 8
PER_OCTAVE = 1 << SCALE

_MANTISSA_BITS = 52
_MANTISSA = np.int64((1 << _MANTISSA_BITS) - 1)
_BIAS = 1023
# Cells of a power of two; narrower than the narrowest bucket, so that each has one border.
_CELL_BITS = 11
_CELL_SHIFT = _MANTISSA_BITS - _CELL_BITS
_NS_PER_S = 1e9


def _borders() -> list[int]:
    """Return the greatest mantissas that are not above 2**(k / 256), k from 0 on.

    By integers alone: 2**(52 + k / 256) is the 256th root of 2**(52 * 256 + k), and eight
    square roots, each rounded down, are that root rounded down.
    """
    borders = []
    for k in range(PER_OCTAVE):
        root = 1 << (_MANTISSA_BITS * PER_OCTAVE + k)
        for _ in range(SCALE):
            root = isqrt(root)
        borders.append(root - (1 << _MANTISSA_BITS))
    return borders


def _cells() -> tuple[I64, I64]:
    """Return, for each cell, the bucket that begins it and the border within it."""
    borders = np.array(_borders(), dtype=np.int64)
    begin = np.arange(1 << _CELL_BITS, dtype=np.int64) << _CELL_SHIFT
    passed = np.searchsorted(borders, begin, side="left")
    inside = np.append(borders, np.iinfo(np.int64).max)[passed]
    return passed.astype(np.int64) - 1, inside


_FIRST, _BORDER = _cells()


def indices(duration_ns: NDArray[np.int64]) -> I64:
    """Return the bucket at SCALE of each duration in seconds, (n,); they must be above 0.

    At a coarser scale s it is that, shifted right by SCALE - s.
    """
    bits = (duration_ns / _NS_PER_S).view(np.int64)
    mantissa = bits & _MANTISSA
    cell = mantissa >> _CELL_SHIFT
    found = ((bits >> _MANTISSA_BITS) - _BIAS) << SCALE
    found += _FIRST.take(cell)
    found += mantissa > _BORDER.take(cell)
    return found
