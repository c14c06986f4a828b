"""What the adapters have in common: a model, given or opened by path and shared, and vectors as plain lists."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypedDict, TypeVar, Unpack
from weakref import WeakValueDictionary

from m3_runtime.bundle.reader import Bundle
from m3_runtime.cpu import default_threads
from m3_runtime.encode.options import checked_integer, checked_threads
from m3_runtime.encoder import M3Encoder
from m3_runtime.engines.select import AUTO, choose_variant
from m3_runtime.errors import InputError
from m3_runtime.opened_model import OpenArguments, OpenedModel
from m3_runtime.pairs import pair_limits
from m3_runtime.reranker import M3Reranker
from m3_runtime.tokenizer import checked_texts

NEGLIGIBLE_WEIGHT = 2.0**-20
"""Of a special token in a text that has no lexical weights, for a store that takes no empty vector."""

Model = TypeVar("Model", bound=OpenedModel)
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
    return shared_model(M3Encoder, bundle, **opening)


def shared_model(
    kind: type[Model],
    path: str | Path,
    *,
    variant: str = AUTO,
    threads: int | None = None,
    cache_dir: str | Path | None = None,
    low_memory: bool = False,
    streams: int = 1,
) -> Model:
    """`shared_encoder` for an encoder or a reranker."""
    thread_count = default_threads() if threads is None else checked_threads(threads)
    bundle = Bundle.open(path)
    chosen = choose_variant(bundle, variant)
    # The digests are in the key because another export may have taken the folder's place.
    key = (kind, bundle.folder.resolve(), bundle.manifest.files, chosen.name, thread_count, low_memory, streams)
    with _opening:
        model: Model | None = _models.get(key)
        if model is None or not model.is_open:
            model = _models[key] = kind.from_bundle(
                bundle, chosen, thread_count, cache_dir=cache_dir, low_memory=low_memory, streams=streams
            )
        return model


class EncoderArguments(TypedDict, total=False):
    """How an adapter opens its bundle: arguments of `M3Encoder.open`."""

    variant: str
    threads: int | None
    cache_dir: str | Path | None
    low_memory: bool


class Adapter(Generic[Model]):
    """What holds a model, given or opened by path and shared. It pickles by path, as the model does."""

    _kind: type[Model]

    def __init__(
        self,
        model: Model | str | Path | None,
        model_name: str | Path | None,
        opened_with: OpenArguments | Mapping[str, Any] | None = None,
        **opening: Unpack[EncoderArguments],
    ) -> None:
        """Take an open model, which stays yours to close, or open a bundle, or share what another adapter opened.

        Args:
            model: an open model, or a bundle's folder.
            model_name: a bundle's folder, by the name that the frameworks' own classes have for it.
            opened_with: instead of these two, how an adapter in another process opened its bundle.
            **opening: see `EncoderArguments`.

        Raises:
            M3Error: as the model's `open`; InputError for neither or both of the first two, or for arguments of opening
                with a model that is open.
            SpaceMismatchError: the folder of `opened_with` holds another space by now.
        """
        share, called = partial(shared_model, self._kind), self._kind.called
        if opened_with is not None:
            known = opened_with if isinstance(opened_with, OpenArguments) else OpenArguments(**opened_with)
            model, model_name = known.open_again(share), None
        source = model_name if model is None else model
        if not isinstance(source, (self._kind, str, Path)) or None not in (model, model_name):
            raise InputError(
                f"expected an open {called} or a bundle's folder, one of them, got {model!r}, {model_name!r}"
            )
        if isinstance(source, str | Path):
            self._model: Model = share(source, **opening)
        elif opening:
            raise InputError(f"the {called} is open already; {', '.join(opening)} can be chosen with a path alone")
        else:
            self._model = source

    @property
    def opened_with(self) -> OpenArguments:
        """How the model was opened."""
        return self._model.opened_with

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_model": self.opened_with}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _model=state["_model"].open_again(partial(shared_model, self._kind)))


class PlainVectors(Adapter[M3Encoder]):
    """An encoder whose vectors are lists of Python numbers."""

    _kind = M3Encoder

    def __init__(
        self,
        encoder: M3Encoder | str | Path | None = None,
        *,
        model_name: str | Path | None = None,
        max_length: int | None = None,
        **more: Any,
    ) -> None:
        """See `Adapter`; `max_length` is tokens per text, None as in `M3Encoder.encode`."""
        super().__init__(encoder, model_name, **more)
        self._max_length = max_length

    @property
    def encoder(self) -> M3Encoder:
        """The open encoder."""
        return self._model

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


class PlainRanks(Adapter[M3Reranker]):
    """A reranker that orders texts, with scores from 0 to 1."""

    _kind = M3Reranker

    def __init__(
        self,
        reranker: M3Reranker | str | Path | None = None,
        *,
        model_name: str | Path | None = None,
        max_length: int | None = None,
        query_max_length: int | None = None,
        **more: Any,
    ) -> None:
        """See `Adapter`; the lengths are those of `M3Reranker.compute_score`.

        Raises:
            InputError: the model does not take such lengths.
        """
        super().__init__(reranker, model_name, **more)
        pair_limits(max_length, query_max_length, self.reranker.max_tokens)
        self._lengths: dict[str, Any] = {"max_length": max_length, "query_max_length": query_max_length}

    @property
    def reranker(self) -> M3Reranker:
        """The open reranker."""
        return self._model

    def best(self, query: str, texts: Sequence[str], most: int | None = None) -> list[tuple[int, float]]:
        """The best of S texts first, `most` of them or all: indexes and scores. "m3_runtime" logs how many were cut.

        Raises:
            InputError: a text is not what it must be, or empty; its pair is named by its index.
        """
        found = self.reranker.score_pairs([(query, text) for text in texts], **self._lengths)
        found.warn_of_cuts()
        scores, order = found.values(normalize=True), sorted(range(len(texts)), key=lambda i: -found.scores[i])
        return [(i, scores[i]) for i in order[:most]]


def checked_most(most: int | None, name: str) -> int | None:
    """How many of the best are kept; None is all. Errors are those of `checked_integer`."""
    return None if most is None else checked_integer(most, name)
