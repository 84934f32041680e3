"""Random numbers that are a function of what they are for: (seed, epoch, index, view), and nothing else.

A counter-based generator: a key is hashed from its parts, the n-th number of a key from the key and n. No
state is carried from one number to the next, so a sample's randomness is the same whichever worker, rank or
restarted process asks for it, alone or in a batch.
"""

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def keys(*parts: int | NDArray[np.int64]) -> Keys:
    """Hash integers to one 64-bit key, or arrays of them (broadcast together) to an array of keys."""
    key: Keys = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            key = _mix(key + _GOLDEN + _mix(np.asarray(part).astype(np.uint64)))
    return key if any(np.ndim(p) for p in parts) else key[:1]


def uniforms(key: Keys, count: int, first: int = 0) -> NDArray[np.float64]:
    """Return numbers `first` to `first + count` of each key (b,), uniform in [0, 1), as (b, count)."""
    counters = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        bits = _mix(key[:, None] + counters * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(count: int, *parts: int) -> NDArray[np.int64]:
    """Return a random order of range(count). Element i's rank depends on (parts, i) alone."""
    return np.argsort(keys(*parts, np.arange(count)), kind="stable")


def _mix(x: Keys) -> Keys:
    # The finalizer of SplitMix64 (Steele, Lea and Flood 2014).
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
