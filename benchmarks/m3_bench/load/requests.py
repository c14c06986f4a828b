"""Requests for vectors by several APIs: what is sent, and what is read from answers."""

import base64
import io
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m3_runtime import Encoding, M3Encoder

WORDS = (
    "river", "Brücke", "мост", "桥", "stone", "agua", "vent", "clear", "number", "seven", "garden", "лето", "house",
    "paper", "signal", "winter", "orden", "and", "the", "of", "without", "machine", "language", "query", "answer",
)  # fmt: skip
POOL = 61  # different requests, again and again; a prime, so that they meet in ever new company


@dataclass(frozen=True)
class Answered:
    """Vectors of an answer by head, as rows of all its texts, and its tokens (0 where the server does not count)."""

    vectors: Mapping[str, np.ndarray]
    tokens: int


@dataclass(frozen=True)
class Api:
    """One way of asking for vectors: its path, the body for texts and a model's name, and how answers are read."""

    path: str
    body: Callable[[Sequence[str], str], Mapping[str, Any]]
    read: Callable[[bytes, int], Answered]


@dataclass(frozen=True, eq=False)
class LoadRequest:
    """A request; `expected` is what the encoder gives for its texts, None if nothing is compared."""

    api: Api
    body: bytes
    texts: tuple[str, ...]
    expected: Encoding | None

    def cosine_min(self, answered: Answered) -> float:
        """The lowest cosine of an answer's vectors to the expected ones, -1 where they cannot be compared."""
        assert self.expected is not None
        expected = {"dense": self.expected.dense_vecs}
        if "colbert" in answered.vectors:
            assert self.expected.sparse is not None and self.expected.colbert_vecs is not None
            if not np.array_equal(answered.vectors["sparse_ids"], self.expected.sparse.ids):
                return -1.0
            expected["sparse"] = self.expected.sparse.weights[None]
            expected["colbert"] = np.concatenate(list(self.expected.colbert_vecs))
        return min(_cosine_min(answered.vectors[head], rows) for head, rows in expected.items())


def made_requests(
    apis: Sequence[str], model: str, texts: int, words: int, encoder: M3Encoder | None
) -> Iterator[LoadRequest]:
    """Yield the pool: requests of one up to twice as many texts, of half to one and a half times as many words.

    Args:
        apis: names of `APIS`, which take turns.
        model: that OpenAI's API is asked for.
        texts: of a request, on average.
        words: of a text, on average.
        encoder: gives what is expected; None if nothing is compared.
    """
    for number in range(POOL):
        draw = random.Random(number)  # noqa: S311 - the same texts each time
        counts = (max(1, round(words * draw.uniform(0.5, 1.5))) for _ in range(draw.randint(1, 2 * texts - 1)))
        made = tuple(" ".join(draw.choices(WORDS, k=count)) for count in counts)
        api, expected = APIS[apis[number % len(apis)]], None
        if encoder is not None:
            longest = encoder.max_tokens
            expected = encoder.encode(list(made), max_length=longest, return_sparse=True, return_colbert_vecs=True)
        yield LoadRequest(api, json.dumps(api.body(made, model)).encode(), made, expected)


def _read_openai(content: bytes, _texts: int) -> Answered:
    answer = json.loads(content)
    items = sorted(answer["data"], key=lambda item: int(item["index"]))
    rows = [item["embedding"] for item in items]
    dense = np.array([np.frombuffer(base64.b64decode(r), "<f4") if isinstance(r, str) else r for r in rows])
    return Answered({"dense": dense}, int((answer.get("usage") or {}).get("total_tokens", 0)))


def _read_tei(content: bytes, _texts: int) -> Answered:
    return Answered({"dense": np.array(json.loads(content))}, 0)


def _read_m3(content: bytes, texts: int) -> Answered:
    found = np.load(io.BytesIO(content), allow_pickle=False)
    vectors = {
        "dense": found["dense_vecs"],
        "sparse": found["sparse_weights"][None],
        "sparse_ids": found["sparse_ids"],
        "colbert": found["colbert_vecs"],
    }
    return Answered(vectors, len(found["colbert_vecs"]) + texts)  # a row for every token but the first


APIS: Mapping[str, Api] = {
    "openai": Api(
        "/v1/embeddings",
        lambda texts, model: {"model": model, "input": texts, "encoding_format": "base64"},
        _read_openai,
    ),
    "tei": Api("/embed", lambda texts, _: {"inputs": texts, "truncate": True}, _read_tei),
    "m3": Api("/m3/encode", lambda texts, _: {"texts": texts, "format": "npz"}, _read_m3),
}


def _cosine_min(found: np.ndarray, expected: Any) -> float:
    if found.shape != expected.shape:
        return -1.0
    a, b = found.astype(np.float64), expected.astype(np.float64)
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())
