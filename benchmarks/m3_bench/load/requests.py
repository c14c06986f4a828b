"""Requests as they go over the wire, and what comes back of them."""

import base64
import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult

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
    """One way of asking for vectors: its path, its body for texts and a model's name, and how answers are read."""

    path: Callable[[str], str]
    body: Callable[[Sequence[str], str], Mapping[str, Any]]
    read: Callable[[bytes, int], Answered]


@dataclass(frozen=True, eq=False)
class LoadRequest:
    """A request as it is sent; `expected` is what the encoder gives, None if nothing is compared."""

    sent: bytes
    texts: tuple[str, ...]
    api: Api
    expected: Encoding | None

    def cosine_min(self, answered: Answered) -> float:
        """The lowest cosine of an answer's vectors to the expected ones.

        Raises:
            ValueError: they are not of the same shape, or the sparse ids differ.
        """
        assert self.expected is not None
        expected = {"dense": self.expected.dense_vecs}
        if "colbert" in answered.vectors:
            if not np.array_equal(answered.vectors["sparse_ids"], self.expected.sparse.ids):
                raise ValueError("other tokens have lexical weights")
            expected["sparse"] = self.expected.sparse.weights[None]
            expected["colbert"] = np.concatenate(self.expected.colbert_vecs)
        return min(_cosine_min(answered.vectors[head], rows) for head, rows in expected.items())


def made_texts(seed: int, count: int, words: int) -> tuple[str, ...]:
    """So many texts, each of half to one and a half times so many words."""
    draw = random.Random(seed)  # noqa: S311 - the same texts each time
    return tuple(" ".join(draw.choices(WORDS, k=max(1, round(words * draw.uniform(0.5, 1.5))))) for _ in range(count))


def made_requests(
    at: SplitResult, apis: Sequence[str], model: str, key: str | None, texts: int, words: int, encoder: M3Encoder | None
) -> list[LoadRequest]:
    """The pool of requests: of one up to twice as many texts, over the APIs in turn."""
    found = []
    for number in range(POOL):
        api = APIS[apis[number % len(apis)]]
        count = random.Random(number).randint(1, 2 * texts - 1)  # noqa: S311 - the same each time
        made = made_texts(number, count, words)
        expected = None
        if encoder is not None:
            expected = encoder.encode(
                list(made), max_length=encoder.max_tokens, return_sparse=True, return_colbert_vecs=True
            )
        body = json.dumps(api.body(made, model)).encode()
        found.append(LoadRequest(_on_the_wire(at, api.path(at.path.rstrip("/")), key, body), made, api, expected))
    return found


def models_request(at: SplitResult, key: str | None) -> bytes:
    """A request for the models that an OpenAI server has."""
    return _on_the_wire(at, f"{at.path.rstrip('/').removesuffix('/v1')}/v1/models", key, b"", "GET")


def _on_the_wire(at: SplitResult, path: str, key: str | None, body: bytes, method: str = "POST") -> bytes:
    head = [f"{method} {path} HTTP/1.1", f"host: {at.netloc}", "content-type: application/json"]
    head += [f"content-length: {len(body)}", *([f"authorization: Bearer {key}"] if key else []), "", ""]
    return "\r\n".join(head).encode() + body


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
        lambda prefix: f"{prefix.removesuffix('/v1')}/v1/embeddings",
        lambda texts, model: {"model": model, "input": texts, "encoding_format": "base64"},
        _read_openai,
    ),
    "tei": Api(lambda prefix: f"{prefix}/embed", lambda texts, _: {"inputs": texts, "truncate": True}, _read_tei),
    "m3": Api(lambda prefix: f"{prefix}/m3/encode", lambda texts, _: {"texts": texts, "format": "npz"}, _read_m3),
}


def _cosine_min(found: np.ndarray, expected: Any) -> float:
    if found.shape != expected.shape:
        raise ValueError(f"expected vectors of shape {expected.shape}, got {found.shape}")
    a, b = found.astype(np.float64), expected.astype(np.float64)
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())
