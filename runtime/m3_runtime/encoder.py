"""`M3Encoder`: a bundle, opened and ready to encode."""

import ctypes
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from m3_runtime import scoring
from m3_runtime.bundle.manifest import Head, TokenizerInfo, Variant
from m3_runtime.bundle.reader import Bundle, Verify
from m3_runtime.cpu import default_threads
from m3_runtime.encode.batching import DEFAULT_TOKEN_BUDGET
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encode.options import (
    DEFAULT_BATCH_SIZE,
    ColbertDtype,
    checked_max_length,
    checked_threads,
    encode_options,
)
from m3_runtime.encode.pipeline import BatchObserver, encode_texts, encode_tokens
from m3_runtime.engines import Engine
from m3_runtime.engines.select import AUTO, choose_variant
from m3_runtime.engines.streams import checked_streams
from m3_runtime.errors import EngineError, InputError
from m3_runtime.loading import OpenArguments, load
from m3_runtime.tokenizer import M3Tokenizer, OnTruncate, TokenizedTexts, check_text, checked_texts

_log = logging.getLogger("m3_runtime")

_PEAK_TOKENS = 4096  # a call with a run of so many takes seconds; what that took of memory goes back when it is over


class M3Encoder:
    """BGE-M3's three heads on CPU, from a bundle.

    `encode` and everything else may be called from several threads at once. Use it as a context manager, or
    call `close` when done.

    It pickles by path: what arrives opens the bundle again. After a fork it works on in both processes. If a thread was
    encoding at that moment, the child's half is lost: every call there raises an EngineError.

    >>> with M3Encoder.open("my-bundle") as encoder:  # doctest: +SKIP
    ...     encoder.encode(["Hello", "Grüß Gott"], return_sparse=True)["lexical_weights"]

    Attributes:
        bundle: the open bundle: its folder and manifest.
        variant: the variant that runs.
        tokenizer: the bundle's tokenizer.
        engine: what runs the variant.
    """

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
    ) -> "M3Encoder":
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
            InputError: an argument is not what it must be.
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
    ) -> "M3Encoder":
        """Load one variant of an open bundle; what `open` does when it has checked and chosen.

        Args are those of `open`, but that the bundle is open, the variant is one of its own, and `threads` is a number.

        Raises:
            BundleError: the tokenizer or the variant's properties are not what they must be.
            EngineError: the engine is not installed or cannot load the graph.
            InputError: `cache_dir` cannot be used, or there are more streams than threads.
        """
        count = checked_streams(streams, threads)
        tokenizer, engine = load(bundle, variant, threads, cache_dir=cache_dir, low_memory=low_memory, streams=count)
        encoder = cls(bundle, variant, tokenizer, engine)
        cache = None if cache_dir is None else str(Path(cache_dir).absolute())
        path = str(bundle.folder.absolute())
        encoder._opened_with = OpenArguments(
            path, variant.name, threads, cache, low_memory, count, bundle.manifest.space_id
        )
        return encoder

    def encode(  # noqa: PLR0913 - FlagEmbedding's arguments, and three of our own
        self,
        sentences: str | Sequence[str],
        batch_size: int = DEFAULT_BATCH_SIZE,
        max_length: int | None = None,
        return_dense: bool = True,
        return_sparse: bool = False,
        return_colbert_vecs: bool = False,
        *,
        token_budget: int = DEFAULT_TOKEN_BUDGET,
        on_truncate: OnTruncate | str = OnTruncate.TRUNCATE,
        colbert_dtype: str = "float32",
    ) -> Encoding:
        """Encode a text, or a list of texts, with the heads asked for.

        An empty list gives an `Encoding` of no texts. An empty text is a text: its dense vector and its one
        ColBERT row come from the two special tokens, its lexical weights are empty.

        Working memory is bounded by `token_budget`; the results themselves grow with the number of texts (a dense
        vector is 4 H bytes, ColBERT rows are that much a token). Encode a large corpus in parts.

        Args:
            sentences: S texts in a list, an iterator, a 1-D array, or a column of pandas, polars or pyarrow; all are
                read before the first is encoded. A str is one text, and its results are unwrapped.
            batch_size: most texts that run together.
            max_length: tokens per text, both special tokens included, 3 to `max_tokens`; None is 512 or,
                where the model takes fewer, the model's limit.
            return_dense: fill `dense_vecs`.
            return_sparse: fill `lexical_weights` and `sparse`.
            return_colbert_vecs: fill `colbert_vecs`.
            token_budget: most tokens that run together, except that one text always runs whole.
            on_truncate: "truncate" cuts longer texts and counts them, "error" refuses them.
            colbert_dtype: "float32" or "float16" (half the memory).

        Raises:
            InputError: an argument or a text is not what it must be; a text is named by its index.
            TextTooLongError: on_truncate="error" and a text has more than max_length tokens.
            HeadError: the bundle has no such head.
            EngineError: the engine failed, or the encoder is closed.
        """
        flags = {Head.DENSE: return_dense, Head.SPARSE: return_sparse, Head.COLBERT: return_colbert_vecs}
        return self.encode_heads(
            sentences,
            {head for head, is_wanted in flags.items() if is_wanted},
            batch_size=batch_size,
            max_length=max_length,
            token_budget=token_budget,
            on_truncate=on_truncate,
            colbert_dtype=colbert_dtype,
        )

    def encode_heads(
        self,
        sentences: str | Sequence[str],
        heads: Collection[Head],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        max_length: int | None = None,
        token_budget: int = DEFAULT_TOKEN_BUDGET,
        on_truncate: OnTruncate | str = OnTruncate.TRUNCATE,
        colbert_dtype: ColbertDtype | str = ColbertDtype.FLOAT32,
    ) -> Encoding:
        """`encode` for callers that hold a set of heads. Arguments and errors are those of `encode`."""
        options = encode_options(
            self.bundle.manifest,
            heads,
            batch_size=batch_size,
            token_budget=token_budget,
            max_length=max_length,
            on_truncate=on_truncate,
            colbert_dtype=colbert_dtype,
        )
        is_single = isinstance(sentences, str)
        if is_single:
            check_text(sentences, "the text")
        texts = checked_texts([sentences] if is_single else sentences)
        with self._running() as engine:
            result = encode_texts(texts, options, self.bundle.manifest, self.tokenizer, engine)
        return result.single() if is_single else result

    def encode_ids(
        self,
        ids: Sequence[NDArray[np.int32]],
        heads: Collection[Head],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        token_budget: int = DEFAULT_TOKEN_BUDGET,
        colbert_dtype: ColbertDtype | str = ColbertDtype.FLOAT32,
        on_batch: BatchObserver | None = None,
    ) -> Encoding:
        """Encode S texts that are ids of `tokenizer` already, (L,) each, both special tokens included; none is cut.

        `on_batch` is called with every batch before it runs, from the thread that runs it. The other arguments are
        those of `encode_heads`.

        Raises:
            InputError: no head is asked for, an argument is out of range, or an id is of a piece that was dropped.
            HeadError: the bundle has no such head.
            EngineError: the engine failed, or the encoder is closed.
        """
        for index, row in enumerate(ids):
            self.tokenizer.check_ids(row, f"text {index}")
        options = encode_options(
            self.bundle.manifest, heads, batch_size=batch_size, token_budget=token_budget, colbert_dtype=colbert_dtype
        )
        tokenized = TokenizedTexts(tuple(ids), np.zeros(len(ids), np.bool_))
        with self._running() as engine:
            return encode_tokens(tokenized, options, self.bundle.manifest, engine, on_batch)

    def encode_queries(self, queries: str | Sequence[str], *options: Any, **more: Any) -> Encoding:
        """`encode` under FlagEmbedding's name for queries, with its other arguments; M3 has no query instruction."""
        return self.encode(queries, *options, **more)

    def encode_corpus(self, corpus: str | Sequence[str], *options: Any, **more: Any) -> Encoding:
        """`encode` under FlagEmbedding's name for passages, with its other arguments."""
        return self.encode(corpus, *options, **more)

    def compute_score(
        self,
        sentence_pairs: Sequence[Sequence[str]] | Sequence[str],
        batch_size: int = DEFAULT_BATCH_SIZE,
        max_query_length: int | None = None,
        max_passage_length: int | None = None,
        weights_for_different_modes: Sequence[float] | None = None,
        *,
        token_budget: int = DEFAULT_TOKEN_BUDGET,
        on_truncate: OnTruncate | str = OnTruncate.TRUNCATE,
    ) -> dict[str, list[float]] | dict[str, float]:
        """Score (query, passage) pairs with every head and combined.

        The result is FlagEmbedding's dict, which has no place for how many texts were cut. So the logger "m3_runtime"
        gets a warning with their number; `score_pairs` returns it.

        Args:
            sentence_pairs: P pairs, in a list or as a (P, 2) array, or one pair of two texts.
            batch_size: most pairs that are worked on together.
            max_query_length: tokens per query; None as in `encode`.
            max_passage_length: tokens per passage; None as in `encode`.
            weights_for_different_modes: [dense, sparse, colbert]; None is [1, 1, 1].
            token_budget: most tokens that are worked on together; memory follows it.
            on_truncate: "truncate" cuts longer texts and logs how many, "error" refuses them.

        Returns:
            Keys "colbert", "sparse", "dense", "sparse+dense", "colbert+sparse+dense", in this order; P floats
            each, or one float each for one pair. No pairs give empty lists.

        Raises:
            InputError: an argument or a pair is not what it must be; a pair is named by its index.
            TextTooLongError: on_truncate="error" and a text has too many tokens; the pair is named.
            HeadError: the bundle lacks a head.
            EngineError: the engine failed, or the encoder is closed.
        """
        weights = scoring.FusionWeights.from_sequence(weights_for_different_modes)
        pairs, is_single = scoring.checked_pairs(sentence_pairs)
        scores = self.score_pairs(
            pairs,
            batch_size,
            max_query_length,
            max_passage_length,
            token_budget=token_budget,
            on_truncate=on_truncate,
        )
        if scores.out_of_vocabulary:
            _log.warning(
                "%d of the %d texts that were scored have pieces that the bundle dropped; their scores are approximate",
                scores.out_of_vocabulary,
                2 * len(pairs),
            )
        if scores.truncated:
            _log.warning(
                "%d of the %d texts that were scored had more than the maximum of tokens and were cut; "
                "raise max_query_length or max_passage_length, or pass on_truncate='error'",
                scores.truncated,
                2 * len(pairs),
            )
        combined = scores.combined(weights)
        return {key: values[0] for key, values in combined.items()} if is_single else combined

    def score_pairs(
        self,
        sentence_pairs: Sequence[Sequence[str]],
        batch_size: int = DEFAULT_BATCH_SIZE,
        max_query_length: int | None = None,
        max_passage_length: int | None = None,
        *,
        token_budget: int = DEFAULT_TOKEN_BUDGET,
        on_truncate: OnTruncate | str = OnTruncate.TRUNCATE,
    ) -> scoring.PairScores:
        """`compute_score` as arrays, one a head, with the number of texts that were cut.

        Arguments and errors are those of `compute_score`.
        """
        queries, passages = (
            encode_options(
                self.bundle.manifest,
                frozenset(Head),
                batch_size=batch_size,
                token_budget=token_budget,
                max_length=checked_max_length(length, self.max_tokens, name),
                on_truncate=on_truncate,
            )
            for name, length in (("max_query_length", max_query_length), ("max_passage_length", max_passage_length))
        )
        pairs, _ = scoring.checked_pairs(sentence_pairs)
        with self._running() as engine:
            return scoring.score_pairs(pairs, (queries, passages), self.bundle.manifest, self.tokenizer, engine)

    compute_lexical_matching_score = staticmethod(scoring.compute_lexical_matching_score)
    colbert_score = staticmethod(scoring.colbert_score)

    def convert_id_to_token(
        self, lexical_weights: Mapping[str, float] | Sequence[Mapping[str, float]]
    ) -> dict[str, float] | list[dict[str, float]]:
        """Lexical weights with words instead of ids; one mapping gives one dict, a list gives a list.

        Ids that decode to the same text (with and without a word start, say) share a key
        and keep the largest weight.

        Raises:
            InputError: neither a mapping of token ids nor a list of such mappings.
        """
        if isinstance(lexical_weights, Mapping):
            return self._with_words(lexical_weights)
        if isinstance(lexical_weights, list | tuple):
            return [self._with_words(weights) for weights in lexical_weights]
        raise InputError(f"expected a dict or a list of dicts, got {type(lexical_weights).__name__}")

    def _with_words(self, lexical_weights: Mapping[str, float]) -> dict[str, float]:
        words: dict[str, float] = {}
        for token, weight in lexical_weights.items():
            if not str(token).isdecimal() or int(token) >= self.vocab_size:
                raise InputError(f"{token!r} is not a token id; expected a number below {self.vocab_size}")
            word = self.tokenizer.decode([int(token)])
            words[word] = max(weight, words.get(word, weight))
        return words

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
        """Whether it encodes: it has not been closed, nor lost in a fork."""
        return not (self._is_closed or self._is_lost)

    @property
    def opened_with(self) -> OpenArguments:
        """How it was opened: what it pickles by.

        Raises:
            EngineError: it was made of an engine, so that no other process can have it.
        """
        if self._opened_with is None:
            raise EngineError("an encoder that was made of an engine cannot be pickled; use M3Encoder.open")
        return self._opened_with

    def close(self) -> None:
        """Let go of the graph and its memory once the last running call has finished; later calls fail. Never waits."""
        with self._lock:
            self._is_closed = True
            if not self._calls and not self._is_inherited:
                self.engine.close()

    def __enter__(self) -> "M3Encoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., "M3Encoder"], tuple[OpenArguments, Callable[..., "M3Encoder"]]]:
        return OpenArguments.open_again, (self.opened_with, M3Encoder.open)

    @contextmanager
    def _running(self) -> Iterator[Engine]:
        """The engine for one call; it stays open until the call has finished."""
        with self._lock:
            if self._is_lost:
                raise EngineError("a thread was encoding while this process was forked; open the bundle again")
            if self._is_closed:
                raise EngineError("the encoder is closed; open the bundle again")
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


_opened: WeakSet[M3Encoder] = WeakSet()


def _forked() -> None:
    """Runs in a child process before anything else: no lock is held, no call is under way, and none can be finished."""
    is_lost = any(encoder._calls for encoder in _opened)  # engines share thread pools
    for encoder in _opened:
        encoder._lock, encoder._calls, encoder._is_lost = threading.Lock(), 0, is_lost
        encoder._is_inherited = True
        # Its threads stayed behind, and whatever takes it apart, at the end of the process too, would wait for them.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(encoder.engine))


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)
