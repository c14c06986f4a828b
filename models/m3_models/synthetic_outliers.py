"""synthetic-xlmr-large-outliers: the synthetic model with outliers where XLM-R-large has them; it never ships.

Plain noise is kind to INT8: every scheme looks good on it. Here a few channels and neurons are loud, on some tokens far
more than on others, so that schemes fail as they are published to fail on BGE-M3. Where:

    attention.output.LayerNorm   3 wandering channels (their size and sign depend on the token), 1 steady one
    GELU                         48 loud neurons a layer, others in each; they answer to rare tokens only; 1 steady one

How a wandering channel works: its word embeddings have a heavy tail; the gain of each attention LayerNorm makes it loud
and the gain of the next LayerNorm quiet again, which keeps the rest of the network as it was. Its sizes have no mean
worth subtracting. The loud neurons listen to these channels, above a threshold.

The constants were found by measurement (benchmarks/naive_int8.py, docs/hostile-model.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from m3_models import synthetic
from m3_models.arrays import FloatArray
from m3_models.xlmr_layout import TensorSource

WANDERING = 3  # channels; with the steady one 4, as many as published
LOUD = 48  # neurons of a layer, from full loudness down to a twentieth; more than a pass can set apart cheaply

# Word embeddings w of a wandering channel become sign(w) min(TAIL |w|^POWER, LONGEST_TAIL), w normal: six words in
# ten are below 0.001, two in a hundred over 1, one in two thousand over 16. The steeper, the rarer are tokens that are
# loud: one text's range per tensor then lies between a token's range and that of all texts.
POWER = 7
TAIL = 0.0026
LONGEST_TAIL = 28.0
OTHER_EMBEDDINGS = 0.2  # of positions' values there: what a token is must decide

CHANNEL_GAIN = 3.8  # of the attention LayerNorm; 15 to 31 times the median channel comes of it
CHANNEL_GAIN_SPREAD = 0.45  # times exp(±spread), by layer and channel
# Gain of the output LayerNorm times gain of the attention LayerNorm: what two normalisations take away, so that a loud
# token is about as loud in the last layer as in the first. At 1.26 it fades: deep neurons fall silent.
ROUND_TRIP = 1.32
WRITTEN = 0.1  # of what attention and FFN add to wandering channels, or they would drown the words' own values
HEARD = 1 / 20  # of FFN-in's weights on wandering channels: ordinary neurons are not to be ruled by them

STEADY_CHANNEL = 8.0  # its LayerNorm bias, sign by layer; the one outlier that subtracting a mean removes
STEADY_GAIN, STEADY_RETURN = 0.5, 0.1  # its gains in the two LayerNorms
STEADY_NEURON = 3.0  # its bias: a GELU output that is never small

LOUDNESS = (
    28.0  # slope of the loudest neuron, on the channel before its gain; GELU gets to 133 times the median channel
)
QUIETEST = 0.05  # slope of the 48th, in slopes of the first
THRESHOLD = 10.0  # below it they are silent: in most texts no token gets there
SPOKEN = 0.25  # FFN-out's weights of a loud neuron are SPOKEN / slope of what they were: loud, yet no tyrant

# Of FFN-out's weights: with a larger share of every layer, errors of the FFN weigh more. Noise alone is too robust.
FFN_SHARE = 1.2


@dataclass(frozen=True)
class _Place:
    """What is planted in one layer.

    Attributes:
        wandering: (3,) channels, the same in all layers.
        steady: A channel, the same in all layers.
        gains: (3,) of the attention LayerNorm at the wandering channels.
        neurons: (48,) loud ones.
        slopes: (48,) how steeply they answer.
        signs: (48,) to which sign of their channel; loud neuron i listens to wandering channel i mod 3.
        steady_neuron: Another neuron.
        steady_bias: LayerNorm bias of the steady channel.
    """

    wandering: NDArray[np.int64]
    steady: int
    gains: FloatArray
    neurons: NDArray[np.int64]
    slopes: FloatArray
    signs: FloatArray
    steady_neuron: int
    steady_bias: float


_Plant: TypeAlias = Callable[[FloatArray, _Place], None]


def write(folder: Path, progress: Callable[[str], None]) -> None:
    """Write the checkpoint (2.3 GB) into an existing, empty folder; see `m3_models.synthetic.write`."""
    geometry = synthetic.BGE_M3_GEOMETRY
    source = with_outliers(synthetic.tensors(), synthetic.SEED, hidden=geometry.hidden, ffn=geometry.ffn)
    synthetic.write_with(folder, "synthetic-xlmr-large-outliers", source, progress)


def with_outliers(source: TensorSource, seed: int, *, hidden: int, ffn: int) -> TensorSource:
    """Return a source that plants outliers into the tensors of another, which must own what it gives.

    Args:
        source: The plain model.
        seed: Decides which channels and neurons.
        hidden: H, at least 4.
        ffn: Neurons of a layer, at least 49.
    """

    def tensor(name: str, shape: tuple[int, ...]) -> FloatArray:
        values = source(name, shape)
        layer, part = _split(name)
        plant = _PLANTS.get(part)
        if plant is not None:
            plant(values, _place(seed, layer, hidden, ffn))
        return values

    return tensor


def wandering_channels(seed: int, hidden: int) -> tuple[int, ...]:
    """Which channels wander: the same in every layer."""
    return tuple(int(i) for i in _channels(seed, hidden)[:WANDERING])


def loud_neurons(seed: int, layer: int, hidden: int, ffn: int) -> tuple[int, ...]:
    """Which neurons of a layer are loud, the loudest first."""
    return tuple(int(i) for i in _place(seed, layer, hidden, ffn).neurons)


def _split(name: str) -> tuple[int, str]:
    """Layer and name within it; embeddings have no layer, any will do.

    >>> _split("encoder.layer.3.output.dense.weight")
    (3, 'output.dense.weight')
    """
    if not name.startswith("encoder.layer."):
        return 0, name
    layer, _, part = name.removeprefix("encoder.layer.").partition(".")
    return int(layer), part


def _channels(seed: int, hidden: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 0]).choice(hidden, WANDERING + 1, replace=False)


def _place(seed: int, layer: int, hidden: int, ffn: int) -> _Place:
    channels = _channels(seed, hidden)
    rng = np.random.default_rng([seed, 1, layer])
    neurons = rng.choice(ffn, LOUD + 1, replace=False)
    spread = rng.uniform(-CHANNEL_GAIN_SPREAD, CHANNEL_GAIN_SPREAD, WANDERING)
    return _Place(
        wandering=channels[:WANDERING],
        steady=int(channels[WANDERING]),
        gains=(CHANNEL_GAIN * np.exp(spread)).astype(np.float32),
        neurons=neurons[:LOUD],
        slopes=np.geomspace(LOUDNESS, LOUDNESS * QUIETEST, LOUD).astype(np.float32),
        signs=rng.choice(np.array([-1, 1], np.float32), LOUD),
        steady_neuron=int(neurons[LOUD]),
        steady_bias=float(rng.choice([-STEADY_CHANNEL, STEADY_CHANNEL])),
    )


def _words(values: FloatArray, place: _Place) -> None:
    drawn = values[:, place.wandering]
    values[:, place.wandering] = np.sign(drawn) * np.minimum(TAIL * np.abs(drawn) ** POWER, LONGEST_TAIL)


def _other_embeddings(values: FloatArray, place: _Place) -> None:
    values[:, [*place.wandering, place.steady]] *= np.float32(OTHER_EMBEDDINGS)


def _embedding_gain(values: FloatArray, place: _Place) -> None:
    values[[*place.wandering, place.steady]] = 1


def _attention_gain(values: FloatArray, place: _Place) -> None:
    values[place.wandering] = place.gains
    values[place.steady] = STEADY_GAIN


def _attention_bias(values: FloatArray, place: _Place) -> None:
    values[place.wandering] = 0
    values[place.steady] = place.steady_bias


def _output_gain(values: FloatArray, place: _Place) -> None:
    values[place.wandering] = ROUND_TRIP / place.gains
    values[place.steady] = STEADY_RETURN


def _output_bias(values: FloatArray, place: _Place) -> None:
    values[[*place.wandering, place.steady]] = 0


def _written(values: FloatArray, place: _Place) -> None:
    values[place.wandering] *= np.float32(WRITTEN)


def _ffn_in(values: FloatArray, place: _Place) -> None:
    values[:, place.wandering] *= HEARD * CHANNEL_GAIN / place.gains
    values[:, place.steady] /= np.float32(STEADY_CHANNEL)
    ear = np.arange(LOUD) % WANDERING
    values[place.neurons[:, None], place.wandering] = 0
    values[place.neurons, place.wandering[ear]] = place.signs * place.slopes / place.gains[ear]


def _ffn_in_bias(values: FloatArray, place: _Place) -> None:
    values[place.neurons] = -THRESHOLD * place.slopes
    values[place.steady_neuron] = STEADY_NEURON


def _ffn_out(values: FloatArray, place: _Place) -> None:
    values *= np.float32(FFN_SHARE)
    _written(values, place)
    values[:, place.neurons] *= SPOKEN / place.slopes
    values[place.wandering[:, None], place.neurons] = 0
    values[:, place.steady_neuron] /= np.float32(STEADY_NEURON)


_PLANTS: dict[str, _Plant] = {
    "embeddings.word_embeddings.weight": _words,
    "embeddings.position_embeddings.weight": _other_embeddings,
    "embeddings.token_type_embeddings.weight": _other_embeddings,
    "embeddings.LayerNorm.weight": _embedding_gain,
    "attention.output.dense.weight": _written,
    "attention.output.LayerNorm.weight": _attention_gain,
    "attention.output.LayerNorm.bias": _attention_bias,
    "intermediate.dense.weight": _ffn_in,
    "intermediate.dense.bias": _ffn_in_bias,
    "output.dense.weight": _ffn_out,
    "output.LayerNorm.weight": _output_gain,
    "output.LayerNorm.bias": _output_bias,
}
