"""What INT8 needs to know of activations, measured on the calibration texts."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from m3_export.model import Layer, M3Model, Norm

Ids = NDArray[np.int32]
MAX_TOKENS = 128  # of each text: many texts say more about a channel's mean than long ones


# A neuron is loud if it ever gets this many times louder than the loudest neuron of a middling token.
LOUD_FACTOR = 3.0
MOST_LOUD = 32  # of a layer; more would no longer be thin


@dataclass(frozen=True)
class Statistics:
    """What was measured.

    `means` are (H,) float32 per normalisation, in the order in which they run; `loud_neurons` the indices of loud FFN
    neurons per layer, ascending.
    """

    means: tuple[NDArray[np.float32], ...]
    loud_neurons: tuple[tuple[int, ...], ...]


def measure(model: M3Model, ids: Sequence[Ids], track: Callable[[Sequence[Ids]], Iterable[Ids]]) -> Statistics:
    """Run the calibration texts and listen to normalisations and neurons.

    Args:
        model: the model that was traced.
        ids: (L,) ids of each text, both special tokens included.
        track: wraps the iteration, for a progress bar.
    """
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    sums = {id(norm): torch.zeros(norm.weight.shape, dtype=torch.float64) for norm in norms}
    loudest = {id(layer.gelu): torch.full((layer.ffn_in.bias.shape[0],), -torch.inf) for layer in layers}
    of_token: dict[int, list[torch.Tensor]] = {id(layer.gelu): [] for layer in layers}

    def add_up(norm: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        sums[id(norm)] += output.sum(dim=(0, 1), dtype=torch.float64)

    def keep_loudest(gelu: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        torch.maximum(loudest[id(gelu)], output.amax(dim=(0, 1)), out=loudest[id(gelu)])
        of_token[id(gelu)].append(output.amax(dim=2).flatten())

    hooks = [norm.register_forward_hook(add_up) for norm in norms]
    hooks += [layer.gelu.register_forward_hook(keep_loudest) for layer in layers]
    try:
        _run(model, track(ids))
    finally:
        for hook in hooks:
            hook.remove()
    tokens = sum(len(row) for row in ids)
    return Statistics(
        means=tuple((sums[id(norm)] / tokens).to(torch.float32).numpy() for norm in norms),
        loud_neurons=tuple(
            loud_neurons(loudest[id(layer.gelu)].numpy(), torch.cat(of_token[id(layer.gelu)]).numpy())
            for layer in layers
        ),
    )


def loud_neurons(loudest: NDArray[np.float32], of_token: NDArray[np.float32]) -> tuple[int, ...]:
    """Neurons far louder than what a middling token needs, the loudest `MOST_LOUD` of them, ascending.

    Args:
        loudest: (F,) highest value of each neuron over all tokens.
        of_token: (N,) highest value of each token over all neurons.

    >>> loud_neurons(np.array([1.0, 50.0, 2.0, 9.0]), np.array([1.0, 2.0, 50.0]))
    (1, 3)
    """
    order = np.argsort(-loudest, kind="stable")[:MOST_LOUD]
    return tuple(sorted(int(i) for i in order if loudest[i] > LOUD_FACTOR * float(np.median(of_token))))


def _run(model: M3Model, rows: Iterable[Ids]) -> None:
    with torch.inference_mode():
        for row in rows:
            inputs = torch.from_numpy(np.asarray(row, dtype=np.int64))[None]
            model(inputs, torch.ones_like(inputs))
