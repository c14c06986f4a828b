"""What calibration hears at the input of every projection, as the INT8 graph will give it."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from m3_export.calibration import Statistics
from m3_export.model import M3Model
from m3_export.model import Projection as Linear
from m3_export.plan.forms import Heard
from m3_export.plan.plan import Kind, Projection

Ids = NDArray[np.int32]
MAX_ROWS = 512  # kept of each input


def linears(model: M3Model, place: Projection) -> tuple[Linear, ...]:
    """The modules of a projection: three for query, key and value, else one."""
    return tuple(getattr(model.layers[place.layer], name) for name in place.kind.weights)


def weight_of(model: M3Model, place: Projection) -> torch.Tensor:
    """A projection's weight (K, N), a copy; query, key and value side by side."""
    return torch.cat([part.weight for part in linears(model, place)], dim=1)


def bias_of(model: M3Model, place: Projection) -> torch.Tensor:
    """A projection's bias (N,)."""
    return torch.cat([part.bias for part in linears(model, place)])


def offsets(model: M3Model, statistics: Statistics, place: Projection) -> torch.Tensor:
    """(K,) what the INT8 graph subtracts from a projection's input: the means of the normalisation before it."""
    width = linears(model, place)[0].weight.shape[0]
    norm = {Kind.QKV: 2 * place.layer, Kind.FFN_IN: 2 * place.layer + 1}.get(place.kind)
    return torch.zeros(width) if norm is None else torch.from_numpy(statistics.means[norm])


def hear(
    model: M3Model,
    statistics: Statistics,
    places: Sequence[Projection],
    ids: Sequence[Ids],
    track: Callable[[Sequence[Ids]], Iterable[Ids]],
) -> Mapping[Projection, Heard]:
    """Run the calibration texts and keep ranges and some rows of every projection's input.

    Args:
        model: the exact model.
        statistics: of the same texts: means and loud neurons.
        places: the projections.
        ids: (L,) ids of each text, both special tokens included.
        track: wraps the iteration, for a progress bar.
    """
    ears = {place: _Ear(model, statistics, place, sum(len(row) for row in ids)) for place in places}
    hooks = [linears(model, place)[0].register_forward_pre_hook(ear.listen) for place, ear in ears.items()]
    try:
        with torch.inference_mode():
            for row in track(ids):
                inputs = torch.from_numpy(np.asarray(row, dtype=np.int64))[None]
                model(inputs, torch.ones_like(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return {place: ear.heard() for place, ear in ears.items()}


class _Ear:
    """Widens the ranges of one input and keeps every n-th row; a text's first token counts like any other."""

    def __init__(self, model: M3Model, statistics: Statistics, place: Projection, tokens: int) -> None:
        self._offset = offsets(model, statistics, place)
        self._after_gelu = place.kind is Kind.FFN_OUT
        self._silent = list(statistics.loud_neurons[place.layer]) if self._after_gelu else []
        self._every, self._seen = max(1, tokens // MAX_ROWS), 0
        self._lowest = torch.full_like(self._offset, torch.inf)
        self._highest = torch.full_like(self._offset, -torch.inf)
        self._rows: list[torch.Tensor] = []

    def listen(self, _module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        x = args[0][0] - self._offset
        x[:, self._silent] = 0  # loud neurons run apart, in float
        torch.minimum(self._lowest, x.amin(0), out=self._lowest)
        torch.maximum(self._highest, x.amax(0), out=self._highest)
        first = -self._seen % self._every
        self._rows.append(x[first :: self._every].clone())
        self._seen += len(x)

    def heard(self) -> Heard:
        return Heard(self._lowest, self._highest, torch.cat(self._rows), self._after_gelu)
