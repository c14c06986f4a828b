"""Retrieval for a chat model (RAG), small enough to read: every rung of the ladder side by side.

Keywords (TF-IDF, BM25), static word vectors, dense, sparse, ColBERT, the hybrid of the last three, and with a
reranker's bundle the hybrid's best in its order. It keeps a small document store in one folder, asks it every question
in all these ways, and shows what each finds. Needs the extras `bench`, for BM25, and `export`, which reads the word
vectors from the bundle; without the latter they are left out.

    python examples/rag_search.py BUNDLE                             # questions in English and Chinese
    python examples/rag_search.py BUNDLE "谁发现了镭？"                # your own question
    python examples/rag_search.py BUNDLE --corpus docs.jsonl         # your own passages, {"_id": …, "text": …} a line
    python examples/rag_search.py BUNDLE --store my-store            # keep the vectors; the next start takes them again
    python examples/rag_search.py BUNDLE --reranker RERANKER         # the last rung: m3-export mini-reranker RERANKER
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3_bench.retrieval.keywords import Bm25, StaticVectors, TfIdf
from m3_bench.retrieval.search import words_of
from m3_runtime import Encoding, M3Encoder, M3Error, M3Reranker, check_space
from m3_runtime.errors import ExtraNotInstalledError, InputError

CORPUS = Path(__file__).parents[1] / "benchmarks" / "data" / "multilingual" / "corpus.jsonl"
QUESTIONS = (
    "Who first climbed the second highest mountain on Earth?",
    "Which lake is the deepest in the world?",
    "谁用胶泥做成活字？",
    "谁发现了镭？",
)
WEIGHTS = (0.4, 0.2, 0.4)
"""Dense, sparse, ColBERT in the hybrid score: those of BGE-M3's README."""
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
        part = path.with_suffix(".part.npz")  # a run that is stopped here leaves no half store under the name
        np.savez(
            part,
            made_by=np.array([encoder.space_id, encoder.variant.name]),
            texts=np.array(passages.texts),
            dense=self._dense,
            sparse=np.array(json.dumps(self._sparse)),
            colbert=np.concatenate(self._colbert),
            rows=np.array([len(rows) for rows in self._colbert]),
        )
        part.replace(path)

    @classmethod
    def load(cls, path: Path, encoder: M3Encoder, passages: Passages) -> "Store":
        """Read a store again.

        Raises:
            SpaceMismatchError: another model filled it.
            SystemExit: it holds other passages.
        """
        with np.load(path) as kept:
            space_id, variant = map(str, kept["made_by"])
            check_space(space_id, variant, encoder)
            if tuple(kept["texts"]) != passages.texts:
                sys.exit(f"{path} holds other passages than the corpus has now; delete it, and it is made again")
            colbert = np.split(kept["colbert"], np.cumsum(kept["rows"])[:-1])
            return cls(kept["dense"], json.loads(str(kept["sparse"])), colbert)

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
        self._keywords = {"TF-IDF": TfIdf(words), "BM25": Bm25(words)}
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
    best = [int(place) for place in np.argsort(-scores, kind="stable")[:SHOWN] if scores[place] > 0]
    return Ranked(method, tuple(best), tuple(float(scores[place]) for place in best))


def reranked(reranker: M3Reranker, question: str, scores: Scores, passages: Passages) -> Ranked:
    """The best of other scores in the reranker's order, which reads question and passage together."""
    best = [int(place) for place in np.argsort(-scores, kind="stable")[:RERANKED]]
    found = reranker.compute_score([(question, passages.texts[place]) for place in best], normalize=True)
    order = sorted(range(len(best)), key=lambda i: -found[i])[:SHOWN]
    return Ranked("reranked", tuple(best[i] for i in order), tuple(found[i] for i in order))


def search(encoder: M3Encoder, store: Store, words: Words, question: str) -> tuple[list[Ranked], Scores]:
    """Ask in all ways; the question is encoded once. Gives the hybrid's scores too."""
    encoding = encoder.encode_queries(question, return_sparse=True, return_colbert_vecs=True)
    dense, sparse, colbert = store.scores(encoder, encoding)
    hybrid = np.asarray(sum(weight * score for weight, score in zip(WEIGHTS, (dense, sparse, colbert), strict=True)))
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
    """Passages of a JSONL file."""
    rows = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines() if line.strip()]
    return Passages(tuple(row["_id"] for row in rows), tuple(row["text"] for row in rows))


def main() -> None:
    """Build or read the store, ask, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="the bundle's folder")
    parser.add_argument("question", nargs="*", default=QUESTIONS, help="what to ask; several may be given")
    parser.add_argument("--corpus", type=Path, default=CORPUS, metavar="FILE", help="JSONL with _id and text")
    parser.add_argument("--store", type=Path, metavar="FOLDER", help="keep the vectors here")
    parser.add_argument("--reranker", metavar="BUNDLE", help="a reranker's folder: orders what the hybrid finds")
    given = parser.parse_intermixed_args()  # questions may come after options
    passages = read(given.corpus)
    with ExitStack() as models:
        reranker = None if given.reranker is None else models.enter_context(M3Reranker.open(given.reranker))
        encoder = models.enter_context(M3Encoder.open(given.bundle))
        store = opened(encoder, passages, given.store)
        words = Words(encoder, passages)
        for question in given.question:
            found, hybrid = search(encoder, store, words, question)
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
    store = Store.build(encoder, passages)
    folder.mkdir(parents=True, exist_ok=True)
    store.save(path, encoder, passages)
    return store


if __name__ == "__main__":
    try:
        main()
    except M3Error as error:
        sys.exit(f"rag_search: {error}")
