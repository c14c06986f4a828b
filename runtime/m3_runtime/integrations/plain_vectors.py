"""What the adapters have in common: a model, given or opened by path and shared, and vectors as plain lists."""

import os
from pathlib import Path
from threading import Lock
from typing import Any, TypedDict, TypeVar, Unpack
from weakref import WeakValueDictionary

from m3_runtime.bundle.reader import Bundle
from m3_runtime.cpu import default_threads
from m3_runtime.encode.options import checked_threads
from m3_runtime.encoder import M3Encoder
from m3_runtime.engines.select import AUTO, choose_variant
from m3_runtime.errors import InputError
from m3_runtime.opened_model import OpenedModel
from m3_runtime.reranker import M3Reranker
from m3_runtime.tokenizer import checked_texts

NEGLIGIBLE_WEIGHT = 2.0**-20
"""Of a special token in a text that has no lexical weights, for a store that takes no empty vector."""

_Model = TypeVar("_Model", bound=OpenedModel)
_models: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()
_opening = Lock()  # two threads that ask at the same time get one model


def _forked() -> None:
    """Runs in a child process before anything else: no thread there has the lock."""
    global _opening  # noqa: PLW0603 - it is the lock itself that is new
    _opening = Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)


def shared_encoder(bundle: str | Path, **opening: Any) -> M3Encoder:
    """The encoder of adapters with this bundle, variant, threads, low_memory and streams; opened if there is none.

    It is open for as long as somebody holds it. Do not close it: others may use it.

    Args:
        bundle: a bundle's folder.
        **opening: `EncoderArguments`, and `streams`.

    Raises:
        M3Error: as `M3Encoder.open`.
    """
    return _shared(M3Encoder, bundle, **opening)


def shared_reranker(bundle: str | Path, **opening: Any) -> M3Reranker:
    """The reranker of adapters; see `shared_encoder`, whose arguments these are.

    Raises:
        M3Error: as `M3Reranker.open`.
    """
    return _shared(M3Reranker, bundle, **opening)


def _shared(
    kind: type[_Model],
    bundle: str | Path,
    *,
    variant: str = AUTO,
    threads: int | None = None,
    cache_dir: str | Path | None = None,
    low_memory: bool = False,
    streams: int = 1,
) -> _Model:
    thread_count = default_threads() if threads is None else checked_threads(threads)
    opened = Bundle.open(bundle)
    chosen = choose_variant(opened, variant)
    # The digests are in the key because another export may have taken the folder's place.
    key = (kind, opened.folder.resolve(), opened.manifest.files, chosen.name, thread_count, low_memory, streams)
    with _opening:
        model: _Model | None = _models.get(key)
        if model is None or not model.is_open:
            model = kind.from_bundle(
                opened, chosen, thread_count, cache_dir=cache_dir, low_memory=low_memory, streams=streams
            )
            _models[key] = model
        return model


class EncoderArguments(TypedDict, total=False):
    """How an adapter opens its bundle: arguments of `M3Encoder.open`."""

    variant: str
    threads: int | None
    cache_dir: str | Path | None
    low_memory: bool


class PlainVectors:
    """An encoder whose vectors are lists of Python numbers. It pickles by path, as the encoder does.

    Attributes:
        encoder: the open encoder.
    """

    def __init__(
        self,
        encoder: M3Encoder | str | Path | None = None,
        *,
        model_name: str | Path | None = None,
        max_length: int | None = None,
        **opening: Unpack[EncoderArguments],
    ) -> None:
        """Take an open encoder, which stays yours to close, or open a bundle, or share what another adapter opened.

        Args:
            encoder: an open encoder, or a bundle's folder.
            model_name: a bundle's folder, by the name that the frameworks' own classes have for it.
            max_length: tokens per text; None as in `M3Encoder.encode`.
            **opening: see `EncoderArguments`.

        Raises:
            M3Error: as `M3Encoder.open`; InputError for neither or both of the first two, or for arguments of opening
                with an encoder that is open.
        """
        source = model_name if encoder is None else encoder
        if not isinstance(source, M3Encoder | str | Path) or None not in (encoder, model_name):
            raise InputError(
                f"expected an open encoder or a bundle's folder, one of them, got {encoder!r}, {model_name!r}"
            )
        if isinstance(source, M3Encoder) and opening:
            raise InputError(f"the encoder is open already; {', '.join(opening)} can be chosen with a path alone")
        self.encoder = source if isinstance(source, M3Encoder) else shared_encoder(source, **opening)
        self._max_length = max_length

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "encoder": self.encoder.opened_with}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, encoder=state["encoder"].open_again(shared_encoder))

    def dense(self, texts: list[str]) -> list[list[float]]:
        """S vectors of H floats each, of unit length.

        Raises:
            InputError: a text is not what it must be; it is named by its index.
        """
        found = self.encoder.encode(checked_texts(texts), max_length=self._max_length).logged().dense_vecs
        assert found is not None
        return found.tolist()

    def lexical(self, texts: list[str]) -> list[tuple[list[int], list[float]]]:
        """Token ids and weights of each of S texts.

        Raises:
            InputError: a text is not what it must be; it is named by its index.
            HeadError: the bundle has no sparse head.
        """
        whole = checked_texts(texts)
        encoding = self.encoder.encode(whole, max_length=self._max_length, return_dense=False, return_sparse=True)
        found = encoding.logged().sparse
        assert found is not None
        return [(ids.tolist(), weights.tolist()) for ids, weights in found.rows()]

    def lexical_by_id(self, texts: list[str], *, is_query: bool = False) -> list[dict[int, float]]:
        """`lexical` as a dict of each text: token id to weight, for Milvus, which takes no empty one everywhere.

        A text without lexical weights has a negligible one of `<pad>`, or as a query of `</s>`: they match nothing.
        """
        info = self.encoder.tokenizer_info
        nothing = {info.eos_id if is_query else info.pad_id: NEGLIGIBLE_WEIGHT}
        return [dict(zip(ids, weights, strict=True)) or nothing for ids, weights in self.lexical(texts)]


class QueriesLikeDocuments(PlainVectors):
    """LangChain's interfaces have a method for queries; M3 treats queries and passages alike."""

    def embed_documents(self, texts: list[str]) -> list[Any]:
        """S vectors, as the interface has them.

        Raises:
            InputError: a text is not what it must be; it is named by its index.
            HeadError: the bundle has no such head.
        """
        raise NotImplementedError

    def embed_query(self, text: str) -> Any:
        """One vector.

        Raises:
            InputError: the text is not what it must be.
            HeadError: the bundle has no such head.
        """
        (vector,) = self.embed_documents([text])
        return vector
