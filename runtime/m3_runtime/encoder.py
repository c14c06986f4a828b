"""`M3Encoder`: a bundle, opened and ready to encode."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from m3_runtime import scoring
from m3_runtime.bundle.manifest import ENCODER_HEADS, Head
from m3_runtime.bundle.space import colbert_space_of
from m3_runtime.encode.batching import DEFAULT_TOKEN_BUDGET
from m3_runtime.encode.encoding import Encoding, log_losses
from m3_runtime.encode.options import DEFAULT_BATCH_SIZE, EncodeArguments, checked_max_length
from m3_runtime.encode.pipeline import encode_texts, encode_tokens
from m3_runtime.errors import InputError
from m3_runtime.opened_model import OpenedModel
from m3_runtime.splitting import RunLimit, greedy_runs
from m3_runtime.tokenizer import OnTruncate, check_text, checked_texts


class M3Encoder(OpenedModel):
    """BGE-M3's three heads on CPU, from a bundle.

    See `OpenedModel` for attributes, threads, pickling and forks. Use it as a context manager, or call `close` when
    done.

    >>> with M3Encoder.open("my-bundle") as encoder:  # doctest: +SKIP
    ...     encoder.encode(["Hello", "Grüß Gott"], return_sparse=True)["lexical_weights"]
    """

    def encode(  # noqa: PLR0913 - FlagEmbedding's arguments, and five of our own
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
        colbert_dim: int | None = None,
        colbert_pool: int = 1,
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
            colbert_dtype: "float32", or "float16" (half the memory); "int8", "int4" and "binary" (a sign a value) give
                `PackedRows`. They are for passages that are kept: leave queries in float.
            colbert_dim: project ColBERT rows on the first so many of the bundle's principal axes; None keeps all
                dimensions. Queries and passages need the same, of one bundle: see `colbert_space_id`.
            colbert_pool: pool so many similar ColBERT rows of a text into one, on average (extra bulk); 1 keeps all.
                For passages that are kept.

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
            colbert_dim=colbert_dim,
            colbert_pool=colbert_pool,
        )

    def encode_heads(
        self,
        sentences: str | Sequence[str],
        heads: Collection[Head],
        **more: Unpack[EncodeArguments],
    ) -> Encoding:
        """`encode` for callers that hold a set of heads. Arguments and errors are those of `encode`."""
        options = self._options(heads, **more)
        is_single = isinstance(sentences, str)
        if is_single:
            check_text(sentences, "the text")
        texts = checked_texts([sentences] if is_single else sentences)
        with self._running() as engine:
            result = encode_texts(texts, options, self.bundle.manifest, self.tokenizer, engine)
        return result.single() if is_single else result

    def colbert_space_id(self, colbert_dim: int | None) -> str:
        """Name of the space of ColBERT rows of so many dimensions; those of another must not be compared with them.

        It is `space_id` for None, which keeps rows as they are. Other bundles of a checkpoint have other axes.

        Raises:
            HeadError: the bundle has no ColBERT head.
            InputError: the dimensions are none that rows can have, or the bundle has no principal axes.
        """
        return colbert_space_of(self.bundle, colbert_dim)

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
        log_losses(
            f"the {2 * len(pairs)} texts that were scored",
            scores.truncated,
            scores.out_of_vocabulary,
            remedy="; raise max_query_length or max_passage_length, or pass on_truncate='error'",
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
        options = [
            self._options(
                ENCODER_HEADS,
                batch_size=batch_size,
                token_budget=token_budget,
                max_length=checked_max_length(length, self.max_tokens, name),
                on_truncate=on_truncate,
            )
            for name, length in (("max_query_length", max_query_length), ("max_passage_length", max_passage_length))
        ]
        pairs, _ = scoring.checked_pairs(sentence_pairs)
        parts = []
        with self._running() as engine:
            sides = [
                scoring.PairSide.of(name, [pair[i] for pair in pairs], self.tokenizer, options[i])
                for i, name in enumerate(("query", "passage"))
            ]
            lengths = (sides[0].lengths() + sides[1].lengths()).tolist()
            # memory follows the token budget, and a text that occurs in several pairs of a run is encoded once
            for run in greedy_runs(lengths, RunLimit(options[0].batch_size, options[0].token_budget)):
                queries, passages = (side.part(run) for side in sides)
                encoded = [
                    encode_tokens(side.tokenized, how, self.bundle.manifest, engine)
                    for side, how in zip((queries, passages), options, strict=True)
                ]
                parts.append(scoring.head_scores(encoded[0], queries.index, encoded[1], passages.index))
        nothing = np.empty(0, np.float32)
        dense, sparse, colbert = (
            np.concatenate([nothing, *(getattr(part, head) for part in parts)]) for head in ENCODER_HEADS
        )
        truncated, out_of_vocabulary = sum(s.truncated() for s in sides), sum(s.out_of_vocabulary() for s in sides)
        return scoring.PairScores(dense, sparse, colbert, truncated, out_of_vocabulary)

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
