"""A plan run in PyTorch: projections compute what their quantized forms would, on any processor.

Engines multiply the same integers and add them exactly, so this is what they give but for the rounding of floats. It is
how the planner learns what each projection costs in accuracy without writing a model for each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from m3_export.arrays import Ids
from m3_export.calibration.statistics import ActivationStatistics, linears, norm_before
from m3_export.graph.model import MASKED_SCORE, M3Model
from m3_export.plan.losses import LossesByText, PairLosses, TextLosses
from m3_export.plan.plan import Kind, Precision, PrecisionPlan, Projection, Scheme
from m3_export.quantize.embedding import quantize_groups, widest_group
from m3_export.quantize.projection import QuantizedProjection, fake_quantize, quantize_projection
from m3_export.verify.scores import ScoreCorrection
from m3_runtime.bundle.manifest import LEAST_SPREAD

Compute = Callable[[torch.Tensor], torch.Tensor]

SIMILAR = 1.6  # times the shortest: texts up to this length run together, padded


class QuantizedModel:
    """The exact model, its activation statistics, and every projection that was quantized so far, each only once."""

    def __init__(self, model: M3Model, gather: Callable[[], ActivationStatistics]) -> None:
        """Nothing is quantized yet.

        Args:
            model: the exact model.
            gather: its activation statistics; called once, when something is quantized.
        """
        self.model, self._gather = model, gather
        self._quantized: dict[tuple[Projection, Scheme, int], QuantizedProjection] = {}

    @cached_property
    def statistics(self) -> ActivationStatistics:
        """What was measured on the calibration texts."""
        return self._gather()

    def projection(self, projection: Projection, scheme: Scheme, group: int) -> QuantizedProjection:
        """A projection under a scheme that is not float."""
        key = (projection, scheme, group if scheme.precision is Precision.DYNAMIC else 0)
        if key not in self._quantized:
            inputs, weight = self.statistics.inputs[projection], self.weight(projection)
            self._quantized[key] = quantize_projection(scheme, inputs, weight, group)
        return self._quantized[key]

    def projections(self, plan: PrecisionPlan) -> Mapping[Projection, QuantizedProjection]:
        """All projections of a plan that are not float."""
        return {
            projection: self.projection(projection, scheme, plan.group)
            for projection, scheme in plan.schemes.items()
            if scheme.precision is not Precision.FLOAT
        }

    def weight(self, projection: Projection) -> torch.Tensor:
        """(K, N), a copy without the outlier neurons: columns of FFN-in, rows of FFN-out."""
        weight, outliers = self._whole_weight(projection), self._outliers(projection)
        if projection.kind is Kind.FFN_IN:
            weight[:, outliers] = 0
        elif projection.kind is Kind.FFN_OUT:
            weight[outliers] = 0
        return weight

    @contextmanager
    def fake_quantized(self, schemes: Mapping[Projection, Scheme], group: int) -> Iterator[None]:
        """While it lasts, these projections of the model compute what their quantized forms would."""
        with ExitStack() as stack:
            for projection, scheme in schemes.items():
                if scheme.precision is not Precision.FLOAT:
                    stack.enter_context(self._fake_quantized(projection, scheme, group))
            yield

    @contextmanager
    def int8_embedding(self) -> Iterator[None]:
        """While it lasts, word embeddings are rounded as the graphs of both engines round them."""
        exact = self.model.embedded

        def rounded(input_ids: torch.Tensor) -> torch.Tensor:
            rows = self.model.words[input_ids.flatten()].numpy()
            values, scales = quantize_groups(rows, widest_group(rows.shape[1]))
            error = (values * scales.astype(np.float32)).reshape(rows.shape) - rows
            shifted = torch.from_numpy(error).reshape(*input_ids.shape, -1)
            hook = self.model.embedding_norm.register_forward_pre_hook(lambda _norm, args: (args[0] + shifted,))
            try:
                return exact(input_ids)
            finally:
                hook.remove()

        self.model.embedded = rounded  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.model.embedded

    @contextmanager
    def _fake_quantized(self, projection: Projection, scheme: Scheme, group: int) -> Iterator[None]:
        quantized, parts = self.projection(projection, scheme, group), linears(self.model, projection)
        whole, offset = self._whole_weight(projection), self._offset(projection)
        constant = offset @ whole + torch.cat([part.bias for part in parts])
        width = quantized.shift.shape[0] // len(parts)
        with ExitStack() as stack:
            for number, part in enumerate(parts):
                columns = slice(number * width, (number + 1) * width)
                compute = self._product(projection, _columns(quantized, columns), group, whole[:, columns])
                stack.enter_context(_computing(part, _centred(compute, offset, constant[columns])))
            yield

    def _product(
        self, projection: Projection, quantized: QuantizedProjection, group: int, weight: torch.Tensor
    ) -> Compute:
        """The product of a centred input, the outlier neurons' share of it in float."""
        compute = fake_quantize(quantized, group, after_gelu=projection.kind is Kind.FFN_OUT)
        outliers = self._outliers(projection)
        if not outliers or projection.kind not in (Kind.FFN_IN, Kind.FFN_OUT):
            return compute

        def ffn_out(x: torch.Tensor) -> torch.Tensor:
            rest = x.clone()
            rest[..., outliers] = 0
            return compute(rest) + x[..., outliers] @ weight[outliers]

        def ffn_in(x: torch.Tensor) -> torch.Tensor:
            product = compute(x)
            product[..., outliers] += x @ weight[:, outliers]
            return product

        return ffn_in if projection.kind is Kind.FFN_IN else ffn_out

    def _whole_weight(self, projection: Projection) -> torch.Tensor:
        return torch.cat([part.weight for part in linears(self.model, projection)], dim=1)

    def _offset(self, projection: Projection) -> torch.Tensor:
        norm = norm_before(projection)
        width = linears(self.model, projection)[0].weight.shape[0]
        return torch.zeros(width) if norm is None else torch.from_numpy(self.statistics.means[norm])

    def _outliers(self, projection: Projection) -> list[int]:
        return list(self.statistics.outlier_neurons[projection.layer])


@dataclass(frozen=True)
class _Batch:
    """Texts that run together, padded on the right: ids and mask (B, T), what is added to scores (B, 1, 1, T)."""

    ids: torch.Tensor
    mask: torch.Tensor
    scores: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[Ids], pad_id: int) -> "_Batch":
        ids = torch.full((len(rows), max(map(len, rows))), pad_id)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = torch.from_numpy(row.astype(np.int64)), 1
        return cls(ids, mask, (1.0 - mask[:, None, None, :].float()) * MASKED_SCORE)


def _of_similar_length(rows: Sequence[Ids]) -> list[list[Ids]]:
    """Sorted rows in few groups: a run of few tokens takes nearly as long as one of many."""
    groups: list[list[Ids]] = []
    for row in rows:
        if not groups or len(row) > SIMILAR * len(groups[-1][0]):
            groups.append([])
        groups[-1].append(row)
    return groups


class Simulation:
    """Texts with their exact outputs, and every layer's exact input, so that a run can start in the middle."""

    def __init__(self, quantized: QuantizedModel, ids: Sequence[Ids], is_degenerate: Sequence[bool]) -> None:
        """Run the exact model.

        Args:
            quantized: the model.
            ids: (L,) ids of each text, both special tokens included.
            is_degenerate: of each text.
        """
        self._quantized = quantized
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
        self._batches = [
            _Batch.of(rows, quantized.model.pad_id) for rows in _of_similar_length([ids[i] for i in order])
        ]
        self._is_degenerate = np.array([is_degenerate[i] for i in order])
        counts = np.array([max(len(ids[i]) - 1, 0) for i in order])
        self._text_of_row = np.repeat(np.arange(len(order)), counts)
        self._inputs: list[list[torch.Tensor]] = []
        self._outputs: list[tuple[torch.Tensor, ...]] = []
        with torch.inference_mode():
            for batch in self._batches:
                inputs = [quantized.model.embedded(batch.ids)]
                for layer in quantized.model.layers:
                    inputs.append(layer(inputs[-1], batch.scores))
                self._inputs.append(inputs)
                self._outputs.append(quantized.model.heads(inputs[-1], batch.ids, batch.mask))

    def losses_of_embedding(self) -> LossesByText:
        """Losses of the int8 embedding alone."""
        with self._quantized.int8_embedding():
            return self._losses(None)

    def losses_of_projection(self, projection: Projection, scheme: Scheme, group: int) -> LossesByText:
        """Losses of one quantized projection in a model that is exact but for it."""
        with self._quantized.fake_quantized({projection: scheme}, group):
            return self._losses(projection.layer)

    def _losses(self, first_layer: int | None) -> LossesByText:
        model = self._quantized.model
        outputs = []
        with torch.inference_mode():
            for batch, inputs in zip(self._batches, self._inputs, strict=True):
                x = model.embedded(batch.ids) if first_layer is None else inputs[first_layer]
                for layer in list(model.layers)[first_layer or 0 :]:
                    x = layer(x, batch.scores)
                outputs.append(model.heads(x, batch.ids, batch.mask))
            return self._of_scores(outputs) if model.classifier else self._of_vectors(outputs)

    def _of_scores(self, outputs: Sequence[tuple[torch.Tensor, ...]]) -> PairLosses:
        exact, got = (
            torch.cat([scores for (scores,) in each])[:, 0].double().numpy() for each in (self._outputs, outputs)
        )
        natural = ~self._is_degenerate
        spread = max(exact[natural].std(), LEAST_SPREAD)
        got = ScoreCorrection.between(exact[natural], got[natural]).of(got)  # as the variant's will be
        return PairLosses(((got - exact) / spread) ** 2, self._is_degenerate)

    def _of_vectors(self, outputs: Sequence[tuple[torch.Tensor, ...]]) -> TextLosses:
        dense, sparse, colbert = [], [], []
        for batch, exact, got in zip(self._batches, self._outputs, outputs, strict=True):
            dense.append(_cosine_loss(exact[0], got[0]))
            if len(exact) > 1:
                sparse.append(_jaccard_loss(exact[1], got[1]))
                colbert.append(_cosine_loss(exact[2], got[2])[batch.mask[:, 1:] == 1])
        return TextLosses(
            dense=torch.cat(dense).numpy(),
            sparse=torch.cat(sparse).double().numpy() if sparse else np.zeros(0),
            colbert=torch.cat(colbert).numpy() if colbert else np.zeros(0),
            text_of_row=self._text_of_row if colbert else np.zeros(0, np.int64),
            is_degenerate=self._is_degenerate,
        )


def _columns(quantized: QuantizedProjection, columns: slice) -> QuantizedProjection:
    """Some outputs only."""
    return replace(
        quantized,
        values=quantized.values[:, columns],
        scales=quantized.scales[columns],
        shift=quantized.shift[columns],
        float_weight=quantized.float_weight[:, columns],
    )


def _centred(compute: Compute, offset: torch.Tensor, constant: torch.Tensor) -> Compute:
    return lambda x: compute(x - offset) + constant


@contextmanager
def _computing(module: torch.nn.Module, forward: Compute) -> Iterator[None]:
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def _cosine_loss(exact: torch.Tensor, got: torch.Tensor) -> torch.Tensor:
    return 1 - torch.cosine_similarity(exact.double(), got.double(), dim=-1)


def _jaccard_loss(exact: torch.Tensor, got: torch.Tensor) -> torch.Tensor:
    """(B, T) weights by token → (B,); ids that repeat are not put together, which makes no odds here."""
    larger = torch.maximum(exact, got).sum(-1)
    return torch.where(larger == 0, 0.0, 1 - torch.minimum(exact, got).sum(-1) / larger.clamp(min=1e-12))
