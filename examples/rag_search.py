"""Retrieval for a chat model (RAG), small enough to read: every rung of the ladder side by side.

Keywords (TF-IDF, BM25), static word vectors, dense, sparse, ColBERT, the hybrid of the last three, and with a
reranker's bundle the hybrid's best in its order. It keeps a small document store in one folder, asks it every question
in all these ways, and shows what each finds. Needs the extras `bench`, for BM25, and `export`, which reads the word
vectors from the bundle; without the latter they are left out.

    python examples/rag_search.py BUNDLE                             # questions in English and Chinese
    python examples/rag_search.py BUNDLE "谁用胶泥做成活字？"          # your own question
    python examples/rag_search.py BUNDLE --corpus docs.jsonl         # your own passages, {"id": …, "text": …} a line
    python examples/rag_search.py BUNDLE --weights 0.4,0.2,0.4       # the hybrid as BGE-M3's README adds it up
    python examples/rag_search.py BUNDLE --store my-store            # keep the vectors; the next start takes them again
    python examples/rag_search.py BUNDLE --reranker RERANKER         # the last rung: m3-export mini-reranker RERANKER
"""

import argparse
import json
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3_bench.retrieval.hybrids import Hybrid, parse_weights
from m3_bench.retrieval.keywords import Bm25, StaticVectors, TfIdf
from m3_bench.retrieval.search import best, best_above_zero, words_of
from m3_runtime import Encoding, M3Encoder, M3Reranker, check_space
from m3_runtime.cli.ending import run_command
from m3_runtime.cli.interrupt import interruptible
from m3_runtime.errors import ExtraNotInstalledError, InputError
from m3_runtime.io.output import opened_output, write_npz
from m3_runtime.io.readers import read_texts
from m3_runtime.io.rows import Columns
from m3_runtime.pairs import is_blank

CORPUS = Path(__file__).parents[1] / "benchmarks" / "data" / "multilingual" / "corpus.jsonl"
QUESTIONS = (
    "Who first climbed the second highest mountain on Earth?",
    "Which lake is the deepest in the world?",
    "谁用胶泥做成活字？",
    "谁是第一个进入太空的人？",
)
WEIGHTS = "1,0.1,1"
"""Dense, sparse, ColBERT in the hybrid score.

They suit mini-m3, whose sparse scores are several times BGE-M3's (models/README.md); BGE-M3's README has 0.4,0.2,0.4.
"""
SHOWN, RERANKED = 3, 20

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Passages:
    """N texts and their names, in one order."""

    names: tuple[str, ...]
    texts: tuple[str, ...]


class Store:
    """N passages with their three kinds of vectors, in memory; kept in one .npz file.

    Brute force, no index: right for some thousand passages. For more see docs/use/integrations.md.
    """

    def __init__(self, dense: Scores, sparse: Sequence[dict[str, float]], colbert: Sequence[Scores]) -> None:
        """Vectors of the passages: (N, H), N rows of weights, N arrays (L-1, C)."""
        self._dense, self._sparse, self._colbert = dense, sparse, colbert

    @classmethod
    def build(cls, encoder: M3Encoder, passages: Passages) -> "Store":
        """Encode every passage once, with all three heads."""
        found = encoder.encode_corpus(passages.texts, return_sparse=True, return_colbert_vecs=True)
        return cls(found["dense_vecs"], found["lexical_weights"], found["colbert_vecs"])

    def save(self, path: Path, encoder: M3Encoder, passages: Passages) -> None:
        """Write the store, with what made it: vectors of another model must not be compared with these."""
        arrays = {
            "made_by": np.array([encoder.space_id, encoder.variant.name]),
            "texts": np.array(passages.texts),
            "dense": self._dense,
            "sparse": np.array(json.dumps(self._sparse)),
            "colbert": np.concatenate(self._colbert),
            "rows": np.array([len(rows) for rows in self._colbert]),
        }
        with opened_output(str(path)) as file:
            write_npz(file, arrays)

    @classmethod
    def load(cls, path: Path, encoder: M3Encoder, passages: Passages) -> "Store":
        """Read a store again.

        Raises:
            SpaceMismatchError: another model filled it.
            InputError: it holds other passages, or is no store.
        """
        remedy = "delete it, and it is made again, or choose another folder for --store"
        try:
            with path.open("rb") as file, np.load(file) as kept:
                space_id, variant = map(str, kept["made_by"])
                texts, dense, sparse = tuple(kept["texts"]), kept["dense"], json.loads(str(kept["sparse"]))
                colbert = np.split(kept["colbert"], np.cumsum(kept["rows"])[:-1])
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{str(path)!r} is no store that this example has written; {remedy}") from error
        check_space(space_id, variant, encoder)
        if texts != passages.texts:
            raise InputError(f"{str(path)!r} holds other passages than the corpus has now; {remedy}")
        return cls(dense, sparse, colbert)

    def scores(self, encoder: M3Encoder, question: Encoding) -> tuple[Scores, Scores, Scores]:
        """Dense, sparse and ColBERT scores of the question with every passage, (N,) each."""
        dense = self._dense @ question["dense_vecs"]
        weights = question["lexical_weights"]
        sparse = [encoder.compute_lexical_matching_score(weights, passage) for passage in self._sparse]
        colbert = [encoder.colbert_score(question["colbert_vecs"], rows) for rows in self._colbert]
        return dense, np.array(sparse, dtype=np.float32), np.array(colbert, dtype=np.float32)


class Words:
    """What searches without the model's heads, to compare with.

    Words are pairs of characters where a script writes no blanks.
    """

    def __init__(self, encoder: M3Encoder, passages: Passages) -> None:
        words = [words_of(text) for text in passages.texts]
        self._keywords: dict[str, TfIdf | Bm25] = {"TF-IDF": TfIdf(words), "BM25": Bm25(words)}
        self._static: StaticVectors | None = None
        try:
            self._static = StaticVectors(encoder, passages.texts, None)
        except (InputError, ExtraNotInstalledError) as error:
            print(f"no word vectors: {error}", file=sys.stderr)

    def scores(self, question: str) -> dict[str, Scores]:
        """(N,) by each method; 0 where no word is shared."""
        found = {name: index.scores(words_of(question)) for name, index in self._keywords.items()}
        return found if self._static is None else {**found, "static": self._static.scores(question)}


@dataclass(frozen=True)
class Ranked:
    """What one method found: places of passages, best first, and their scores."""

    method: str
    places: tuple[int, ...]
    scores: tuple[float, ...]


def ranked(method: str, scores: Scores) -> Ranked:
    """The best few; those without a score are not found."""
    places = best_above_zero(scores, SHOWN)
    return Ranked(method, tuple(places.tolist()), tuple(scores[places].tolist()))


def reranked(reranker: M3Reranker, question: str, scores: Scores, passages: Passages) -> Ranked:
    """The best of other scores in the reranker's order, which reads question and passage together."""
    places = np.array([place for place in best(scores, RERANKED) if not is_blank(passages.texts[place])], np.int64)
    found = np.array(reranker.compute_score([(question, passages.texts[place]) for place in places], normalize=True))
    order = best(found, SHOWN)
    return Ranked("reranked", tuple(places[order].tolist()), tuple(found[order].tolist()))


def search(
    encoder: M3Encoder, store: Store, words: Words, question: str, weights: Hybrid
) -> tuple[list[Ranked], Scores]:
    """Ask in all ways; the question is encoded once. Gives the hybrid's scores too."""
    encoding = encoder.encode_queries(question, return_sparse=True, return_colbert_vecs=True)
    dense, sparse, colbert = store.scores(encoder, encoding)
    hybrid = weights.fused(dense, sparse, colbert)
    found = [
        *(ranked(name, scores) for name, scores in words.scores(question).items()),
        ranked("dense", dense),
        ranked("sparse", sparse),
        ranked("ColBERT", colbert),
        ranked("hybrid", hybrid),
    ]
    return found, hybrid


def show(question: str, found: Sequence[Ranked], passages: Passages) -> None:
    """One question with its table, and what a chat model would be given."""
    print(f"\n{question}")
    for one in found:
        hits = "   ".join(f"{passages.names[p]} {s:.3f}" for p, s in zip(one.places, one.scores, strict=True))
        print(f"  {one.method:<8} {hits or 'nothing'}")
    if found[-1].places:
        print(f"  context: {passages.texts[found[-1].places[0]]}")


def read(corpus: Path) -> Passages:
    """Passages of a file, called by their `_id`, else by their `id`, else by their number.

    Raises:
        InputError: it cannot be read, a row is no passage, an id comes twice, or there is none.
    """
    rows = tuple(read_texts(str(corpus), columns=columns_of(corpus)))
    if not rows:
        raise InputError(f"{str(corpus)!r} has no passages")
    names = Counter(row.id for row in rows)
    if twice := next((name for name, times in names.items() if times > 1), None):
        raise InputError(f"{str(corpus)!r} has the id {twice!r} twice; give each passage its own")
    return Passages(tuple(names), tuple(row.text for row in rows))


def columns_of(corpus: Path) -> Columns:
    """BEIR's key of ids where the first passage has it, else the usual one. A pipe can be read only once."""
    of_beir = Columns(id="_id")
    try:
        if corpus.is_file():
            next(read_texts(str(corpus), columns=of_beir), None)
            return of_beir
    except InputError:  # without it; or faulty, which the next reader says
        pass
    return Columns()


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; gives its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="the bundle's folder")
    parser.add_argument("question", nargs="*", default=QUESTIONS, help="what to ask; several may be given")
    parser.add_argument(
        "--corpus", type=Path, default=CORPUS, metavar="FILE", help="passages, as m3-runtime bulk reads them, or BEIR's"
    )
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="keep the vectors here")
    parser.add_argument("--reranker", metavar="BUNDLE", help="a reranker's folder: orders what the hybrid finds")
    parser.add_argument(
        "--weights",
        default=WEIGHTS,
        metavar="D,S[,C]",
        help=f"of dense, sparse and ColBERT in the hybrid; default: {WEIGHTS}, for mini-m3",
    )
    given = parser.parse_intermixed_args(words)  # questions may come after options
    return run_command(
        "rag_search",
        lambda: answer(given),
        memory_remedy="take fewer or shorter passages",
        extras_of=lambda _: "bench",
    )


def answer(given: argparse.Namespace) -> None:
    """Build or read the store, ask, show.

    Raises:
        M3Error: what was given is wrong.
    """
    weights = parse_weights(given.weights)
    if any(map(is_blank, given.question)):
        raise InputError("a question is empty; ask one in words")
    passages = read(given.corpus)
    with ExitStack() as models:
        reranker = None
        if given.reranker is not None:
            reranker = models.enter_context(interruptible(partial(M3Reranker.open, given.reranker)))
        encoder = models.enter_context(interruptible(partial(M3Encoder.open, given.bundle)))
        store = opened(encoder, passages, given.store)
        words = Words(encoder, passages)
        for question in given.question:
            found, hybrid = search(encoder, store, words, question, weights)
            if reranker is not None:
                found.append(reranked(reranker, question, hybrid, passages))
            show(question, found, passages)


def opened(encoder: M3Encoder, passages: Passages, folder: Path | None) -> Store:
    """The store: from the folder if it is there, else made, and kept if a folder is given."""
    if folder is None:
        return Store.build(encoder, passages)
    path = folder / "store.npz"
    if path.exists():
        return Store.load(path, encoder, passages)
    try:
        folder.mkdir(parents=True, exist_ok=True)  # before the work
    except OSError as error:
        raise InputError(f"cannot make the folder --store {str(folder)!r}: {error.strerror}") from error
    store = Store.build(encoder, passages)
    store.save(path, encoder, passages)
    return store


if __name__ == "__main__":
    sys.exit(main())
