"""What a bundle does, on one page: scores, lexical weights as words, and search across languages.

python examples/demo.py BUNDLE
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import numpy as np

from m3_runtime import M3Encoder
from m3_runtime.cli.ending import run_command
from m3_runtime.cli.interrupt import interruptible

QUERIES = ["What is BGE M3?", "Defination of BM25"]  # spelled as in the model's own README
PASSAGES = [
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
    "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the query terms appearing in "
    "each document",
]
LIBRARY = [
    "The lighthouse keeper lit the lamp at dusk and logged every ship that passed the cape.",
    "To bake sourdough, feed the starter the evening before and let the loaf rise overnight.",
    "A heat pump moves warmth from the cold air outside into the house, using little electricity.",
    "The glacier has retreated two kilometres since the first survey of the valley.",
    "Vaccines train the immune system to recognise a virus before it meets the real one.",
    "The night train from Vienna reaches Venice shortly after sunrise.",
    "Compilers turn source code into machine instructions and report errors with line numbers.",
    "Bees find their way back to the hive by the position of the sun.",
]
QUESTIONS = {"zh": "蜜蜂怎么找到回蜂巢的路？", "de": "Wie heizt eine Wärmepumpe das Haus?"}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; gives its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="the bundle's folder")
    given = parser.parse_args(words)
    return run_command("demo", lambda: show(given.bundle), memory_remedy="take a smaller model, mini-m3")


def show(bundle: str) -> None:
    """Print the whole page."""
    with interruptible(partial(M3Encoder.open, bundle)) as encoder:
        source = encoder.bundle.manifest.source.name
        print(f"{source} with variant {encoder.variant.name}, {encoder.space_id}")
        show_scores(encoder)
        show_words(encoder)
        show_search(encoder)


def show_scores(encoder: M3Encoder) -> None:
    """The three score matrices: queries down, passages across."""
    queries = encoder.encode(QUERIES, return_sparse=True, return_colbert_vecs=True)
    passages = encoder.encode(PASSAGES, return_sparse=True, return_colbert_vecs=True)
    colbert = [[encoder.colbert_score(q, p) for p in passages["colbert_vecs"]] for q in queries["colbert_vecs"]]
    sparse = encoder.compute_lexical_matching_score(queries["lexical_weights"], passages["lexical_weights"])
    for name, matrix in (
        ("dense", queries["dense_vecs"] @ passages["dense_vecs"].T),
        ("sparse", sparse),
        ("ColBERT", np.array(colbert)),
    ):
        print(f"\n{name} scores")
        for query, row in zip(QUERIES, matrix, strict=True):
            print("  " + "  ".join(f"{score:.4f}" for score in row) + f"   {query}")


def show_words(encoder: M3Encoder) -> None:
    """The heaviest lexical weights, as words."""
    print("\nlexical weights, heaviest first")
    weights = encoder.encode(QUERIES, return_dense=False, return_sparse=True)["lexical_weights"]
    for query, words in zip(QUERIES, encoder.convert_id_to_token(weights), strict=True):
        heaviest = sorted(words.items(), key=lambda item: -item[1])[:5]
        print(f"  {query}: " + ", ".join(f"{word} {weight:.2f}" for word, weight in heaviest))


def show_search(encoder: M3Encoder) -> None:
    """A question in one language, its passage in another."""
    print("\nacross languages (dense + ColBERT)")
    passages = encoder.encode_corpus(LIBRARY, return_colbert_vecs=True)
    for language, question in QUESTIONS.items():
        query = encoder.encode_queries([question], return_colbert_vecs=True)
        dense = passages["dense_vecs"] @ query["dense_vecs"][0]
        colbert = [encoder.colbert_score(query["colbert_vecs"][0], rows) for rows in passages["colbert_vecs"]]
        scores = (dense + np.array(colbert)) / 2
        print(f"  [{language}] {question}")
        for place in np.argsort(-scores)[:2]:
            print(f"       {scores[place]:.4f}  {LIBRARY[place]}")


if __name__ == "__main__":
    sys.exit(main())
