"""A plan run in PyTorch: the model's projections compute what their forms would, on any processor.

Engines multiply the same integers and add them exactly, so this is what they give but for float rounding. It is how the
planner tries plans without writing a model for each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from m3_export.calibration import Statistics
from m3_export.model import M3Model
from m3_export.plan.forms import Form, Heard, form_of, rendered
from m3_export.plan.hearing import bias_of, linears, offsets, weight_of
from m3_export.plan.plan import Choice, Kind, Plan, Precision, Projection

Ids = NDArray[np.int32]
Compute = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Subject:
    """What is planned: the exact model, what calibration heard, and the group of its engine's dynamic ranges."""

    model: M3Model
    statistics: Statistics
    heard: Mapping[Projection, Heard]
    group: int

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return len(self.model.layers)

    def form(self, place: Projection, choice: Choice) -> Form:
        """The form of one projection under a choice that is not float."""
        return form_of(choice, self.heard[place], self.weight(place), self.group)

    def weight(self, place: Projection) -> torch.Tensor:
        """(K, N) without the loud neurons, which run apart in float: columns of FFN-in, rows of FFN-out."""
        weight, loud = weight_of(self.model, place), list(self.statistics.loud_neurons[place.layer])
        if place.kind is Kind.FFN_IN:
            weight[:, loud] = 0
        elif place.kind is Kind.FFN_OUT:
            weight[loud] = 0
        return weight

    @contextmanager
    def with_choice(self, place: Projection, choice: Choice) -> Iterator[None]:
        """While it lasts, one projection computes what its form would."""
        if choice.precision is Precision.FLOAT:
            yield
            return
        form, offset = self.form(place, choice), offsets(self.model, self.statistics, place)
        whole = weight_of(self.model, place)
        constant, loud = offset @ whole + bias_of(self.model, place), list(self.statistics.loud_neurons[place.layer])
        parts = linears(self.model, place)
        width = form.shift.shape[0] // len(parts)
        with ExitStack() as stack:
            for number, part in enumerate(parts):
                columns = slice(number * width, (number + 1) * width)
                compute = rendered(_columns(form, columns), self.group, after_gelu=place.kind is Kind.FFN_OUT)
                apart = _Apart(place.kind, offset, constant[columns], loud, whole[:, columns])
                stack.enter_context(_computing(part, partial(_product, compute, apart)))
            yield

    @contextmanager
    def with_plan(self, plan: Plan) -> Iterator[None]:
        """While it lasts, the model computes what the plan says."""
        with ExitStack() as stack:
            for place, choice in plan.choices.items():
                stack.enter_context(self.with_choice(place, choice))
            yield


@dataclass(frozen=True)
class _Apart:
    """What is added to an INT8 product: a constant, and the float share of the layer's loud neurons.

    `offset` (K,) is subtracted from the input; `weight` (K, N) is the exact one.
    """

    kind: Kind
    offset: torch.Tensor
    constant: torch.Tensor
    loud: list[int]
    weight: torch.Tensor


def _product(compute: Compute, apart: _Apart, x: torch.Tensor) -> torch.Tensor:
    centred, loud = x - apart.offset, apart.loud
    if apart.kind is Kind.FFN_OUT and loud:
        heard = centred.clone()
        heard[..., loud] = 0
        return compute(heard) + apart.constant + centred[..., loud] @ apart.weight[loud]
    product = compute(centred) + apart.constant
    if apart.kind is Kind.FFN_IN and loud:
        product[..., loud] += centred @ apart.weight[:, loud]
    return product


def _columns(form: Form, columns: slice) -> Form:
    """The form of some outputs only."""
    parts = {"values": form.values[:, columns], "scales": form.scales[columns], "shift": form.shift[columns]}
    return Form(**{**vars(form), **parts, "apart_weight": form.apart_weight[:, columns]})


@contextmanager
def _computing(module: torch.nn.Module, forward: Compute) -> Iterator[None]:
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


@dataclass(frozen=True)
class Losses:
    """How far from exact: 1 minus the figure that a budget limits, each 0 where all is exact."""

    dense_mean: float
    dense_min: float
    colbert_p5: float
    sparse_jaccard: float

    def over(self, limits: "Losses") -> float:
        """The largest loss in parts of its limit: at most 1 is within."""
        return max(self.in_parts_of(limits))

    def in_parts_of(self, limits: "Losses") -> tuple[float, ...]:
        """Each loss divided by its limit."""
        return tuple(getattr(self, name) / max(getattr(limits, name), 1e-12) for name in vars(self))


class Exact:
    """The exact outputs of some texts, and the input of every layer for each, so that a run can start in the middle."""

    def __init__(self, model: M3Model, ids: Sequence[Ids]) -> None:
        self._model = model
        self._ids = [torch.from_numpy(np.asarray(row, dtype=np.int64))[None] for row in ids]
        self._inputs: list[list[torch.Tensor]] = []
        self._outputs: list[tuple[torch.Tensor, ...]] = []
        with torch.inference_mode():
            for row in self._ids:
                inputs = [self._embedded(row)]
                for layer in model.layers:
                    inputs.append(layer(inputs[-1], self._no_mask(row)))
                self._inputs.append(inputs)
                self._outputs.append(model.heads(inputs[-1], row, torch.ones_like(row)))

    def losses(self, first_layer: int = 0) -> Losses:
        """Run the model as it is now, from a layer on, and compare."""
        dense, colbert, sparse = [], [], []
        with torch.inference_mode():
            for row, inputs, exact in zip(self._ids, self._inputs, self._outputs, strict=True):
                x = inputs[first_layer]
                for layer in list(self._model.layers)[first_layer:]:
                    x = layer(x, self._no_mask(row))
                got = self._model.heads(x, row, torch.ones_like(row))
                dense.append(_cosine_loss(exact[0], got[0]))
                if len(exact) > 1:
                    sparse.append(_jaccard_loss(exact[1], got[1]))
                    colbert.append(_cosine_loss(exact[2][0], got[2][0]))
        each = torch.cat(dense)
        return Losses(
            dense_mean=float(each.mean()),
            dense_min=float(each.max()),
            colbert_p5=float(torch.cat(colbert).quantile(0.95)) if colbert else 0.0,
            sparse_jaccard=float(torch.stack(sparse).mean()) if sparse else 0.0,
        )

    def _embedded(self, row: torch.Tensor) -> torch.Tensor:
        return self._model.embedded(row)

    @staticmethod
    def _no_mask(row: torch.Tensor) -> torch.Tensor:
        return torch.zeros((1, 1, 1, row.shape[1]))


def _cosine_loss(exact: torch.Tensor, got: torch.Tensor) -> torch.Tensor:
    return 1 - torch.cosine_similarity(exact.double(), got.double(), dim=-1)


def _jaccard_loss(exact: torch.Tensor, got: torch.Tensor) -> torch.Tensor:
    """Of weights by token; ids that repeat are not put together, which makes no odds here."""
    larger = torch.maximum(exact, got).sum()
    return torch.zeros(()) if larger == 0 else 1 - torch.minimum(exact, got).sum() / larger
