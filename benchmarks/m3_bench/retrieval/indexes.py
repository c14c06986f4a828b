"""Indexes to search; those that are read into memory are searched exactly. `places` opens each by its place."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_bench.documents import Ranked
from m3_bench.recording import Recording, digest_of, read_recording
from m3_bench.retrieval import search
from m3_bench.retrieval.hybrids import PUBLISHED, FloatArray, possible
from m3_bench.retrieval.search import Indices, Ranking
from m3_bench.retrieval.vectors import TextEncoder, TextVectors
from m3_export.verify.parity import Outputs
from m3_runtime import M3Encoder
from m3_runtime.bundle.manifest import Head
from m3_runtime.bundle.space import full_space_of, space_on_axes
from m3_runtime.errors import InputError, SpaceMismatchError
from m3_runtime.io.progress import Progress

RECORDED = ".safetensors"
"""How the name of a recording ends."""
_CANDIDATES = 100  # dense's best, which ColBERT ranks
_HYBRIDS = (PUBLISHED[0], PUBLISHED[-1])


@dataclass(frozen=True, eq=False)
class Queries:
    """Q queries, and what encodes them; where they were recorded, a recorded index gets the recorded vectors."""

    texts: tuple[str, ...]
    encoder: M3Encoder
    recorded: Recording | None
    progress: Progress


@dataclass(frozen=True, eq=False)
class Index(ABC):
    """What can be searched: its name for tables, its vectors' space, and how many documents it has."""

    name: str
    space_id: str
    documents: int

    @property
    def ids_sha256(self) -> str:
        """Digest of the documents' ids in ascending order; "" where they are not known."""
        return ""

    @abstractmethod
    def ranked(self, queries: Queries, depth: int) -> tuple[Ranked, ...]:
        """The best `depth` documents of each query, by every method that the index has."""


@dataclass(frozen=True, eq=False)
class HeldIndex(Index):
    """N documents in memory, in the order of their ids, so that ties go to the same document everywhere.

    `colbert_rows` gives index and rows (L, C) of the wanted documents, in any order.
    """

    ids: tuple[str, ...]  # (N,) ascending
    vectors: TextVectors
    colbert_rows: Callable[[Indices], Iterator[tuple[int, NDArray[Any]]]] | None
    is_recorded: bool = False  # recorded queries are searched with their recorded vectors
    colbert_axes: tuple[str, int] | None = None  # SHA-256 of the axes that rows are projected on, and how many

    @property
    def ids_sha256(self) -> str:
        """See `Index`."""
        return digest_of(self.ids)

    def ranked(self, queries: Queries, depth: int) -> tuple[Ranked, ...]:
        """See `Index.ranked`."""
        recorded = self._recorded(queries)
        encoder = TextEncoder(queries.encoder, None, queries.progress)
        asked = recorded.vectors if recorded else encoder.vectors(queries.texts, "queries")
        heads = [Head.DENSE, *([Head.SPARSE] if self.vectors.sparse is not None else [])]
        heads += [Head.COLBERT] if self.colbert_rows else []
        hybrids = possible(_HYBRIDS, heads)
        stage = search.first_stage(asked, self.vectors, hybrids, _CANDIDATES)
        rankings: dict[str, Ranking] = dict(stage.ranked)
        found = enumerate(indices[:depth] for indices in rankings[Head.DENSE.value])
        scores = {Head.DENSE.value: [self.vectors.dense[some] @ asked.dense[q] for q, some in found]}
        if (sparse := self.vectors.sparse) is not None:
            found = enumerate(indices[:depth] for indices in rankings[Head.SPARSE.value])
            scores[Head.SPARSE.value] = [(sparse[some] @ asked.sparse[q].T).toarray()[:, 0] for q, some in found]
        if self.colbert_rows:
            if recorded and recorded.colbert_rows:
                rows = [found for _, found in recorded.colbert_rows(np.arange(len(queries.texts)))]
            else:
                dim = self._dim(queries.encoder)
                rows = [*encoder.colbert_rows(queries.texts, "queries' ColBERT rows", dim)]
            candidates = [left.indices for left in stage.candidates]
            colbert = search.colbert_scores(rows, candidates, self.colbert_rows(stage.wanted))
            rankings |= search.second_stage(stage, colbert, hybrids)
            scores[Head.COLBERT.value] = [np.sort(of_query)[::-1][:depth] for of_query in colbert]
        return tuple(self._named(method, ranking, scores.get(method), depth) for method, ranking in rankings.items())

    def _recorded(self, queries: Queries) -> "HeldIndex | None":
        """Recorded queries as an index of their own, where they are recorded and this index is.

        Raises:
            InputError: their vectors do not fit the bundle, or lack what this index has.
        """
        if queries.recorded is None or not self.is_recorded:
            return None
        numbered = replace(queries.recorded, ids=tuple(map(str, range(len(queries.texts)))))
        encoder = queries.encoder
        found = checked_index(recorded_index("the recorded queries", numbered, encoder), encoder)
        lacks_weights = self.vectors.sparse is not None and found.vectors.sparse is None
        if lacks_weights or (self.colbert_rows and not found.colbert_rows):
            what = "lexical weights" if lacks_weights else "ColBERT rows"
            raise InputError(
                f"the recorded queries have no {what}, which {self.name} has; record them again, as it was"
            )
        return found

    def _dim(self, encoder: M3Encoder) -> int | None:
        """The dimensions that queries need.

        Raises:
            InputError: the encoder's bundle has none, or no axes.
            SpaceMismatchError: it has other axes.
        """
        if self.colbert_axes is None:
            return None
        sha256, dim = self.colbert_axes
        space, own = space_on_axes(self.space_id, dim, sha256), encoder.colbert_space_id(dim)
        if full_space_of(space) != full_space_of(own):
            raise SpaceMismatchError(
                f"{self.name} has ColBERT rows of the space {space}, the bundle gives rows of the space {own}, which "
                "are on other principal axes; give the bundle that made it"
            )
        return dim

    def _named(self, method: str, ranking: Ranking, scores: Sequence[FloatArray] | None, depth: int) -> Ranked:
        ids = tuple(tuple(self.ids[i] for i in found[:depth].tolist()) for found in ranking)
        values = tuple(tuple(np.round(row, 6).tolist()) for row in scores) if scores is not None else ()
        return Ranked(method, ids, values)


def check_checkpoint(place: str, space_id: str, encoder: M3Encoder) -> None:
    """Refuse vectors of another checkpoint; those of fewer pieces are the bundle's, for what they cost is measured.

    Raises:
        InputError: they are.
    """
    if full_space_of(space_id) != full_space_of(encoder.space_id):
        raise InputError(
            f"{place!r} was made from another checkpoint: it has vectors of the space {space_id}, the bundle gives "
            f"{encoder.space_id}, and they do not compare; give the bundle that was exported from that checkpoint"
        )


def checked_index(index: HeldIndex, encoder: M3Encoder) -> HeldIndex:
    """The index, whose vectors have been looked at; ColBERT rows are when they are read.

    Raises:
        InputError: vectors are not as wide as the encoder's, or a document's hold NaN or infinity.
    """
    geometry, dense, sparse = encoder.bundle.manifest.geometry, index.vectors.dense, index.vectors.sparse
    widths = {"dense vectors": (dense.shape[1], geometry.hidden_size)}
    widths |= {} if sparse is None else {"lexical weights": (sparse.shape[1], geometry.vocab_size)}
    for what, (found, expected) in widths.items():
        if found != expected:
            raise InputError(
                f"{index.name}: {what} of {found} dimensions, the bundle's have {expected}; give the bundle that "
                "made it, or fill it again"
            )
    _refuse_strange(index.name, "dense vector", index.ids, np.flatnonzero(~np.isfinite(dense).all(axis=1)))
    if (read := index.colbert_rows) is None:
        return index
    width = geometry.colbert_dim if index.colbert_axes is None else index.colbert_axes[1]

    def rows(wanted: Indices) -> Iterator[tuple[int, NDArray[Any]]]:
        for number, found in read(wanted):
            if found.shape[1:] != (width,) or not len(found):
                raise InputError(
                    f"{index.name}: document {index.ids[number]!r} has not ColBERT rows of {width} values, as the "
                    "bundle's; encode it again"
                )
            if not np.isfinite(found).all():
                _refuse_strange(index.name, "ColBERT rows", index.ids, np.array([number]))
            yield number, found

    return replace(index, colbert_rows=rows)


def _refuse_strange(index: str, what: str, ids: Sequence[str], documents: Indices) -> None:
    if documents.size:
        raise InputError(f"{index}: NaN or infinity in the {what} of document {ids[documents[0]]!r}; encode it again")


def sparse_rows(
    index: str, documents: Sequence[str], starts: Indices, ids: Indices, weights: FloatArray, columns: int
) -> Any:
    """(N, `columns`) CSR of N documents' lexical weights; scipy takes any ids, and reads memory that is not its own.

    Raises:
        InputError: an id is no token's, or a weight is NaN or infinite; the document is named.
    """
    from scipy.sparse import csr_matrix

    of = np.repeat(np.arange(len(documents)), np.diff(starts))
    _refuse_strange(index, "lexical weights", documents, of[~np.isfinite(weights)])
    if (strangers := np.flatnonzero((ids < 0) | (ids >= columns))).size:
        raise InputError(
            f"{index}: the lexical weights of document {documents[of[strangers[0]]]!r} have the token id "
            f"{ids[strangers[0]]}, and ids go from 0 to {columns - 1}; encode it again"
        )
    return csr_matrix((weights, ids, starts), shape=(len(documents), columns))


def recording_of(place: str, encoder: M3Encoder) -> Recording:
    """A recording of the bundle's checkpoint, its texts in the order of their ids, which are numbers if it has none.

    Raises:
        InputError: it is of another checkpoint, or an id comes twice.
        DocumentError: it cannot be read.
    """
    recording = read_recording(Path(place))
    check_checkpoint(place, recording.run.model.space_id, encoder)
    if not recording.ids:
        return replace(recording, ids=tuple(f"{number:09d}" for number in range(len(recording.texts))))
    order, found = sorted(range(len(recording.ids)), key=recording.ids.__getitem__), recording.outputs
    texts, ids = (tuple(values[i] for i in order) for values in (recording.texts, recording.ids))
    refuse_twice(place, ids)
    lexical = None if found.lexical is None else [found.lexical[i] for i in order]
    colbert = None if found.colbert is None else [found.colbert[i] for i in order]
    return Recording(recording.run, texts, Outputs(found.dense[order], lexical, colbert), ids)


def refuse_twice(place: str, ascending: Sequence[str]) -> None:
    """Refuse ids that come twice.

    Raises:
        InputError: the first that does is named.
    """
    if (twice := next((a for a, b in pairwise(ascending) if a == b), None)) is not None:
        raise InputError(f"{place!r} has the id {twice!r} twice; rankings would not say which is meant")


def encoded_index(name: str, encoder: M3Encoder, recording: Recording, progress: Progress) -> HeldIndex:
    """A recording's texts, encoded by a bundle."""
    texts, ids = TextEncoder(encoder, None, progress), recording.ids

    def rows(wanted: Indices) -> Iterator[tuple[int, NDArray[Any]]]:
        chosen = wanted.tolist()
        return zip(chosen, texts.colbert_rows([recording.texts[n] for n in chosen], "candidates"), strict=True)

    vectors = texts.vectors(recording.texts, "documents")
    has_rows = Head.COLBERT in texts.heads
    name = f"{name}, {encoder.variant.name}"
    return HeldIndex(name, encoder.space_id, len(ids), ids, vectors, rows if has_rows else None)


def recorded_index(name: str, recording: Recording, encoder: M3Encoder) -> HeldIndex:
    """A recording's texts with their recorded vectors."""
    ids, kept = recording.ids, recording.outputs.colbert

    def rows(wanted: Indices) -> Iterator[tuple[int, NDArray[Any]]]:
        return ((index, kept[index]) for index in wanted.tolist()) if kept else iter(())

    vectors, space_id = _of_outputs(recording.outputs, encoder, name, ids), recording.run.model.space_id
    return HeldIndex(name, space_id, len(ids), ids, vectors, rows if kept else None, is_recorded=True)


def _of_outputs(outputs: Outputs, encoder: M3Encoder, name: str, texts: Sequence[str]) -> TextVectors:
    """The vectors as they are searched; `texts` are what errors call them."""
    sparse = None
    if outputs.lexical is not None:
        ids = np.array([token for row in outputs.lexical for token in row], np.int64)
        starts = np.cumsum([0, *map(len, outputs.lexical)])
        weights = np.array([weight for row in outputs.lexical for weight in row.values()], np.float32)
        columns = encoder.bundle.manifest.geometry.vocab_size
        sparse = sparse_rows(name, texts, starts, ids, weights, columns)
    return TextVectors(outputs.dense, sparse, 0)
