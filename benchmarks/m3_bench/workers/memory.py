"""How fast this machine reads memory: a sum over more than its caches hold, each thread a part of its own."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from m3_bench.workers.serve import Encoder, serve

BYTES = 2**29


class Reading(Encoder):
    """The dot product of an array with itself, which is one pass over it. Its work is bytes."""

    packages = ("numpy",)

    def __init__(self, threads: int) -> None:
        self._parts = np.array_split(np.ones(BYTES // 4, dtype=np.float32), threads)
        self._pool = ThreadPoolExecutor(threads)

    def run(self, _texts: Sequence[str], _heads: Sequence[str]) -> float:
        """See `serve.Encoder.run`."""
        return float(sum(self._pool.map(lambda part: np.dot(part, part), self._parts)))  # numpy lets other threads run

    def work(self, result: float) -> float:
        """See `serve.Encoder.work`."""
        if not np.isclose(result, BYTES // 4, rtol=1e-3):
            raise ArithmeticError(f"the sum of {BYTES // 4} ones came out as {result}")
        return float(BYTES)


if __name__ == "__main__":
    serve(Reading)
