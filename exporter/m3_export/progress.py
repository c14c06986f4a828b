"""Where m3_bench looks for `Progress`, which is the runtime's."""

from m3_runtime.io.progress import Progress

__all__ = ["Progress"]
