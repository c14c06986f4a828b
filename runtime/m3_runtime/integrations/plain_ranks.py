"""What the rerankers for frameworks have in common: a reranker, given or opened by path and shared, and its ranks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from m3_runtime.encode.options import checked_integer
from m3_runtime.errors import InputError
from m3_runtime.integrations.plain_vectors import EncoderArguments, shared_reranker
from m3_runtime.pairs import pair_limits
from m3_runtime.reranker import M3Reranker


class PlainRanks:
    """A reranker that orders texts, with scores from 0 to 1. It pickles by path, as the reranker does.

    Attributes:
        reranker: the open reranker.
    """

    def __init__(
        self,
        reranker: M3Reranker | str | Path | None = None,
        *,
        model_name: str | Path | None = None,
        max_length: int | None = None,
        query_max_length: int | None = None,
        **opening: Unpack[EncoderArguments],
    ) -> None:
        """Take an open reranker, which stays yours to close, or open a bundle, or share what another adapter opened.

        Args:
            reranker: an open reranker, or a bundle's folder.
            model_name: a bundle's folder, by the name that the frameworks' own classes have for it.
            max_length: tokens per pair; None as in `M3Reranker.compute_score`.
            query_max_length: tokens per query, likewise.
            **opening: see `EncoderArguments`.

        Raises:
            M3Error: as `M3Reranker.open`; InputError for neither or both of the first two, for arguments of opening
                with a reranker that is open, or for a length that the model does not take.
        """
        source = model_name if reranker is None else reranker
        if not isinstance(source, M3Reranker | str | Path) or None not in (reranker, model_name):
            raise InputError(
                f"expected an open reranker or a bundle's folder, one of them, got {reranker!r}, {model_name!r}"
            )
        if isinstance(source, M3Reranker) and opening:
            raise InputError(f"the reranker is open already; {', '.join(opening)} can be chosen with a path alone")
        self.reranker = source if isinstance(source, M3Reranker) else shared_reranker(source, **opening)
        pair_limits(max_length, query_max_length, self.reranker.max_tokens)
        self._lengths: dict[str, Any] = {"max_length": max_length, "query_max_length": query_max_length}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "reranker": self.reranker.opened_with}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, reranker=state["reranker"].open_again(shared_reranker))

    def best(self, query: str, texts: Sequence[str], most: int | None = None) -> list[tuple[int, float]]:
        """The best of S texts first: their indexes and scores. The logger "m3_runtime" is told how many were cut.

        Args:
            query: the query.
            texts: S texts.
            most: so many of the best; None is all.

        Raises:
            InputError: a text is not what it must be, or empty; its pair is named by its index.
        """
        found = self.reranker.score_pairs([(query, text) for text in texts], **self._lengths)
        found.warn_of_cuts()
        scores, order = found.values(normalize=True), sorted(range(len(texts)), key=lambda i: -found.scores[i])
        return [(i, scores[i]) for i in order[:most]]


def checked_most(most: int | None, name: str) -> int | None:
    """How many of the best are kept; None is all.

    Raises:
        InputError: not an integer of at least 1; the error calls it `name`.
    """
    return None if most is None else checked_integer(most, name)
