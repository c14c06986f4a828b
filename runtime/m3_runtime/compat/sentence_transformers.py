"""`SentenceTransformer` over a bundle: sentence-transformers' class, with NumPy arrays and without PyTorch.

docs/use/sentence-transformers.md lists what differs and why.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m3_runtime.bundle.prompts import read_prompts
from m3_runtime.encode.encoding import leading, log_losses
from m3_runtime.encode.options import checked_integer, checked_max_length
from m3_runtime.encoder import M3Encoder
from m3_runtime.engines.select import AUTO
from m3_runtime.errors import InputError
from m3_runtime.ignored import Devices, check_devices, refuse_changes, taken_from
from m3_runtime.io.progress import Progress
from m3_runtime.tokenizer import M3Tokenizer, check_text, checked_texts

_ENGINES = {None: AUTO, "torch": AUTO, "onnx": "onnxruntime", "openvino": "openvino"}
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
# Arguments of sentence-transformers that a bundle cannot obey, with the values that ask for nothing.
_NOTHING: Mapping[str, Any] = {
    "modules": [],
    "model_kwargs": {},
    "tokenizer_kwargs": {},
    "processor_kwargs": {},
    "config_kwargs": {},
    "output_value": "sentence_embedding",
    "convert_to_numpy": True,
    "convert_to_tensor": False,
    "pool": False,
    "chunk_size": False,
}
_DOWNLOAD = {"cache_folder", "trust_remote_code", "local_files_only", "token", "use_auth_token", "model_card_data"}
"""Arguments that concern a download. There is none."""
_BATCHES_OF_A_STEP = 8
"""How many batches are encoded between two steps of a progress bar: many texts are encoded faster than few."""


class SentenceTransformer:
    """sentence-transformers 5's class on CPU: the dense head, as arrays.

    >>> model = SentenceTransformer("bge-m3-cpu")  # doctest: +SKIP
    >>> passages = model.encode_document(["Bees dance."])  # doctest: +SKIP
    >>> model.similarity(model.encode_query("How do bees talk?"), passages)  # doctest: +SKIP

    Attributes:
        encoder: the `M3Encoder` that does the work.
        prompts: what may be put before texts, by name; the bundle's, with those of the caller.
        default_prompt_name: of the prompt for texts that come without one, or None.
        truncate_dim: leading dimensions that are kept, or None.
        similarity_fn_name: "cosine", "dot", "euclidean" or "manhattan".
        device: always "cpu".
    """

    device = "cpu"

    def __init__(
        self,
        model_name_or_path: str | Path,
        *,
        device: Devices | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        similarity_fn_name: str | None = None,
        truncate_dim: int | None = None,
        backend: str | None = None,
        revision: str | None = None,
        **more: Any,
    ) -> None:
        """Open a bundle. Arguments are sentence-transformers', with these differences.

        `model_name_or_path` is a bundle's folder. `device` may name another than the CPU, with a warning. `prompts` win
        over the bundle's. `backend` "onnx" or "openvino" chooses that engine; None and "torch" the fastest that runs
        here. `revision` is None, or the commit that the bundle was exported from. `variant`, `threads` and `low_memory`
        are those of `M3Encoder.open`. Arguments that concern a download have no effect; others must ask for nothing.

        Raises:
            M3Error: as `M3Encoder.open`, and InputError for what cannot be done.

        Warns:
            IgnoredArgumentWarning: another device than the CPU.
        """
        engine = _ENGINES[_one_of(_ENGINES, backend, "backend")]
        opening = {"engine": engine, **taken_from(more, "variant", "threads", "low_memory")}
        if unknown := sorted(more.keys() - _NOTHING.keys() - _DOWNLOAD):
            raise InputError(f"unknown argument {unknown[0]!r}; sentence-transformers has none of that name either")
        refuse_changes(more, _NOTHING)
        check_devices(device, "device")
        self.similarity_fn_name = _one_of(_SIMILARITIES, similarity_fn_name or "cosine", "similarity_fn_name")
        self.encoder = M3Encoder.open(model_name_or_path, **opening)
        exported = self.encoder.bundle.manifest.source.revision
        if revision not in (None, exported):
            raise InputError(f"revision is {revision!r}, but the bundle was exported from {exported!r}; leave it out")
        kept = read_prompts(self.encoder.bundle)
        self.prompts = {"query": "", "document": "", **kept.prompts, **(prompts or {})}
        self.default_prompt_name = kept.default if default_prompt_name is None else default_prompt_name
        self._prompt(None, None)  # a default that is none of the prompts is an error now
        self.truncate_dim = truncate_dim
        self._max_seq_length = self.encoder.max_tokens

    def encode(  # noqa: PLR0913, PLR0917 - sentence-transformers' arguments
        self,
        sentences: str | Sequence[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Devices | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: Any = None,
        chunk_size: int | None = None,
        *,
        inputs: str | Sequence[str] | None = None,
    ) -> NDArray[Any]:
        """The dense vectors of S texts.

        How many were cut to `max_seq_length` is logged as a warning by "m3_runtime". Arguments are
        sentence-transformers', with these differences.

        `show_progress_bar` shows one on standard error, if tqdm is installed. `precision` other than "float32" packs
        vectors: "int8" and "uint8" spread each dimension between the least and the largest value among these texts,
        "binary" and "ubinary" keep the signs, eight to a byte. `output_value`, `convert_to_numpy`,
        `convert_to_tensor`, `pool` and `chunk_size` take their default alone. `device` is as in the constructor.
        `truncate_dim` keeps so many leading dimensions, before `normalize_embeddings`; None is the constructor's.

        Returns:
            (S, H) float32, or (H,) for one text; int8 or uint8 with another precision.

        Raises:
            InputError: an argument or a text is not what it must be, or cannot be done.
            EngineError: the engine failed, or the encoder is closed.

        Warns:
            IgnoredArgumentWarning: another device than the CPU.
        """
        asked = {"output_value": str(output_value), "convert_to_numpy": bool(convert_to_numpy)}
        refuse_changes(
            {**asked, "convert_to_tensor": convert_to_tensor, "pool": pool, "chunk_size": chunk_size}, _NOTHING
        )
        check_devices(device, "device")
        quantize = _PRECISIONS[_one_of(_PRECISIONS, precision, "precision")]
        texts = inputs if sentences is None else sentences
        if isinstance(texts, str):
            check_text(texts, "the text")
        before = self._prompt(prompt_name, prompt)
        whole = [before + text for text in checked_texts([texts] if isinstance(texts, str) else texts)]
        vectors = self._dense(whole, batch_size, is_shown=bool(show_progress_bar))
        size = self.truncate_dim if truncate_dim is None else truncate_dim
        if size is not None or normalize_embeddings:
            size = vectors.shape[1] if size is None else checked_integer(size, "truncate_dim")
            vectors = leading(vectors, size, normalize=normalize_embeddings)
        found = quantize(vectors)
        return found[0] if isinstance(texts, str) else found

    def encode_query(
        self,
        sentences: str | Sequence[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *options: Any,
        **more: Any,
    ) -> NDArray[Any]:
        """`encode` with its other arguments and, if no prompt is named, the one called "query"."""
        name = "query" if prompt_name is None and prompt is None and "query" in self.prompts else prompt_name
        return self.encode(sentences, name, prompt, *options, **more)

    def encode_document(
        self,
        sentences: str | Sequence[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *options: Any,
        **more: Any,
    ) -> NDArray[Any]:
        """`encode` likewise, with the first there is of the prompts "document", "passage" and "corpus"."""
        if prompt_name is None and prompt is None:
            prompt_name = next((name for name in _DOCUMENT_PROMPTS if name in self.prompts), None)
        return self.encode(sentences, prompt_name, prompt, *options, **more)

    def similarity(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> NDArray[np.float32]:
        """How alike each of N vectors is to each of M, (N, M), by `similarity_fn_name`; distances are negative."""
        compare = _SIMILARITIES[_one_of(_SIMILARITIES, self.similarity_fn_name, "similarity_fn_name")]
        return compare(_rows(embeddings1), _rows(embeddings2))

    def similarity_pairwise(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> NDArray[np.float32]:
        """How alike each of N vectors is to the one at the same place among N others, (N,).

        Raises:
            InputError: there are more on one side.
        """
        first, second = _rows(embeddings1), _rows(embeddings2)
        if len(first) != len(second):
            raise InputError(f"expected as many vectors on both sides, got {len(first)} and {len(second)}")
        pairs = [self.similarity(*pair)[0, 0] for pair in zip(first, second, strict=True)]
        return np.array(pairs, np.float32)

    def tokenize(self, texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """The keys "input_ids" and "attention_mask", (S, T) each, of texts cut at `max_seq_length` and padded."""
        rows = self.tokenizer.encode_batch(checked_texts(texts), self.max_seq_length).ids
        shape = len(rows), max((row.size for row in rows), default=0)
        found = {"input_ids": np.full(shape, self.tokenizer.info.pad_id), "attention_mask": np.zeros(shape, np.int64)}
        for place, row in enumerate(rows):
            found["input_ids"][place, : row.size], found["attention_mask"][place, : row.size] = row, 1
        return found

    @property
    def tokenizer(self) -> M3Tokenizer:
        """The bundle's tokenizer, not transformers'."""
        return self.encoder.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Tokens of a text, both special tokens included; longer texts are cut. At first the model's limit."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self._max_seq_length = checked_max_length(value, self.encoder.max_tokens, "max_seq_length")

    def get_max_seq_length(self) -> int:
        """`max_seq_length`."""
        return self.max_seq_length

    def get_embedding_dimension(self) -> int:
        """Dimensions of a vector."""
        size = self.encoder.bundle.manifest.geometry.hidden_size
        return size if self.truncate_dim is None else min(size, self.truncate_dim)

    get_sentence_embedding_dimension = get_embedding_dimension

    def to(self, device: Devices) -> "SentenceTransformer":
        """Itself; another device than the CPU gives a warning."""
        check_devices(device, "device")
        return self

    def eval(self) -> "SentenceTransformer":
        """Itself: there is no other mode."""
        return self

    def close(self) -> None:
        """Let go of the graph and its memory."""
        self.encoder.close()

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        chosen = self.default_prompt_name if name is None else name
        if prompt is None and chosen is not None and chosen not in self.prompts:
            raise InputError(f"there is no prompt {chosen!r}; there are {', '.join(self.prompts)}")
        found = prompt if prompt is not None else "" if chosen is None else self.prompts[chosen]
        check_text(found, "the prompt")
        return found

    def _dense(self, texts: Sequence[str], batch_size: int, *, is_shown: bool) -> NDArray[np.float32]:
        step = checked_integer(batch_size, "batch_size") * _BATCHES_OF_A_STEP if is_shown else max(len(texts), 1)
        vectors = [np.empty((0, self.encoder.bundle.manifest.geometry.hidden_size), np.float32)]
        truncated = respelled = 0
        for start in Progress(quiet=not is_shown).bar(range(0, len(texts), step), "Batches", "step"):
            found = self.encoder.encode(texts[start : start + step], batch_size, self.max_seq_length)
            assert found.dense_vecs is not None
            vectors.append(found.dense_vecs)
            truncated += found.truncated
            respelled += found.out_of_vocabulary
        log_losses(f"{len(texts)} texts", truncated, respelled, maximum=f"max_seq_length, {self.max_seq_length},")
        return np.concatenate(vectors)


def _one_of(names: Mapping[Any, Any], value: Any, argument: str) -> Any:
    if value not in names:
        raise InputError(f"{argument} must be one of {', '.join(map(repr, names))}, got {value!r}")
    return value


def _rows(vectors: ArrayLike) -> NDArray[np.float32]:
    """(N, H), also of one vector."""
    rows = np.atleast_2d(np.asarray(vectors, np.float32))
    if rows.ndim != 2:
        raise InputError(f"expected vectors (N, H) or one vector (H,), got an array of shape {rows.shape}")
    return rows


def _distances(first: NDArray[np.float32], second: NDArray[np.float32], order: int) -> NDArray[np.float32]:
    """Of each of N vectors (N, H) to each of M, (N, M)."""
    rows = [np.linalg.norm(second - row, order, axis=1) for row in first]
    return np.array(rows, np.float32).reshape(len(first), len(second))


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return leading(vectors, vectors.shape[1], normalize=True)


_Compare = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]
_SIMILARITIES: Mapping[str, _Compare] = {
    "cosine": lambda first, second: _unit(first) @ _unit(second).T,
    "dot": lambda first, second: first @ second.T,
    "euclidean": lambda first, second: -_distances(first, second, 2),
    "manhattan": lambda first, second: -_distances(first, second, 1),
}
"""N vectors (N, H) with M others (M, H): (N, M)."""


def _spread(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Each dimension in 256 steps between its least and its largest value."""
    if not len(vectors):
        return vectors.astype(np.uint8)
    least = vectors.min(axis=0)
    step = (vectors.max(axis=0) - least) / 255
    return np.clip(np.floor((vectors - least) / np.where(step == 0, 1, step)), 0, 255).astype(np.uint8)


def _signs(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.packbits(vectors > 0, axis=-1)


_PRECISIONS: Mapping[str, Callable[[NDArray[np.float32]], NDArray[Any]]] = {
    "float32": lambda vectors: vectors,
    "int8": lambda vectors: (_spread(vectors).astype(np.int16) - 128).astype(np.int8),
    "uint8": _spread,
    "binary": lambda vectors: (_signs(vectors).astype(np.int16) - 128).astype(np.int8),
    "ubinary": _signs,
}
