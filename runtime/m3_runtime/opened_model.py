"""An open bundle: what `M3Encoder` and `M3Reranker` have in common, which is all but what they compute."""

import ctypes
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Self, TypeVar, Unpack
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import Head, TokenizerInfo, Variant
from m3_runtime.bundle.reader import Bundle, Verify
from m3_runtime.cpu import default_threads
from m3_runtime.encode.colbert import ColbertDtype
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encode.options import (
    BatchArguments,
    EncodeArguments,
    EncodeOptions,
    checked_threads,
    colbert_form,
    encode_options,
)
from m3_runtime.encode.pipeline import BatchObserver, encode_tokens
from m3_runtime.engines import Engine, Opening
from m3_runtime.engines.compiled_cache import cache_file, checked_cache_dir
from m3_runtime.engines.select import AUTO, choose_variant, open_engine
from m3_runtime.engines.streams import checked_streams
from m3_runtime.errors import EngineError, InputError, SpaceMismatchError
from m3_runtime.tokenizer import M3Tokenizer, TokenizedTexts

_Model = TypeVar("_Model", bound="OpenedModel")
_PEAK_TOKENS = 4096  # a call with a run of so many takes seconds; what that took of memory goes back when it is over


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
        """The same encoder in another process; `open_bundle` is `M3Encoder.open`, or takes its arguments.

        Raises:
            M3Error: as `M3Encoder.open`.
            SpaceMismatchError: another bundle has taken the folder's place.
        """
        arguments = {name: value for name, value in asdict(self).items() if name not in ("path", "space_id")}
        encoder = open_bundle(self.path, **arguments)
        if encoder.space_id != self.space_id:
            raise SpaceMismatchError(
                f"{self.path!r} held the vector space {self.space_id} when the encoder was pickled, and now holds "
                f"{encoder.space_id}; open it again"
            )
        return encoder


class OpenedModel:
    """A bundle, opened and ready to run. Everything may be called from several threads at once.

    It pickles by path: what arrives opens the bundle again. After a fork it works on in both processes. If a thread was
    running it at that moment, the child's half is lost: every call there raises an EngineError.

    Attributes:
        bundle: the open bundle: its folder and manifest.
        variant: the variant that runs.
        tokenizer: the bundle's tokenizer.
        engine: what runs the variant.
    """

    _is_reranker: ClassVar[bool] = False
    called: ClassVar[str] = "encoder"
    _opened_with: OpenArguments | None = None

    def __init__(self, bundle: Bundle, variant: Variant, tokenizer: M3Tokenizer, engine: Engine) -> None:
        self.bundle = bundle
        self.variant = variant
        self.tokenizer = tokenizer
        self.engine = engine
        self._lock = threading.Lock()  # over the two below
        self._calls = 0
        self._is_closed = False
        self._is_inherited = self._is_lost = False  # in a child process: see `_forked`
        _opened.add(self)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        variant: str = AUTO,
        engine: str = AUTO,
        threads: int | None = None,
        verify: Verify | str = Verify.SIZE,
        cache_dir: str | Path | None = None,
        low_memory: bool = False,
        streams: int | str = 1,
    ) -> Self:
        """Open a bundle and load one of its variants.

        Args:
            path: the bundle's folder.
            variant: a variant's name, or "auto" for the fastest that runs here.
            engine: "onnxruntime", "openvino", or "auto".
            threads: threads of all runs together; None takes the cores that this process may use.
            verify: "size" compares file sizes and the SHA-256 of small files, "full" every SHA-256.
            cache_dir: a folder where OpenVINO keeps what it compiled, all but the weights, for the next opening; made
                if it is not there, and may be deleted at any time. ONNX Runtime keeps nothing.
            low_memory: hold less in memory and take longer; the results are the same.
            streams: how many batches share threads and token budget, for many cores and many texts; or "auto".

        Raises:
            BundleError: the folder is not a whole, unchanged bundle that this release reads.
            VariantError: there is no such variant, not on that engine, or this processor lacks what it needs.
            EngineError: the engine is not installed or cannot load the graph.
            InputError: an argument is not what it must be, or the bundle is of the other kind.
        """
        count = default_threads() if threads is None else checked_threads(threads)
        bundle = Bundle.open(path, verify=verify)
        chosen = choose_variant(bundle, variant, engine)
        return cls.from_bundle(bundle, chosen, count, cache_dir=cache_dir, low_memory=low_memory, streams=streams)

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        variant: Variant,
        threads: int,
        *,
        cache_dir: str | Path | None = None,
        low_memory: bool = False,
        streams: int | str = 1,
    ) -> Self:
        """Load one variant of an open bundle; what `open` does when it has checked and chosen.

        Args are those of `open`, but that the bundle is open, the variant is one of its own, and `threads` is a number.

        Raises:
            BundleError: the tokenizer or the variant's properties are not what they must be.
            EngineError: the engine is not installed or cannot load the graph.
            InputError: the bundle is of the other kind, `cache_dir` cannot be used, or there are more streams than
                threads.
        """
        check_kind(bundle, is_reranker=cls._is_reranker)
        count = checked_streams(streams, threads)
        cache = None if cache_dir is None else checked_cache_dir(cache_dir)
        file = None if cache is None else cache_file(cache, bundle, variant, threads)
        tokenizer, engine = load(bundle, variant, threads, Opening(low_memory, file, streams=count))
        model = cls(bundle, variant, tokenizer, engine)
        path, kept = str(bundle.folder.absolute()), None if cache is None else str(cache)
        model._opened_with = OpenArguments(
            path, variant.name, threads, kept, low_memory, count, bundle.manifest.space_id
        )
        return model

    def encode_ids(
        self,
        ids: Sequence[NDArray[np.int32]],
        heads: Collection[Head],
        *,
        on_batch: BatchObserver | None = None,
        **more: Unpack[EncodeArguments],
    ) -> Encoding:
        """Encode S texts that are ids of `tokenizer` already, (L,) each, both special tokens included; none is cut.

        `on_batch` is called with every batch before it runs, from the thread that runs it. The other arguments are
        those of `encode_heads`, but for `max_length` and `on_truncate`.

        Raises:
            TypeError: an argument is not one of these.
            InputError: no head is asked for, an argument is out of range, or an id is of a piece that was dropped.
            HeadError: the bundle has no such head.
            EngineError: the engine failed, or the encoder is closed.
        """
        if ignored := sorted(more.keys() & {"max_length", "on_truncate"}):
            raise TypeError(f"encode_ids() got an unexpected keyword argument {ignored[0]!r}: ids are never cut")
        for index, row in enumerate(ids):
            self.tokenizer.check_ids(row, f"text {index}")
        options = self._options(heads, **more)
        tokenized = TokenizedTexts(tuple(ids), np.zeros(len(ids), np.bool_))
        with self._running() as engine:
            return encode_tokens(tokenized, options, self.bundle.manifest, engine, on_batch)

    @property
    def tokenizer_info(self) -> TokenizerInfo:
        """What the manifest says about the tokenizer."""
        return self.bundle.manifest.tokenizer

    @property
    def space_id(self) -> str:
        """Name of the vector space; vectors of another space_id must not be compared with ours."""
        return self.bundle.manifest.space_id

    @property
    def max_tokens(self) -> int:
        """Most tokens of a text, both special tokens included."""
        return self.bundle.manifest.geometry.max_tokens

    @property
    def vocab_size(self) -> int:
        """Columns of a sparse vector."""
        return self.bundle.manifest.geometry.vocab_size

    @property
    def is_open(self) -> bool:
        """Whether it runs: it has not been closed, nor lost in a fork."""
        return not (self._is_closed or self._is_lost)

    @property
    def opened_with(self) -> OpenArguments:
        """How it was opened: what it pickles by.

        Raises:
            EngineError: it was made of an engine, so that no other process can have it.
        """
        if self._opened_with is None:
            raise EngineError("what was made of an engine cannot be pickled; use its open")
        return self._opened_with

    def close(self) -> None:
        """Let go of the graph and its memory once the last running call has finished; later calls fail. Never waits."""
        with self._lock:
            self._is_closed = True
            if not self._calls and not self._is_inherited:
                self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., "OpenedModel"], tuple[OpenArguments, Callable[..., "OpenedModel"]]]:
        return OpenArguments.open_again, (self.opened_with, type(self).open)

    def _options(
        self,
        heads: Collection[Head],
        *,
        colbert_dtype: ColbertDtype | str = ColbertDtype.FLOAT32,
        colbert_dim: int | None = None,
        colbert_pool: int = 1,
        **more: Unpack[BatchArguments],
    ) -> EncodeOptions:
        form = colbert_form(self.bundle, heads, colbert_dtype, colbert_dim, colbert_pool)
        return encode_options(self.bundle.manifest, heads, colbert=form, **more)

    @contextmanager
    def _running(self) -> Iterator[Engine]:
        """The engine for one call; it stays open until the call has finished."""
        with self._lock:
            if self._is_lost:
                raise EngineError("a thread was encoding while this process was forked; open the bundle again")
            if self._is_closed:
                raise EngineError(f"the {self.called} is closed; open the bundle again")
            self._calls += 1
        try:
            yield self.engine
        finally:
            with self._lock:
                self._calls -= 1
                if not self._calls and not self._is_inherited:
                    if self._is_closed:
                        self.engine.close()
                    else:
                        self.engine.rest(_PEAK_TOKENS)


def load(bundle: Bundle, variant: Variant, threads: int, opening: Opening) -> tuple[M3Tokenizer, Engine]:
    """Open the bundle's tokenizer and a variant's engine; arguments and errors are those of `open_engine`.

    Each takes a good part of a second or more for BGE-M3 and leaves a core free, so they load at the same time.

    Raises:
        BundleError: the tokenizer is not what it must be.
    """
    is_busy = threading.Event()

    def tokenizer_later() -> M3Tokenizer:
        is_busy.wait()  # reading the file holds the interpreter for long, which the engine needs until then
        return open_tokenizer(bundle)

    with ThreadPoolExecutor(1, "m3-loading") as aside:
        tokenizer = aside.submit(tokenizer_later)
        try:
            engine = open_engine(bundle, variant, threads, replace(opening, on_busy=is_busy.set))
        finally:
            is_busy.set()
        try:
            return tokenizer.result(), engine
        except BaseException:
            engine.close()
            raise


def open_tokenizer(bundle: Bundle) -> M3Tokenizer:
    """The bundle's tokenizer.

    Raises:
        BundleError: a file of it is not what it must be.
    """
    info, fewer = bundle.manifest.tokenizer, bundle.manifest.vocabulary
    if fewer is None:
        return M3Tokenizer.open(bundle.file(info.path), info)
    return M3Tokenizer.open(bundle.file(fewer.pipeline_path), info, bundle.file(fewer.pieces_path))


def check_kind(bundle: Bundle, *, is_reranker: bool) -> None:
    """Refuse a reranker's bundle where an encoder's is expected, and vice versa.

    Raises:
        InputError: the bundle is of the other kind.
    """
    manifest = bundle.manifest
    if manifest.is_reranker == is_reranker:
        return
    folder, heads = str(bundle.folder), ", ".join(head.value for head in manifest.heads)
    if is_reranker:
        raise InputError(
            f"{folder!r} is an encoder's bundle (heads: {heads}), expected a reranker's; open it with M3Encoder.open, "
            "or make a reranker's: m3-export BAAI/bge-reranker-v2-m3 OUT"
        )
    raise InputError(
        f"{folder!r} is a reranker's bundle, which scores pairs of texts and has no vectors; expected an encoder's. "
        f"Open it with M3Reranker.open, or serve it: m3-runtime serve ENCODER --reranker {folder}"
    )


_opened: WeakSet[OpenedModel] = WeakSet()


def _forked() -> None:
    """Runs in a child process before anything else: no lock is held, no call is under way, and none can be finished."""
    # A call holds the lock while its engine rests, and may compute in that. All are lost: engines share thread pools.
    is_lost = any(model._calls or model._lock.locked() for model in _opened)
    for model in _opened:
        model._lock, model._calls, model._is_lost = threading.Lock(), 0, is_lost
        model._is_inherited = True
        # Its threads stayed behind, and whatever takes it apart, at the end of the process too, would wait for them.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(model.engine))


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)
