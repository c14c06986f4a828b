"""The hostile model: what is planted where, and, on a small encoder, that it does to INT8 what it is made for.

The schemes and the ratios are those of benchmarks/naive_int8.py, which measures the full-size model.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from m3_export.checkpoint import Checkpoint
from m3_export.model import M3Model
from m3_export.recipe import Recipe
from m3_models import synthetic_outliers as outliers
from m3_models.checkpoint_files import write_encoder, write_heads
from m3_models.seeded_weights import Spread, seeded_heads, seeded_tensors
from m3_models.synthetic_outliers import loud_neurons, wandering_channels, with_outliers
from m3_models.xlmr_layout import Geometry, TensorSource, tensor_shapes

SEED = 20240205
# Wide enough for a channel to be loud without ruling its row's length; weights scaled as 1/√H from BGE-M3's width.
SMALL = Geometry(hidden=512, layers=3, heads=8, ffn=1024, vocabulary=4000, positions=66, epsilon=1e-5)
SPREAD = Spread(word=1.0, weight=0.02 * (1024 / SMALL.hidden) ** 0.5, bias=0.02, gain=0.1)
SHAPES = tensor_shapes(SMALL)
PLANTED = {
    "embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight",
    "embeddings.LayerNorm.weight",
    "attention.output.dense.weight",
    "attention.output.LayerNorm.weight",
    "attention.output.LayerNorm.bias",
    "intermediate.dense.weight",
    "intermediate.dense.bias",
    "output.dense.weight",
    "output.LayerNorm.weight",
    "output.LayerNorm.bias",
}
CHANNELS = list(wandering_channels(SEED, SMALL.hidden))


def plain() -> TensorSource:
    return seeded_tensors(SEED, SPREAD)


def hostile(seed: int = SEED) -> TensorSource:
    return with_outliers(plain(), seed, hidden=SMALL.hidden, ffn=SMALL.ffn)


def both(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A tensor as it was, and as it is planted."""
    return plain()(name, SHAPES[name]), hostile()(name, SHAPES[name])


def in_layer(layer: int, part: str) -> tuple[np.ndarray, np.ndarray]:
    return both(f"encoder.layer.{layer}.{part}")


# What is planted where


def test_the_tensors_meant_are_planted_and_no_others():
    changed = {name for name in SHAPES if not np.array_equal(*both(name))}
    assert changed == {name for name in SHAPES if name.endswith(tuple(PLANTED))} - {"embeddings.LayerNorm.bias"}
    assert {outliers._split(name)[1] for name in changed} == PLANTED


def test_channels_are_the_same_in_every_layer_and_neurons_are_not():
    assert len(set(CHANNELS)) == 3
    assert all(0 <= channel < SMALL.hidden for channel in CHANNELS)
    per_layer = [loud_neurons(SEED, layer, SMALL.hidden, SMALL.ffn) for layer in range(SMALL.layers)]
    assert [len(set(neurons)) for neurons in per_layer] == [48] * SMALL.layers
    assert len(set(per_layer[0]) & set(per_layer[1])) < 10
    for layer in range(SMALL.layers):
        before, after = in_layer(layer, "attention.output.LayerNorm.weight")
        louder = np.flatnonzero(after > 2)
        assert sorted(louder) == sorted(CHANNELS)
        assert (before != after).sum() == 4  # the steady one too


def test_the_same_seed_gives_the_same_tensors_in_any_order_and_another_gives_others():
    names = sorted(SHAPES)
    forwards, backwards, other = hostile(), hostile(), hostile(SEED + 1)
    first = {name: forwards(name, SHAPES[name]) for name in names}
    second = {name: backwards(name, SHAPES[name]) for name in reversed(names)}
    for name in names:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    gains = "encoder.layer.0.attention.output.LayerNorm.weight"
    assert not np.array_equal(first[gains], other(gains, SHAPES[gains]))
    assert set(wandering_channels(SEED + 1, SMALL.hidden)) != set(CHANNELS)


def test_words_of_wandering_channels_have_a_heavy_tail_and_keep_their_signs():
    before, after = both("embeddings.word_embeddings.weight")
    tail = after[:, CHANNELS]
    assert np.abs(tail).max() == outliers.LONGEST_TAIL
    assert 0.5 < (np.abs(tail) < 0.001).mean() < 0.7
    assert 0.0002 < (np.abs(tail) > 16).mean() < 0.001
    loud = np.abs(tail) > 1e-6
    np.testing.assert_array_equal(np.sign(tail[loud]), np.sign(before[:, CHANNELS][loud]))
    assert not after[1].any()  # the padding row stays zero
    rest = np.delete(np.arange(SMALL.hidden), CHANNELS)
    np.testing.assert_array_equal(after[:, rest], before[:, rest])


def test_two_normalisations_bring_a_channel_back_to_its_size():
    for layer in range(SMALL.layers):
        loud = in_layer(layer, "attention.output.LayerNorm.weight")[1][CHANNELS]
        quiet = in_layer(layer, "output.LayerNorm.weight")[1][CHANNELS]
        np.testing.assert_allclose(loud * quiet, outliers.ROUND_TRIP, rtol=1e-5)
        assert (loud > 4 * quiet).all()
        for part in ("attention.output.LayerNorm.bias", "output.LayerNorm.bias"):
            assert not in_layer(layer, part)[1][CHANNELS].any()


def test_a_loud_neuron_listens_to_one_channel_above_a_threshold():
    neurons = list(loud_neurons(SEED, 1, SMALL.hidden, SMALL.ffn))
    heard = in_layer(1, "intermediate.dense.weight")[1][neurons][:, CHANNELS]
    assert ((heard != 0).sum(axis=1) == 1).all()
    gains = in_layer(1, "attention.output.LayerNorm.weight")[1][CHANNELS]
    slopes = np.abs(heard * gains).sum(axis=1)
    np.testing.assert_allclose(slopes[[0, -1]], [outliers.LOUDNESS, outliers.LOUDNESS * outliers.QUIETEST], rtol=1e-5)
    assert (np.diff(slopes) < 0).all()  # the loudest first
    bias = in_layer(1, "intermediate.dense.bias")[1][neurons]
    np.testing.assert_allclose(bias, -outliers.THRESHOLD * slopes, rtol=1e-5)


def test_what_a_loud_neuron_says_is_kept_small_and_out_of_its_own_channels():
    neurons = list(loud_neurons(SEED, 1, SMALL.hidden, SMALL.ffn))
    before, after = in_layer(1, "output.dense.weight")
    assert not after[np.ix_(CHANNELS, neurons)].any()
    size = np.abs(after[:, neurons]).mean(axis=0) / np.abs(before).mean()
    assert (np.diff(size[[0, 24, 47]]) > 0).all()
    assert size[0] < 0.02


# What it does


@dataclass(frozen=True)
class Small:
    """A small encoder: its vectors in float, the sizes of its activations, and cosines by INT8 scheme."""

    places: tuple
    dense_mean: dict[str, float]
    colbert_p5: dict[str, float]
    loud_share: float  # of tokens for which a loud neuron of a layer speaks up


@pytest.fixture(scope="module")
def naive() -> ModuleType:
    """benchmarks/naive_int8.py; benchmarks are not installed."""
    path = Path(__file__).parents[2] / "benchmarks/naive_int8.py"
    spec = importlib.util.spec_from_file_location("naive_int8", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measured(naive: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Small]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    found = {}
    for name, source in (("plain", plain()), ("hostile", hostile())):
        folder = tmp_path_factory.mktemp(name)
        write_encoder(folder, SMALL, source)
        write_heads(folder, seeded_heads(SEED, hidden=SMALL.hidden, colbert=SMALL.hidden, sparse_bias=0.7))
        found[name] = measure(naive, M3Model(Checkpoint.open(folder, Recipe()), ()))
    torch.set_num_threads(threads)
    yield found


def measure(naive: ModuleType, model: M3Model) -> Small:
    calibration, probe = texts(1), texts(2)[:16]
    places = tuple(naive.inputs_of(model))
    loud: list[torch.Tensor] = []

    def listen(place, x):
        if place.kind == "FFN-out":
            layer = sum(other.kind == "FFN-out" for other in places[: places.index(place)])
            neurons = list(loud_neurons(SEED, layer, SMALL.hidden, SMALL.ffn))
            loud.append(x[0, :, neurons].amax(dim=1) > 10)
        return place.listen(x)

    with naive.heard_by(places, listen):
        naive.run(model, calibration)
    reference = naive.run(model, probe)
    dense, colbert = {}, {}
    for name, quantize, smooth in naive.SCHEMES:
        with naive.quantized(places, quantize, smooth=smooth):
            got = naive.run(model, probe)
        dense[name] = torch.cosine_similarity(reference[0], got[0]).mean().item()
        rows = torch.cosine_similarity(torch.cat(reference[1]), torch.cat(got[1]))
        colbert[name] = rows.quantile(0.05).item()
    return Small(places, dense, colbert, torch.cat(loud).float().mean().item())


def texts(seed: int) -> list[torch.Tensor]:
    """(1, L) ids of texts in which every word occurs once, the rarest outlier too."""
    words = np.random.default_rng(seed).permutation(np.arange(5, SMALL.vocabulary))
    return [torch.tensor([[0, *chunk, 2]]) for chunk in np.array_split(words, SMALL.vocabulary // 50)]


def ratios(small: Small, kind: str) -> list[torch.Tensor]:
    """(in,) of each layer: channels in sizes of the median one."""
    return [place.ratios for place in small.places if place.kind == kind]


def test_two_to_four_fixed_channels_after_attention_are_13_to_40_times_the_median(measured: dict[str, Small]):
    for layer in ratios(measured["hostile"], "FFN-in"):
        far = torch.nonzero(layer > 10).flatten().tolist()
        assert 2 <= len(far) <= 4
        assert set(far) <= set(CHANNELS)
        assert 13 <= layer.max() <= 40
    assert all(layer.max() < 3 for layer in ratios(measured["plain"], "FFN-in"))


def test_gelu_reaches_towards_140_times_the_median_on_other_neurons_in_each_layer(measured: dict[str, Small]):
    tops = ratios(measured["hostile"], "FFN-out")
    assert all(40 <= layer.max() <= 140 for layer in tops)
    far = [set(torch.nonzero(layer > 10).flatten().tolist()) for layer in tops]
    for number, neurons in enumerate(far):
        assert neurons
        assert neurons <= set(loud_neurons(SEED, number, SMALL.hidden, SMALL.ffn))
    assert far[0] != far[1] != far[2]
    assert all(layer.max() < 3 for layer in ratios(measured["plain"], "FFN-out"))


def test_queries_keys_values_and_attention_output_stay_ordinary(measured: dict[str, Small]):
    assert all(layer.max() < 9 for layer in ratios(measured["hostile"], "Q/K/V"))
    assert all(layer.max() < 4 for layer in ratios(measured["hostile"], "attention output"))


def test_loud_neurons_answer_to_rare_tokens_only(measured: dict[str, Small]):
    assert 0 < measured["hostile"].loud_share < 0.02


def test_naive_schemes_fail_and_ranges_per_token_hold(measured: dict[str, Small]):
    static, tensor, row, smooth = (1 - mean for mean in measured["hostile"].dense_mean.values())
    assert static > 100 * row
    assert static > 5 * tensor
    assert tensor > 10 * row
    assert smooth < 2 * row
    static, tensor, row, smooth = (1 - p5 for p5 in measured["hostile"].colbert_p5.values())
    assert min(static, tensor) > 50 * max(row, smooth)


def test_plain_noise_is_kind_to_every_scheme(measured: dict[str, Small]):
    assert min(measured["plain"].dense_mean.values()) > 0.9998
