"""Activation statistics: what INT8 needs to know of activations, gathered in one pass over the calibration texts.

Two things make activations easier to quantize, and both are exact: channels are centred (`passes.centre_activations`)
and the few outlier neurons of a layer are multiplied in float (`passes.outlier_neurons`). The statistics of a
projection's input are those that the INT8 graph will see, with both applied.

What the first layer reads depends on a token and its position alone, so its range is that of the whole vocabulary: a
token that no calibration text holds may reach further in an outlier channel, and a static range that clips it there
costs the text more than all other projections together.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from m3_export.arrays import Float32Array, Ids
from m3_export.graph.model import Linear, M3Model, Norm
from m3_export.plan.plan import Kind, Projection, projections
from m3_export.quantize.projection import InputStatistics
from m3_export.verify.reference import batches_of_one_length
from m3_runtime.bundle.manifest import Head

CALIBRATION_TOKENS = 128  # of each text: many texts say more about a channel's range than long ones
MAX_ROWS = 512  # kept of each input

# An outlier neuron: its largest value is this many times the largest value of the median token.
OUTLIER_FACTOR = 3.0
MOST_OUTLIERS = 32  # of a layer; more would no longer be a thin product


@dataclass(frozen=True)
class ActivationStatistics:
    """What was measured."""

    means: tuple[Float32Array, ...]  # (H,) float32 per normalisation, in the order in which they run
    outlier_neurons: tuple[tuple[int, ...], ...]  # indices of outlier FFN neurons per layer, ascending
    inputs: Mapping[Projection, InputStatistics]  # of every projection's input, centred, outlier neurons at zero
    colbert_moments: NDArray[np.float64] | None = None  # (C, C) of the natural texts' rows, summed; None without them
    scores: Float32Array | None = None  # (N,) of the natural pairs; None of an encoder


def linears(model: M3Model, projection: Projection) -> tuple[Linear, ...]:
    """The modules of a projection: three for query, key and value, else one."""
    return tuple(getattr(model.layers[projection.layer], name) for name in projection.kind.weights)


def norm_before(projection: Projection) -> int | None:
    """Index of the normalisation that makes a projection's input; None where there is none."""
    return {Kind.QKV: 2 * projection.layer, Kind.FFN_IN: 2 * projection.layer + 1}.get(projection.kind)


def gather_statistics(
    model: M3Model,
    ids: Sequence[Ids],
    track: Callable[[Sequence[list[int]]], Iterable[list[int]]],
    natural: int = 0,
) -> ActivationStatistics:
    """Run texts, (L,) ids each with both special tokens, through the exact model; `track` shows progress.

    Of the first `natural` texts, or pairs, the outputs are looked at too.
    """
    tokens = sum(len(row) for row in ids)
    colbert = _ColbertMoments(model, natural)
    scores = np.zeros(len(ids), np.float32)
    norms = {module: _MeanObserver(module) for module in model.modules() if isinstance(module, Norm)}
    inputs = {
        projection: _InputObserver(linears(model, projection)[0], tokens)
        for projection in projections(len(model.layers))
    }
    hooks = [norm.register_forward_hook(observer.observe) for norm, observer in norms.items()]
    hooks += [
        linears(model, projection)[0].register_forward_pre_hook(observer.observe)
        for projection, observer in inputs.items()
    ]
    try:
        with torch.inference_mode():
            for indices in track(batches_of_one_length(ids)):
                batch = torch.from_numpy(np.stack([ids[i] for i in indices]).astype(np.int64))
                outputs = model(batch, torch.ones_like(batch))
                colbert.add(indices, outputs)
                if model.classifier is not None:
                    scores[indices] = outputs[0][:, 0].numpy()
    finally:
        for hook in hooks:
            hook.remove()
    for embedded in _vocabulary(model):
        inputs[Projection(0, Kind.QKV)].widen(embedded)
    means = tuple((observer.total / tokens).astype(np.float32) for observer in norms.values())
    outliers = tuple(
        outlier_neurons(observer.highest, np.concatenate(observer.of_token))
        for projection, observer in inputs.items()
        if projection.kind is Kind.FFN_OUT
    )
    found = {}
    for projection, observer in inputs.items():
        norm, after_gelu = norm_before(projection), projection.kind is Kind.FFN_OUT
        zeroed = list(outliers[projection.layer]) if after_gelu else []
        offset = None if norm is None else means[norm]
        found[projection] = observer.statistics(offset, zeroed, after_gelu=after_gelu)
    of_pairs = scores[:natural] if model.classifier else None
    return ActivationStatistics(means, outliers, found, colbert.total, of_pairs)


def colbert_moments(
    model: M3Model,
    ids: Sequence[Ids],
    track: Callable[[Sequence[list[int]]], Iterable[list[int]]],
    natural: int,
) -> NDArray[np.float64]:
    """(C, C) moments of ColBERT rows alone, bit for bit those of `gather_statistics`, for a model with that head."""
    colbert = _ColbertMoments(model, natural)
    with torch.inference_mode():
        for indices in track([indices for indices in batches_of_one_length(ids) if min(indices) < natural]):
            batch = torch.from_numpy(np.stack([ids[i] for i in indices]).astype(np.int64))
            colbert.add(indices, model(batch, torch.ones_like(batch)))
    assert colbert.total is not None
    return colbert.total


def principal_axes(moments: NDArray[np.float64]) -> Float32Array:
    """Axes that ColBERT rows are projected on, for fewer dimensions that keep most of what rows differ in.

    Args:
        moments: (C, C), second moments of ColBERT rows.

    Returns:
        (C, C), an eigenvector of `moments` in each column, the widest first; the largest value of each is positive.
    """
    axes = np.linalg.eigh(moments)[1][:, ::-1]
    signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0))
    return np.ascontiguousarray(axes * signs, dtype=np.float32)


def outlier_neurons(highest: Float32Array, of_token: Float32Array) -> tuple[int, ...]:
    """Neurons far above what the median token needs, the `MOST_OUTLIERS` largest of them, ascending.

    Args:
        highest: (F,) highest value of each neuron over all tokens.
        of_token: (N,) highest value of each token over all neurons.

    >>> outlier_neurons(np.array([1.0, 50.0, 2.0, 9.0]), np.array([1.0, 2.0, 50.0]))
    (1, 3)
    """
    order = np.argsort(-highest, kind="stable")[:MOST_OUTLIERS]
    return tuple(sorted(int(i) for i in order if highest[i] > OUTLIER_FACTOR * float(np.median(of_token))))


def _vocabulary(model: M3Model) -> Iterator[Float32Array]:
    """What the first layer reads of every token but padding, each at one position; (N, H) at a time."""
    positions, tokens = len(model.positions) - model.pad_id - 1, torch.arange(len(model.words))
    for ids in tokens[tokens != model.pad_id].split(min(positions, CALIBRATION_TOKENS)):
        with torch.inference_mode():
            embedded = model.embedded(ids[None])[0].numpy()
        yield embedded


class _ColbertMoments:
    """Sums the second moments of natural texts' ColBERT rows. They are not centred, because MaxSim is of dot products.

    Attributes:
        total: (C, C); None without a ColBERT head.
    """

    def __init__(self, model: M3Model, natural: int) -> None:
        self._place = model.outputs.index(Head.COLBERT) if Head.COLBERT in model.outputs else -1
        self._natural = natural
        self.total = None if model.colbert is None else np.zeros((model.colbert.weight.shape[1],) * 2)

    def add(self, indices: Sequence[int], outputs: Sequence[torch.Tensor]) -> None:
        """Of some texts, which have no padding: what the model gives for them."""
        if self.total is None:
            return
        texts = outputs[self._place].numpy()[[i < self._natural for i in indices]]
        rows = texts.reshape(-1, texts.shape[-1]).astype(np.float64)
        self.total += rows.T @ rows


class _MeanObserver:
    """Sums a normalisation's outputs."""

    def __init__(self, norm: Norm) -> None:
        self.total = np.zeros(norm.weight.shape, np.float64)

    def observe(self, _norm: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        self.total += output.numpy().sum((0, 1), dtype=np.float64)


class _InputObserver:
    """Widens the range of each channel and keeps every n-th row. In numpy, whose reductions by row are the faster."""

    def __init__(self, linear: Linear, tokens: int) -> None:
        width = linear.weight.shape[0]
        self._every, self._seen = max(1, tokens // MAX_ROWS), 0
        self._lowest = np.full(width, np.inf, np.float32)
        self.highest = np.full(width, -np.inf, np.float32)
        self.of_token: list[Float32Array] = []
        self._rows: list[Float32Array] = []

    def observe(self, _linear: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        x = args[0].flatten(0, 1).numpy()
        self.widen(x)
        self.of_token.append(x.max(1))
        self._rows.append(x[-self._seen % self._every :: self._every].copy())
        self._seen += len(x)

    def widen(self, x: Float32Array) -> None:
        """Take in the range of (N, K) inputs, which are not among the rows."""
        np.minimum(self._lowest, x.min(0), out=self._lowest)
        np.maximum(self.highest, x.max(0), out=self.highest)

    def statistics(self, offset: Float32Array | None, zeroed: list[int], *, after_gelu: bool) -> InputStatistics:
        """Of the centred input, some channels of it at zero."""
        lowest, highest, rows = self._lowest.copy(), self.highest.copy(), np.concatenate(self._rows)
        if offset is not None:
            lowest, highest, rows = lowest - offset, highest - offset, rows - offset
        lowest[zeroed], highest[zeroed], rows[:, zeroed] = 0, 0, 0
        return InputStatistics(
            lowest=torch.from_numpy(lowest),
            highest=torch.from_numpy(highest),
            rows=torch.from_numpy(rows),
            after_gelu=after_gelu,
        )
