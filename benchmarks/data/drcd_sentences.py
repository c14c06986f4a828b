"""Make fine-tuning lines and a labelled set from DRCD: which sentence answers the question?

    python benchmarks/data/drcd_sentences.py DRCD_dev.json OUT

writes OUT/train.jsonl and OUT/held_out.jsonl for FlagEmbedding and `m3-bench margins`, and OUT/held_out/ in BEIR's
layout for `m3-bench retrieval`. DRCD (Shao et al. 2018, CC BY-SA 3.0) is Wikipedia in Traditional Chinese. A third of
its articles is held back, the third that mini-m3's heads have not seen. Negatives are sentences of the same side that
BM25 ranks highest and that do not hold the answer.
"""

import json
import random
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m3_bench.retrieval.keywords import Bm25
from m3_bench.retrieval.search import best, words_of

SPLIT_SEED, HELD_OUT_SHARE = 20240205, 1 / 3  # the split of models/train_mini_m3_heads.py
TRAIN_LINES, HELD_OUT_LINES, NEGATIVES = 1600, 300, 7
SENTENCE = re.compile(r"[^。！？]+[。！？]?[」』）]*")


@dataclass(frozen=True)
class Asked:
    """A question, its answer, and the sentence that holds it, by its place in `sentences`."""

    question: str
    answer: str
    sentence: int


def read(articles: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[Asked]]:
    """All sentences, each once, and the questions whose answer stands within one."""
    places: dict[str, int] = {}
    asked = []
    for paragraph in (one for article in articles for one in article["paragraphs"]):
        spans = [(found.end(), found.group().strip()) for found in SENTENCE.finditer(paragraph["context"])]
        for _, sentence in spans:
            places.setdefault(sentence, len(places))
        for item in paragraph["qas"]:
            answer = item["answers"][0]
            sentence = next((text for end, text in spans if end > answer["answer_start"]), "")
            if answer["text"] in sentence:
                asked.append(Asked(item["question"].strip(), answer["text"], places[sentence]))
    return list(places), asked


def lines(sentences: Sequence[str], asked: Iterable[Asked]) -> Iterable[dict[str, object]]:
    """FlagEmbedding's fine-tuning lines."""
    index = Bm25([words_of(sentence) for sentence in sentences])
    for one in asked:
        near = [sentences[place] for place in best(index.scores(words_of(one.question)), 50)]
        negatives = [text for text in near if one.answer not in text][:NEGATIVES]
        yield {"query": one.question, "pos": [sentences[one.sentence]], "neg": negatives}


def write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main(source: Path, out: Path) -> None:
    """Write both files of lines and the labelled set."""
    articles = json.loads(source.read_text(encoding="utf-8"))["data"]
    order = np.random.default_rng(SPLIT_SEED).permutation(len(articles))
    held_out = set(order[: round(len(articles) * HELD_OUT_SHARE)].tolist())
    draws = random.Random(0)  # noqa: S311 - a sample, no secret
    for name, is_held_out, most in (("train", False, TRAIN_LINES), ("held_out", True, HELD_OUT_LINES)):
        sentences, asked = read(one for number, one in enumerate(articles) if (number in held_out) == is_held_out)
        asked = draws.sample(asked, min(most, len(asked)))
        write(out / f"{name}.jsonl", lines(sentences, asked))
    write(out / "held_out/corpus.jsonl", ({"_id": f"s{n}", "text": text} for n, text in enumerate(sentences)))
    write(out / "held_out/queries.jsonl", ({"_id": f"q{n}", "text": one.question} for n, one in enumerate(asked)))
    labels = "".join(f"q{n}\ts{one.sentence}\t1\n" for n, one in enumerate(asked))
    (out / "held_out/qrels").mkdir(exist_ok=True)
    (out / "held_out/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + labels, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
