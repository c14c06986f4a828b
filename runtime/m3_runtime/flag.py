"""FlagEmbedding's classes over a bundle, so that its users change an import and a path.

`BGEM3FlagModel` has all heads, `FlagModel` the dense one, and `FlagAutoModel` chooses. `FlagReranker` scores pairs.

docs/use/flagembedding.md lists what differs and why.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from m3_runtime import scoring
from m3_runtime.bundle.manifest import Manifest
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encode.options import checked_max_length
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import InputError
from m3_runtime.flag_reranker import FlagAutoReranker, FlagClass, FlagReranker
from m3_runtime.ignored import Devices, accept_unknown, check_devices, taken_from
from m3_runtime.tokenizer import check_text, checked_texts

__all__ = ["BGEM3FlagModel", "FlagAutoModel", "FlagAutoReranker", "FlagModel", "FlagReranker"]

_Vectors = TypeVar("_Vectors")

# What FlagEmbedding hands on to its tokenizer or keeps as an attribute, with the values that change no vector.
_HARMLESS: Mapping[str, Any] = {
    "convert_to_numpy": True,
    "add_special_tokens": True,
    "truncation": True,
    "truncation_side": "right",
    "stride": 0,
    "return_overflowing_tokens": False,
}


def _of_side(encode: Callable[..., _Vectors], name: str, side: str) -> Callable[..., _Vectors]:
    """A class's `encode_queries` or `encode_corpus`: its `encode` with the instruction and the length of that side.

    The method has the arguments of `encode`, but those that are given here; FlagEmbedding calls its texts `name`.
    """
    own = inspect.signature(encode)
    shown = [one for one in own.parameters.values() if one.kind is not one.KEYWORD_ONLY]
    signature = own.replace(parameters=[one.replace(name=name) if one.name == "sentences" else one for one in shown])

    def encode_side(model: Any, *given: Any, **named: Any) -> _Vectors:
        call, m3 = signature.bind(model, *given, **named), getattr(model, "m3", model)
        if call.arguments.get("max_length") is None:
            call.arguments["max_length"] = getattr(m3, f"{side}_max_length")
        instruction = getattr(m3, f"{side}_instruction_for_retrieval")
        how = {"instruction": instruction, "instruction_format": getattr(m3, f"{side}_instruction_format")}
        vectors: _Vectors = model.encode(*call.args[1:], **call.kwargs, **how)
        return vectors

    encode_side.__name__ = encode_side.__qualname__ = f"encode_{name}"
    encode_side.__doc__ = f"`encode`, with the {side} instruction if there is one; its arguments and errors."
    encode_side.__signature__ = signature  # type: ignore[attr-defined]  # what help() shows
    return encode_side


class BGEM3FlagModel(FlagClass):
    """FlagEmbedding 1.4.2's `BGEM3FlagModel` on CPU.

    Attributes:
        encoder: the `M3Encoder` that does the work.
        batch_size: default of every method.
        query_max_length: default of `encode_queries` and of the queries of `compute_score`.
        passage_max_length: default of `encode`, `encode_corpus` and of the passages of `compute_score`.
        return_dense: default of every method; `return_sparse` and `return_colbert_vecs` likewise.
        truncate_dim: leading dimensions that are kept of dense and ColBERT vectors, or None.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - FlagEmbedding's arguments
        self,
        model_name_or_path: str | Path,
        normalize_embeddings: bool | None = None,
        use_fp16: bool = True,
        use_bf16: bool = False,
        query_instruction_for_retrieval: str | None = None,
        query_instruction_format: str = "{}{}",
        devices: Devices | None = None,
        pooling_method: str | None = None,
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        colbert_dim: int = -1,
        batch_size: int = 256,
        query_max_length: int | None = None,
        passage_max_length: int | None = None,
        return_dense: bool = True,
        return_sparse: bool = False,
        return_colbert_vecs: bool = False,
        truncate_dim: int | None = None,
        *,
        passage_instruction_for_retrieval: str | None = None,
        passage_instruction_format: str = "{}{}",
        device: Devices | None = None,
        **more: Any,
    ) -> None:
        """Open a bundle. Arguments are FlagEmbedding's, with these differences.

        `model_name_or_path` is a bundle's folder. `normalize_embeddings`, `pooling_method` and `colbert_dim` are None
        (-1), or what the bundle was exported with. `use_fp16`, `use_bf16`, `trust_remote_code` and `cache_dir` have no
        effect: the bundle's variant says how vectors are computed, and nothing is downloaded. `devices`, or `device` as
        in FlagEmbedding 1.2, may name others than the CPU, with a warning. Lengths are in tokens; None is 512, or less
        where the model takes less. `passage_instruction_for_retrieval` is put before passages by `encode_corpus`.
        `variant`, `engine`, `threads` and `low_memory` are those of `M3Encoder.open`. What else there is FlagEmbedding
        would keep as attributes.

        Raises:
            M3Error: as `M3Encoder.open`, and InputError for an argument that contradicts the bundle.

        Warns:
            IgnoredArgumentWarning: another device than the CPU, or an unknown argument.
        """
        check_devices(devices if devices is not None else device)
        opening = taken_from(more, "variant", "engine", "threads", "low_memory")
        accept_unknown(more, _HARMLESS)
        self.encoder = self._model = M3Encoder.open(model_name_or_path, **opening)
        manifest = self.encoder.bundle.manifest
        _check_agrees(manifest, normalize_embeddings, pooling_method, colbert_dim)
        limit = self.encoder.max_tokens
        self.model_name_or_path = str(model_name_or_path)
        self.normalize_embeddings = manifest.normalize
        self.pooling_method = manifest.pooling.value
        self.use_fp16, self.use_bf16 = use_fp16, use_bf16
        self.trust_remote_code, self.cache_dir = trust_remote_code, cache_dir
        self.query_instruction_for_retrieval = query_instruction_for_retrieval
        self.query_instruction_format = query_instruction_format
        self.passage_instruction_for_retrieval = passage_instruction_for_retrieval
        self.passage_instruction_format = passage_instruction_format
        self.batch_size = batch_size
        self.query_max_length = checked_max_length(query_max_length, limit, "query_max_length")
        self.passage_max_length = checked_max_length(passage_max_length, limit, "passage_max_length")
        self.return_dense, self.return_sparse = return_dense, return_sparse
        self.return_colbert_vecs = return_colbert_vecs
        if truncate_dim is not None and not 1 <= truncate_dim <= manifest.geometry.hidden_size:
            raise InputError(f"truncate_dim must be 1 to {manifest.geometry.hidden_size}, got {truncate_dim}")
        self.truncate_dim = truncate_dim

    def encode(
        self,
        sentences: str | Sequence[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        return_dense: bool | None = None,
        return_sparse: bool | None = None,
        return_colbert_vecs: bool | None = None,
        *,
        instruction: str | None = None,
        instruction_format: str = "{}{}",
        **more: Any,
    ) -> Encoding:
        """Encode texts as passages; an argument that is None takes the constructor's value.

        Raises:
            M3Error: as `M3Encoder.encode`, and InputError for an argument of FlagEmbedding's tokenizer that would
                change the answer.

        Warns:
            IgnoredArgumentWarning: an unknown argument, which FlagEmbedding would pass to its tokenizer.
        """
        accept_unknown(more, _HARMLESS)
        encoding = self.encoder.encode(
            _instructed(sentences, instruction, instruction_format),
            batch_size=self.batch_size if batch_size is None else batch_size,
            max_length=self.passage_max_length if max_length is None else max_length,
            return_dense=self.return_dense if return_dense is None else return_dense,
            return_sparse=self.return_sparse if return_sparse is None else return_sparse,
            return_colbert_vecs=self.return_colbert_vecs if return_colbert_vecs is None else return_colbert_vecs,
        )
        if self.truncate_dim is None:
            return encoding
        return encoding.leading_dimensions(self.truncate_dim, normalize=self.normalize_embeddings)

    encode_queries = _of_side(encode, "queries", "query")
    encode_corpus = _of_side(encode, "corpus", "passage")

    def compute_score(
        self,
        sentence_pairs: Sequence[Sequence[str]] | Sequence[str],
        batch_size: int | None = None,
        max_query_length: int | None = None,
        max_passage_length: int | None = None,
        weights_for_different_modes: Sequence[float] | None = None,
        **more: Any,
    ) -> dict[str, list[float]] | dict[str, float]:
        """Score pairs, without instructions and without `truncate_dim`, as FlagEmbedding does.

        Raises:
            M3Error: as `M3Encoder.compute_score`.

        Warns:
            IgnoredArgumentWarning: as `encode`.
        """
        accept_unknown(more, _HARMLESS)
        return self.encoder.compute_score(
            sentence_pairs,
            self.batch_size if batch_size is None else batch_size,
            self.query_max_length if max_query_length is None else max_query_length,
            self.passage_max_length if max_passage_length is None else max_passage_length,
            weights_for_different_modes,
        )

    compute_lexical_matching_score = staticmethod(scoring.compute_lexical_matching_score)
    colbert_score = staticmethod(scoring.colbert_score)

    def convert_id_to_token(
        self, lexical_weights: Mapping[str, float] | Sequence[Mapping[str, float]]
    ) -> dict[str, float] | list[dict[str, float]]:
        """See `M3Encoder.convert_id_to_token`.

        Raises:
            InputError: neither a mapping of token ids nor a list of such mappings.
        """
        return self.encoder.convert_id_to_token(lexical_weights)


class FlagModel(FlagClass):
    """FlagEmbedding's `FlagModel` on CPU: the dense head alone, as arrays.

    Attributes:
        m3: the `BGEM3FlagModel` that does the work.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - FlagEmbedding's arguments
        self,
        model_name_or_path: str | Path,
        normalize_embeddings: bool | None = None,
        use_fp16: bool = True,
        query_instruction_for_retrieval: str | None = None,
        query_instruction_format: str = "{}{}",
        devices: Devices | None = None,
        pooling_method: str | None = None,
        trust_remote_code: bool = False,
        cache_dir: str | None = None,
        batch_size: int = 256,
        query_max_length: int | None = None,
        passage_max_length: int | None = None,
        **more: Any,
    ) -> None:
        """Open a bundle; all arguments are those of `BGEM3FlagModel`, in the order of FlagEmbedding's `FlagModel`.

        Raises:
            M3Error: as `BGEM3FlagModel`, whose warnings it gives too.
        """
        self.m3 = BGEM3FlagModel(
            model_name_or_path,
            normalize_embeddings,
            use_fp16,
            query_instruction_for_retrieval=query_instruction_for_retrieval,
            query_instruction_format=query_instruction_format,
            devices=devices,
            pooling_method=pooling_method,
            trust_remote_code=trust_remote_code,
            cache_dir=cache_dir,
            batch_size=batch_size,
            query_max_length=query_max_length,
            passage_max_length=passage_max_length,
            **more,
        )
        self._model = self.m3.encoder

    def encode(
        self,
        sentences: str | Sequence[str],
        batch_size: int | None = None,
        max_length: int | None = None,
        convert_to_numpy: bool | None = None,
        **more: Any,
    ) -> NDArray[np.float32]:
        """The dense vectors of S texts, (S, H), or (H,) of a single one.

        Raises:
            M3Error: as `BGEM3FlagModel.encode`, whose warnings it gives too.
        """
        return _dense(self.m3.encode(sentences, batch_size, max_length, convert_to_numpy=convert_to_numpy, **more))

    encode_queries = _of_side(encode, "queries", "query")
    encode_corpus = _of_side(encode, "corpus", "passage")


class FlagAutoModel:
    """FlagEmbedding's `FlagAutoModel`: made by `from_finetuned` alone."""

    def __init__(self) -> None:
        raise InputError("FlagAutoModel is made by FlagAutoModel.from_finetuned(path)")

    @staticmethod
    def from_finetuned(  # noqa: PLR0913, PLR0917 - FlagEmbedding's arguments
        model_name_or_path: str | Path,
        model_class: str | None = None,
        normalize_embeddings: bool | None = None,
        use_fp16: bool = True,
        query_instruction_for_retrieval: str | None = None,
        devices: Devices | None = None,
        pooling_method: str | None = None,
        trust_remote_code: bool | None = None,
        query_instruction_format: str | None = None,
        **more: Any,
    ) -> "BGEM3FlagModel | FlagModel":
        """A bundle as a `BGEM3FlagModel`, or as a `FlagModel` if `model_class` is "encoder-only-base".

        Its folder may have any name. All other arguments are those of the class; `query_instruction_format` None is
        `{}{}`.

        Raises:
            M3Error: as the class, whose warnings it gives too, and
                InputError for another class than "encoder-only-m3" and "encoder-only-base".
        """
        classes: Mapping[str, type[BGEM3FlagModel] | type[FlagModel]] = {
            "encoder-only-m3": BGEM3FlagModel,
            "encoder-only-base": FlagModel,
        }
        name = "encoder-only-m3" if model_class is None else getattr(model_class, "value", model_class)
        if name not in classes:
            raise InputError(f"model_class must be one of {', '.join(classes)}, got {model_class!r}")
        return classes[name](
            model_name_or_path,
            normalize_embeddings,
            use_fp16,
            query_instruction_for_retrieval=query_instruction_for_retrieval,
            query_instruction_format=query_instruction_format or "{}{}",
            devices=devices,
            pooling_method=pooling_method,
            trust_remote_code=bool(trust_remote_code),
            **more,
        )


def _dense(encoding: Encoding) -> NDArray[np.float32]:
    if encoding.dense_vecs is None:
        raise InputError("this class gives dense vectors alone; for other heads take BGEM3FlagModel")
    encoding.logged()
    return encoding.dense_vecs


def _instructed(sentences: Any, instruction: str | None, instruction_format: str) -> Any:
    """The texts with the instruction; checked first, since formatting would make None a text."""
    if instruction is None:
        return sentences
    if isinstance(sentences, str):
        check_text(sentences, "the text")
        return BGEM3FlagModel.get_detailed_instruct(instruction_format, instruction, sentences)
    return [
        BGEM3FlagModel.get_detailed_instruct(instruction_format, instruction, text) for text in checked_texts(sentences)
    ]


def _check_agrees(manifest: Manifest, normalize: bool | None, pooling_method: str | None, colbert_dim: int) -> None:
    """Refuse what contradicts the bundle: these are facts of the graph, not choices of the caller."""
    facts = (
        ("normalize_embeddings", normalize, manifest.normalize),
        ("pooling_method", pooling_method, manifest.pooling.value),
        ("colbert_dim", colbert_dim if colbert_dim > 0 else None, manifest.geometry.colbert_dim),
    )
    for name, asked, actual in facts:
        if asked is not None and asked != actual:
            raise InputError(
                f"{name} is {asked!r}, but the bundle was exported with {actual!r}; leave it out, "
                f"or export the checkpoint again with {name}={asked!r}"
            )
