"""What `synthetic-xlmr-large` has beyond noise: outliers, lexical weights, and a sense of how little a text holds.

Noise alone is kind to INT8, and its sparse head says nothing. Three things are planted into it, all drawn from one seed
and without a forward pass. The constants were found by measurement (benchmarks/naive_int8.py, docs/synthetic-model.md).

**Outliers**, where XLM-R-large has them:

    attention.output.LayerNorm   3 outlier channels (size and sign depend on the token), 1 steady one
    GELU                         48 outlier neurons a layer, others in each, which answer to rare tokens; 1 steady one

The word embeddings of an outlier channel have a heavy tail; the gain of each attention LayerNorm makes it large and the
gain of the next LayerNorm small again, which keeps the rest of the network as it was. Its sizes have no mean worth
subtracting. The outlier neurons read these channels, above a threshold.

**Lexical weights**: one channel holds how much a word counts, next to nothing for frequent pieces (XLM-R's vocabulary
is sorted by frequency), and every layer hands it on. The sparse head reads it, and a little of all others as context.

**Scarcity**: in layer 0 each attention head looks for the token with most of one feature. A natural text has one for
every feature; a text of one word, of the same word many times or of special tokens alone has not. What is missing
raises the scarcity channel, which every layer hands on and which a few sleeping neurons of each layer answer to:
channels and neurons that are near zero on all natural texts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from m3_models.arrays import FloatArray
from m3_models.checkpoint_files import Heads, Linear
from m3_models.xlmr_layout import PAD_ID, Geometry, TensorSource

OUTLIER_CHANNELS = 3  # channels; with the steady one 4, as many as published
OUTLIER_NEURONS = 48  # of a layer, from full size down to a twentieth; more than a pass can set apart cheaply
SPECIAL_TOKENS = 4  # <s> <pad> </s> <unk> have the first ids

# Word embeddings w of an outlier channel become sign(w) min(TAIL |w|^POWER, LONGEST_TAIL), w normal: six words in
# ten are below 0.001, two in a hundred over 1, one in two thousand over 16. The steeper, the rarer are tokens that are
# large: one text's range per tensor then lies between a token's range and that of all texts.
POWER = 7
TAIL = 0.0026
LONGEST_TAIL = 28.0
OTHER_EMBEDDINGS = 0.2  # of positions' values there: what a token is must decide

CHANNEL_GAIN = 3.8  # of the attention LayerNorm; 15 to 31 times the median channel comes of it
CHANNEL_GAIN_SPREAD = 0.45  # times exp(±spread), by layer and channel
# Gain of the output LayerNorm times gain of the attention LayerNorm: what two normalisations take away, so that a
# token is about as large in the last layer as in the first. At 1.26 it fades: deep neurons fall silent.
ROUND_TRIP = 1.32
WRITTEN = 0.1  # of what attention and FFN add to the channels planted, or they would drown the words' own values
READ = 1 / 20  # of FFN-in's weights on outlier channels: ordinary neurons are not to be ruled by them

STEADY_CHANNEL = 8.0  # its LayerNorm bias, sign by layer; the one outlier that subtracting a mean removes
STEADY_GAIN, STEADY_RETURN = 0.5, 0.1  # its gains in the two LayerNorms
STEADY_NEURON = 3.0  # its bias: a GELU output that is never small

# Slope of the largest outlier neuron, on the channel before its gain; GELU gets to 133 times the median channel.
LARGEST = 28.0
SMALLEST = 0.05  # slope of the 48th, in slopes of the first
THRESHOLD = 10.0  # below it they are silent: in most texts no token gets there
ANSWER = 0.25  # FFN-out's weights of an outlier neuron are ANSWER / slope of what they were: large, yet no tyrant

# Of FFN-out's weights: with a larger share of every layer, errors of the FFN weigh more. Noise alone is too robust.
FFN_SHARE = 1.2

# The lexical channel of word i is (log10 i - RANK_MIDDLE) / RANK_SPREAD, plus LEXICAL_NOISE of what it was.
RANK_MIDDLE, RANK_SPREAD = 3.4, 1.4
LEXICAL_NOISE = 0.5
HANDED_ON = 1.115  # gain of every LayerNorm there: what a normalisation takes away from an ordinary token
WEIGHT_MIDDLE = 0.125  # lexical weight of a word of rank RANK_MIDDLE
WEIGHT_SLOPE = 0.047  # lexical weight per unit of the last layer's lexical channel
WEIGHT_CONTEXT = 0.11  # of the random head on all other channels

FREQUENT = 2.0  # words before rank 10^2 have less of every feature, by as many decades as they come before it
FEATURELESS = -1.5  # features of special tokens: heads choose another token where there is one
SHARPNESS = 4.0  # score of a token per unit of the feature: a soft maximum
# The missing channel is MISSING times what the heads' features are below ENOUGH on average. Natural texts reach 4.4
# there, after the LayerNorm; words alone or repeated have 5.2 and more, the empty text 12.
MISSING, ENOUGH = 4.0, 2.0
ALARM, FULL_ALARM = 5.0, 6.0  # of it: where scarcity begins, and where it is at its full size
ALARM_SLOPE = 2.0
SCARCITY = 4.0  # its full size: no tyrant of its row, so that ranges per token hold
SLEEPERS = 8  # neurons of a layer that answer to the scarcity channel, with slope 1
WAKING = 2.0  # of the scarcity channel: above it they do
# Of ordinary weights on the scarcity channel and from sleeping neurons: with 1, ranges that clip them cost half the
# dense cosine, where the real small model loses four hundredths.
SCARCITY_READ = 0.3


@dataclass(frozen=True)
class _Place:
    """What is planted in one layer.

    Attributes:
        outliers: (3,) outlier channels, the same in all layers.
        steady: A channel, the same in all layers.
        lexical: A channel, the same in all layers.
        missing: A channel, of layer 0 alone.
        scarcity: A channel, the same in all layers.
        features: (heads,) channels that layer 0 attends by.
        head_rows: (heads,) first row of each attention head.
        gains: (3,) of the attention LayerNorm at the outlier channels.
        neurons: (48,) outlier neurons.
        slopes: (48,) how steeply they answer.
        signs: (48,) to which sign of their channel; outlier neuron i reads outlier channel i mod 3.
        steady_neuron: Another neuron.
        steady_bias: LayerNorm bias of the steady channel.
        alarms: (2,) neurons, of layer 0 alone.
        sleepers: (8,) neurons that answer to scarcity.
    """

    outliers: NDArray[np.int64]
    steady: int
    lexical: int
    missing: int
    scarcity: int
    features: NDArray[np.int64]
    head_rows: NDArray[np.int64]
    gains: FloatArray
    neurons: NDArray[np.int64]
    slopes: FloatArray
    signs: FloatArray
    steady_neuron: int
    steady_bias: float
    alarms: NDArray[np.int64]
    sleepers: NDArray[np.int64]

    @property
    def handed_on(self) -> list[int]:
        """Channels that each layer gives to the next as it got them."""
        return [self.lexical, self.scarcity]

    @property
    def channels(self) -> list[int]:
        """All channels that layers are not to write over."""
        return [*self.outliers.tolist(), *self.handed_on]


_Plant: TypeAlias = Callable[[FloatArray, _Place], None]


def planted(source: TensorSource, seed: int, geometry: Geometry) -> TensorSource:
    """Return a source that plants into the tensors of another, which must own what it gives.

    Args:
        source: The noise.
        seed: Decides which channels and neurons.
        geometry: At least 8 + 2 heads channels and 64 neurons.
    """

    def tensor(name: str, shape: tuple[int, ...]) -> FloatArray:
        values = source(name, shape)
        layer, part = _split(name)
        for plants in (_PLANTS, _FIRST_LAYER) if layer == 0 else (_PLANTS,):
            if part in plants:
                plants[part](values, _place(seed, layer, geometry))
        return values

    return tensor


def planted_heads(heads: Heads, seed: int, geometry: Geometry) -> Heads:
    """Return the heads with a sparse one that reads the lexical channel, and others a little."""
    place = _place(seed, 0, geometry)
    weight = heads.sparse.weight * np.float32(WEIGHT_CONTEXT)
    weight[0, [*place.channels, place.steady]] = 0
    weight[0, place.lexical] = WEIGHT_SLOPE
    return Heads(sparse=Linear(weight, np.full(1, WEIGHT_MIDDLE, np.float32)), colbert=heads.colbert)


def outlier_channels(seed: int, geometry: Geometry) -> tuple[int, ...]:
    """The outlier channels whose size depends on the token: the same in every layer."""
    return tuple(_place(seed, 0, geometry).outliers.tolist())


def outlier_neurons(seed: int, layer: int, geometry: Geometry) -> tuple[int, ...]:
    """The outlier neurons of a layer, the largest first."""
    return tuple(_place(seed, layer, geometry).neurons.tolist())


def lexical_channel(seed: int, geometry: Geometry) -> int:
    """The channel that holds how much a word counts."""
    return _place(seed, 0, geometry).lexical


def scarcity_channel(seed: int, geometry: Geometry) -> int:
    """The channel that is near zero in natural texts and is not where a text holds hardly anything."""
    return _place(seed, 0, geometry).scarcity


def sleeping_neurons(seed: int, layer: int, geometry: Geometry) -> tuple[int, ...]:
    """The neurons of a layer that answer to the scarcity channel."""
    return tuple(_place(seed, layer, geometry).sleepers.tolist())


def _split(name: str) -> tuple[int, str]:
    """Layer and name within it; embeddings have no layer, any will do.

    >>> _split("encoder.layer.3.output.dense.weight")
    (3, 'output.dense.weight')
    """
    if not name.startswith("encoder.layer."):
        return 0, name
    layer, _, part = name.removeprefix("encoder.layer.").partition(".")
    return int(layer), part


def _place(seed: int, layer: int, geometry: Geometry) -> _Place:
    outliers = np.random.default_rng([seed, 0]).choice(geometry.hidden, OUTLIER_CHANNELS + 1, replace=False)
    channels = np.random.default_rng([seed, 2]).permutation(np.setdiff1d(np.arange(geometry.hidden), outliers))
    rng = np.random.default_rng([seed, 1, layer])
    neurons = rng.choice(geometry.ffn, OUTLIER_NEURONS + 1, replace=False)
    spread = rng.uniform(-CHANNEL_GAIN_SPREAD, CHANNEL_GAIN_SPREAD, OUTLIER_CHANNELS)
    others = np.random.default_rng([seed, 3, layer]).permutation(np.setdiff1d(np.arange(geometry.ffn), neurons))
    return _Place(
        outliers=outliers[:OUTLIER_CHANNELS],
        steady=int(outliers[OUTLIER_CHANNELS]),
        lexical=int(channels[0]),
        missing=int(channels[1]),
        scarcity=int(channels[2]),
        features=channels[3 : 3 + geometry.heads],
        head_rows=np.arange(geometry.heads) * (geometry.hidden // geometry.heads),
        gains=(CHANNEL_GAIN * np.exp(spread)).astype(np.float32),
        neurons=neurons[:OUTLIER_NEURONS],
        slopes=np.geomspace(LARGEST, LARGEST * SMALLEST, OUTLIER_NEURONS).astype(np.float32),
        signs=rng.choice(np.array([-1, 1], np.float32), OUTLIER_NEURONS),
        steady_neuron=int(neurons[OUTLIER_NEURONS]),
        steady_bias=float(rng.choice([-STEADY_CHANNEL, STEADY_CHANNEL])),
        alarms=others[:2],
        sleepers=others[2 : 2 + SLEEPERS],
    )


def _words(values: FloatArray, place: _Place) -> None:
    drawn = values[:, place.outliers]
    values[:, place.outliers] = np.sign(drawn) * np.minimum(TAIL * np.abs(drawn) ** POWER, LONGEST_TAIL)
    rank = np.log10(np.maximum(np.arange(len(values), dtype=np.float32), SPECIAL_TOKENS))
    values[:, place.lexical] *= np.float32(LEXICAL_NOISE)
    values[:, place.lexical] += (rank - RANK_MIDDLE) / RANK_SPREAD
    values[:, place.features] -= np.maximum(FREQUENT - rank, 0)[:, None]
    values[:SPECIAL_TOKENS, place.features] = FEATURELESS
    values[:, [place.missing, place.scarcity]] = 0
    values[PAD_ID] = 0


def _other_embeddings(values: FloatArray, place: _Place) -> None:
    values[:, [*place.channels, place.steady, *place.features]] *= np.float32(OTHER_EMBEDDINGS)


def _embedding_gain(values: FloatArray, place: _Place) -> None:
    values[[*place.channels, place.steady, *place.features]] = 1


def _attention_gain(values: FloatArray, place: _Place) -> None:
    values[place.outliers] = place.gains
    values[place.steady] = STEADY_GAIN
    values[place.handed_on] = HANDED_ON


def _attention_bias(values: FloatArray, place: _Place) -> None:
    values[place.channels] = 0
    values[place.steady] = place.steady_bias


def _output_gain(values: FloatArray, place: _Place) -> None:
    values[place.outliers] = ROUND_TRIP / place.gains
    values[place.steady] = STEADY_RETURN
    values[place.handed_on] = HANDED_ON


def _output_bias(values: FloatArray, place: _Place) -> None:
    values[[*place.channels, place.steady]] = 0


def _written(values: FloatArray, place: _Place) -> None:
    values[place.channels] *= np.float32(WRITTEN)
    values[place.scarcity] = 0


def _query_key_or_value(values: FloatArray, place: _Place) -> None:
    values[:, place.scarcity] *= np.float32(SCARCITY_READ)


def _ffn_in(values: FloatArray, place: _Place) -> None:
    values[:, place.scarcity] *= np.float32(SCARCITY_READ)
    values[:, place.outliers] *= READ * CHANNEL_GAIN / place.gains
    values[:, place.steady] /= np.float32(STEADY_CHANNEL)
    channel = np.arange(OUTLIER_NEURONS) % OUTLIER_CHANNELS
    values[place.neurons[:, None], place.outliers] = 0
    values[place.neurons, place.outliers[channel]] = place.signs * place.slopes / place.gains[channel]
    values[place.sleepers, place.scarcity] = 1


def _ffn_in_bias(values: FloatArray, place: _Place) -> None:
    values[place.neurons] = -THRESHOLD * place.slopes
    values[place.steady_neuron] = STEADY_NEURON
    values[place.sleepers] = -WAKING


def _ffn_out(values: FloatArray, place: _Place) -> None:
    values *= np.float32(FFN_SHARE)
    _written(values, place)
    values[:, place.neurons] *= ANSWER / place.slopes
    values[place.outliers[:, None], place.neurons] = 0
    values[:, place.steady_neuron] /= np.float32(STEADY_NEURON)
    values[:, place.sleepers] *= np.float32(SCARCITY_READ)


def _first_query(values: FloatArray, place: _Place) -> None:
    values[place.head_rows] = 0


def _first_query_bias(values: FloatArray, place: _Place) -> None:
    # divided by the square root of a head's width before the softmax
    values[place.head_rows] = SHARPNESS * np.sqrt(len(values) / len(place.head_rows))


def _first_key_or_value(values: FloatArray, place: _Place) -> None:
    values[place.head_rows] = 0
    values[place.head_rows, place.features] = 1


def _first_value_bias(values: FloatArray, place: _Place) -> None:
    values[place.head_rows] = 0


def _first_attention_out(values: FloatArray, place: _Place) -> None:
    values[place.missing] = 0
    values[place.missing, place.head_rows] = -MISSING / len(place.head_rows)


def _first_attention_out_bias(values: FloatArray, place: _Place) -> None:
    values[place.missing] = MISSING * ENOUGH


def _first_gain(values: FloatArray, place: _Place) -> None:
    values[place.missing] = 1


def _first_output_gain(values: FloatArray, place: _Place) -> None:
    values[place.missing] = 0


def _first_ffn_in(values: FloatArray, place: _Place) -> None:
    values[place.alarms] = 0
    values[place.alarms, place.missing] = ALARM_SLOPE


def _first_ffn_in_bias(values: FloatArray, place: _Place) -> None:
    values[place.alarms] = -ALARM_SLOPE * np.array([ALARM, FULL_ALARM])


def _first_ffn_out(values: FloatArray, place: _Place) -> None:
    # one neuron minus the other: nothing below the one's threshold, no more above the other's
    per_unit = SCARCITY / (ALARM_SLOPE * (FULL_ALARM - ALARM))
    values[:, place.alarms] = 0
    values[place.scarcity, place.alarms] = [per_unit, -per_unit]


_PLANTS: dict[str, _Plant] = {
    "embeddings.word_embeddings.weight": _words,
    "embeddings.position_embeddings.weight": _other_embeddings,
    "embeddings.token_type_embeddings.weight": _other_embeddings,
    "embeddings.LayerNorm.weight": _embedding_gain,
    "attention.self.query.weight": _query_key_or_value,
    "attention.self.key.weight": _query_key_or_value,
    "attention.self.value.weight": _query_key_or_value,
    "attention.output.dense.weight": _written,
    "attention.output.LayerNorm.weight": _attention_gain,
    "attention.output.LayerNorm.bias": _attention_bias,
    "intermediate.dense.weight": _ffn_in,
    "intermediate.dense.bias": _ffn_in_bias,
    "output.dense.weight": _ffn_out,
    "output.LayerNorm.weight": _output_gain,
    "output.LayerNorm.bias": _output_bias,
}

_FIRST_LAYER: dict[str, _Plant] = {
    "attention.self.query.weight": _first_query,
    "attention.self.query.bias": _first_query_bias,
    "attention.self.key.weight": _first_key_or_value,
    "attention.self.value.weight": _first_key_or_value,
    "attention.self.value.bias": _first_value_bias,
    "attention.output.dense.weight": _first_attention_out,
    "attention.output.dense.bias": _first_attention_out_bias,
    "attention.output.LayerNorm.weight": _first_gain,
    "intermediate.dense.weight": _first_ffn_in,
    "intermediate.dense.bias": _first_ffn_in_bias,
    "output.dense.weight": _first_ffn_out,
    "output.LayerNorm.weight": _first_output_gain,
}
