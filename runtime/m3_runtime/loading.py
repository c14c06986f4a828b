"""Loading what an encoder needs: tokenizer and engine, side by side; and loading it again in another process."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from m3_runtime.bundle.manifest import Variant
from m3_runtime.bundle.reader import Bundle
from m3_runtime.engines import Engine, Opening
from m3_runtime.engines.compiled_cache import cache_file, checked_cache_dir
from m3_runtime.engines.select import open_engine
from m3_runtime.errors import SpaceMismatchError
from m3_runtime.tokenizer import M3Tokenizer

if TYPE_CHECKING:
    from m3_runtime.opened_model import OpenedModel

_Model = TypeVar("_Model", bound="OpenedModel")


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
    with ThreadPoolExecutor(1, "m3-loading") as aside:
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
    return open_tokenizer(bundle)


def open_tokenizer(bundle: Bundle) -> M3Tokenizer:
    """The bundle's tokenizer.

    Raises:
        BundleError: a file of it is not what it must be.
    """
    info, fewer = bundle.manifest.tokenizer, bundle.manifest.vocabulary
    if fewer is None:
        return M3Tokenizer.open(bundle.file(info.path), info)
    return M3Tokenizer.open(bundle.file(fewer.pipeline_path), info, bundle.file(fewer.pieces_path))


@dataclass(frozen=True)
class OpenArguments:
    """How an encoder was opened: what `M3Encoder.open` takes, and the vector space that the bundle held then."""

    path: str
    variant: str
    threads: int
    cache_dir: str | None
    low_memory: bool
    streams: int
    space_id: str

    def open_again(self, open_bundle: Callable[..., _Model]) -> _Model:
        """The same encoder in another process.

        Args:
            open_bundle: `M3Encoder.open`, or what takes its arguments.

        Raises:
            M3Error: as `M3Encoder.open`.
            SpaceMismatchError: another bundle has taken the folder's place.
        """
        arguments = {name: value for name, value in asdict(self).items() if name not in ("path", "space_id")}
        encoder = open_bundle(self.path, **arguments)
        if encoder.space_id != self.space_id:
            raise SpaceMismatchError(
                f"{self.path!r} held the vector space {self.space_id} when the encoder was pickled, and now holds "
                f"{encoder.space_id}; open it anew"
            )
        return encoder
