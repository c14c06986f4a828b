"""Loading what an encoder needs: tokenizer and engine, side by side."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from m3_runtime.bundle.manifest import Variant
from m3_runtime.bundle.reader import Bundle
from m3_runtime.engines import Engine, Opening
from m3_runtime.engines.compiled_cache import cache_file, checked_cache_dir
from m3_runtime.engines.select import open_engine
from m3_runtime.tokenizer import M3Tokenizer


def load(
    bundle: Bundle, variant: Variant, threads: int, *, cache_dir: str | Path | None, low_memory: bool, streams: int = 1
) -> tuple[M3Tokenizer, Engine]:
    """Open the bundle's tokenizer and a variant's engine.

    Each takes a good part of a second or more for BGE-M3 and leaves a core free, so they load at the same time.

    Args:
        bundle: an open bundle.
        variant: one of its variants.
        threads: threads of all runs together.
        cache_dir: where compiled forms are kept, or None.
        low_memory: hold less in memory and take longer.
        streams: how many runs share the threads.

    Raises:
        BundleError: the tokenizer or the variant's properties are not what they must be.
        EngineError: the engine is not installed or cannot load the graph.
        InputError: `cache_dir` cannot be used.
    """
    cache = None if cache_dir is None else cache_file(checked_cache_dir(cache_dir), bundle, variant, threads)
    is_busy = threading.Event()
    with ThreadPoolExecutor(1, "m3-tokenizer") as aside:
        tokenizer = aside.submit(_tokenizer_after, is_busy, bundle)
        try:
            engine = open_engine(bundle, variant, threads, Opening(low_memory, cache, is_busy.set, streams))
        finally:
            is_busy.set()
        try:
            return tokenizer.result(), engine
        except BaseException:
            engine.close()
            raise


def _tokenizer_after(is_busy: threading.Event, bundle: Bundle) -> M3Tokenizer:
    """Open the tokenizer when the engine needs the interpreter no longer: reading its file keeps it for long."""
    is_busy.wait()
    info = bundle.manifest.tokenizer
    return M3Tokenizer.open(bundle.file(info.path), info)
