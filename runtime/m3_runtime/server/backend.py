"""A loaded variant as the server needs it: texts to ids, and a batch of ids to vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import Head, Variant
from m3_runtime.bundle.reader import Bundle, Verify
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encode.options import ColbertDtype, EncodeOptions
from m3_runtime.encode.pipeline import encode_tokens
from m3_runtime.engines import Engine
from m3_runtime.engines.select import AUTO, choose_variant
from m3_runtime.engines.streams import checked_streams
from m3_runtime.loading import load
from m3_runtime.server.queue import Ids, QueuedText
from m3_runtime.tokenizer import M3Tokenizer, OnTruncate, TokenizedTexts

_FIRST_TEXT = "What is BGE M3? And what is it good for?"

LexicalRow = tuple[NDArray[np.int64], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class TextVectors:
    """One text's vectors; None for a head that was not asked for.

    Attributes:
        dense: (H,) float32.
        lexical: ids (N,) and weights (N,), in order of first occurrence.
        colbert: (L-1, C) float32.
    """

    dense: NDArray[np.float32] | None
    lexical: LexicalRow | None
    colbert: NDArray[Any] | None


@dataclass(frozen=True)
class Opening:
    """Which bundle to open, and how; arguments as `M3Encoder.open` takes them, `threads` decided."""

    bundle: Path
    threads: int
    variant: str = AUTO
    engine: str = AUTO
    verify: Verify = Verify.SIZE
    cache_dir: Path | None = None
    low_memory: bool = False
    streams: int | str = 1


@dataclass(frozen=True, eq=False)
class Backend:
    """An open bundle, its tokenizer, and the engine of one variant. Its methods may be called from several threads."""

    bundle: Bundle
    variant: Variant
    tokenizer: M3Tokenizer
    engine: Engine

    @classmethod
    def open(cls, opening: Opening) -> "Backend":
        """Open a bundle and load one of its variants.

        Raises:
            BundleError: the folder is not a whole, unchanged bundle that this release reads.
            VariantError: there is no such variant, not on that engine, or this processor lacks what it needs.
            EngineError: the engine is not installed or cannot load the graph.
            InputError: `cache_dir` cannot be used, or there are more streams than threads.
        """
        bundle = Bundle.open(opening.bundle, verify=opening.verify)
        variant = choose_variant(bundle, opening.variant, opening.engine)
        tokenizer, engine = load(
            bundle,
            variant,
            opening.threads,
            cache_dir=opening.cache_dir,
            low_memory=opening.low_memory,
            streams=checked_streams(opening.streams, opening.threads),
        )
        return cls(bundle, variant, tokenizer, engine)

    def warm_up(self) -> None:
        """Encode a text. Engines pack weights when they first run: no client shall wait for it, and it takes memory.

        Raises:
            EngineError: the engine cannot run the graph.
        """
        self._encode(
            self.tokenize([_FIRST_TEXT], self.bundle.manifest.geometry.max_tokens, OnTruncate.TRUNCATE).ids,
            self.bundle.manifest.heads,
        )

    def tokenize(self, texts: Sequence[str], max_length: int, on_truncate: OnTruncate) -> TokenizedTexts:
        """Texts to ids; they have passed `check_text`.

        Raises:
            TextTooLongError: a text is too long, and that is an error.
        """
        return self.tokenizer.encode_batch(texts, max_length, on_truncate)

    def run(self, batch: Sequence[QueuedText]) -> list[TextVectors]:
        """Encode B texts of one kind, in one run.

        Heads that only some of the texts want are computed for all and handed to those.

        Raises:
            EngineError: the engine refused the batch, or returned numbers that are not finite.
        """
        ids = [text.ids for text in batch]
        wanted = {head for text in batch for head in text.job.heads}
        encoding = self._encode(ids, tuple(head for head in Head if head in wanted))
        return [_vectors(encoding, row, text.job.heads) for row, text in enumerate(batch)]

    def _encode(self, ids: Sequence[Ids], heads: tuple[Head, ...]) -> Encoding:
        tokenized = TokenizedTexts(tuple(ids), np.zeros(len(ids), np.bool_))
        options = EncodeOptions(
            heads=heads,
            max_length=self.bundle.manifest.geometry.max_tokens,
            batch_size=len(ids),
            # one run, whole: the queue has bounded them, and packed rows are padded a little
            token_budget=2 * self.engine.streams * sum(row.size for row in ids),
            on_truncate=OnTruncate.ERROR,
            colbert_dtype=ColbertDtype.FLOAT32,
        )
        return encode_tokens(tokenized, options, self.bundle.manifest, self.engine)

    def close(self) -> None:
        """Let go of the graph and its memory."""
        self.engine.close()


def _vectors(encoding: Encoding, row: int, heads: tuple[Head, ...]) -> TextVectors:
    dense, sparse, colbert = encoding.dense_vecs, encoding.sparse, encoding.colbert_vecs
    return TextVectors(
        dense=dense[row] if dense is not None and Head.DENSE in heads else None,
        lexical=sparse.row(row) if sparse is not None and Head.SPARSE in heads else None,
        colbert=colbert[row] if colbert is not None and Head.COLBERT in heads else None,
    )
