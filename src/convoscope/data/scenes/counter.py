"""Random numbers as a pure function of counters: the same on every platform and in every version.

splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), integers only.
"""

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    """The finalizer of splitmix64: a bijection of the 64-bit integers that scatters its input."""
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def hashed(*keys: int) -> int:
    """A 64-bit integer that depends on every key and on their order."""
    state = 0
    for key in keys:
        state = mix(state + _GOLDEN + mix(key))
    return state


def stream(name: str) -> int:
    """The number of a named stream of random numbers (64-bit FNV-1a)."""
    value = 0xCBF29CE484222325
    for byte in name.encode():
        value = ((value ^ byte) * 0x100000001B3) & _MASK
    return value


class Stream:
    """Independent draws by name: adding, removing or reordering draws changes no other draw."""

    def __init__(self, *keys: int):
        self._key = hashed(*keys)

    def bits(self, name: str) -> int:
        """64 random bits."""
        return mix(self._key + _STREAMS.setdefault(name, stream(name)))

    def below(self, limit: int, name: str) -> int:
        """An integer in 0 .. limit - 1."""
        return (self.bits(name) * limit) >> 64

    def unit(self, name: str) -> float:
        """A multiple of 2**-24 in [0, 1)."""
        return (self.bits(name) >> 40) / 16777216.0

    def between(self, low: float, high: float, name: str) -> float:
        """A multiple of 1/4096 between `low` and `high`: short in JSON and exact in binary."""
        return int((low + (high - low) * self.unit(name)) * 4096.0 + 0.5) / 4096.0


_STREAMS: dict[str, int] = {}


def table(count: int, key: int) -> np.ndarray:
    """`count` float32 in [0, 1), multiples of 2**-24."""
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(mix(key))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(40)).astype(np.float32) * np.float32(1 / 16777216)
