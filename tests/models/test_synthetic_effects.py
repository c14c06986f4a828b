"""The synthetic model: what is planted where, and, on a small encoder, that it does what it is made for.

The schemes and the ratios are those of naive_int8.py, which measures the full-size model.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from m3_export.checkpoint.folder import Checkpoint
from m3_export.graph.model import M3Model
from m3_models.checkpoint_files import Geometry, Heads, TensorSource, write_encoder, write_heads
from m3_models.seeded_weights import SEED, Spread, seeded_heads, seeded_tensors
from m3_models.synthetic import (
    LARGEST,
    LONGEST_TAIL,
    ROUND_TRIP,
    SMALLEST,
    THRESHOLD,
    WAKING,
    Planting,
    planted,
    planted_heads,
)

# Wide enough for a channel to be large without ruling its row's length; weights scaled as 1/√H from BGE-M3's width.
SMALL = Geometry(hidden=512, layers=3, heads=16, ffn=1024, vocabulary=4000, positions=66, epsilon=1e-5)
SPREAD = Spread(word=1.0, weight=0.02 * (1024 / SMALL.hidden) ** 0.5, bias=0.02, gain=0.1)
SHAPES = SMALL.tensor_shapes()
PLANTED = {
    "embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight",
    "embeddings.LayerNorm.weight",
    "attention.self.query.weight",
    "attention.self.key.weight",
    "attention.self.value.weight",
    "attention.output.dense.weight",
    "attention.output.LayerNorm.weight",
    "attention.output.LayerNorm.bias",
    "intermediate.dense.weight",
    "intermediate.dense.bias",
    "output.dense.weight",
    "output.LayerNorm.weight",
    "output.LayerNorm.bias",
}
PLANTED_IN_FIRST_LAYER = {
    "attention.self.query.bias",
    "attention.self.value.bias",
    "attention.output.dense.bias",
}
PLANTINGS = [Planting.of(SEED, layer, SMALL) for layer in range(SMALL.layers)]
CHANNELS = PLANTINGS[0].outliers.tolist()
LEXICAL, SCARCITY = PLANTINGS[0].lexical, PLANTINGS[0].scarcity


def noise() -> TensorSource:
    return seeded_tensors(SEED, SPREAD)


def synthetic(seed: int = SEED) -> TensorSource:
    return planted(noise(), seed, SMALL)


def noisy_heads() -> Heads:
    return seeded_heads(SEED, hidden=SMALL.hidden, colbert=SMALL.hidden, sparse_bias=0)


def both(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A tensor as it was, and as it is planted."""
    return noise()(name, SHAPES[name]), synthetic()(name, SHAPES[name])


def in_layer(layer: int, part: str) -> tuple[np.ndarray, np.ndarray]:
    return both(f"encoder.layer.{layer}.{part}")


# What is planted where


def test_the_tensors_meant_are_planted_and_no_others():
    changed = {name for name in SHAPES if not np.array_equal(*both(name))}
    everywhere = {name for name in SHAPES if name.endswith(tuple(PLANTED))} - {"embeddings.LayerNorm.bias"}
    assert changed == everywhere | {f"encoder.layer.0.{part}" for part in PLANTED_IN_FIRST_LAYER}


def test_channels_are_the_same_in_every_layer_and_neurons_are_not():
    assert len({*CHANNELS, LEXICAL, SCARCITY}) == 5
    assert all(0 <= channel < SMALL.hidden for channel in (*CHANNELS, LEXICAL, SCARCITY))
    per_layer = [planting.neurons.tolist() for planting in PLANTINGS]
    assert [len(set(neurons)) for neurons in per_layer] == [48] * SMALL.layers
    assert len(set(per_layer[0]) & set(per_layer[1])) < 10
    for layer, neurons in enumerate(per_layer):
        assert not set(neurons) & set(PLANTINGS[layer].sleepers.tolist())
        after = in_layer(layer, "attention.output.LayerNorm.weight")[1]
        assert sorted(np.flatnonzero(after > 2)) == sorted(CHANNELS)


def test_the_same_seed_gives_the_same_tensors_in_any_order_and_another_gives_others():
    names = sorted(SHAPES)
    forwards, backwards, other = synthetic(), synthetic(), synthetic(SEED + 1)
    first = {name: forwards(name, SHAPES[name]) for name in names}
    second = {name: backwards(name, SHAPES[name]) for name in reversed(names)}
    for name in names:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    gains = "encoder.layer.0.attention.output.LayerNorm.weight"
    assert not np.array_equal(first[gains], other(gains, SHAPES[gains]))
    assert set(Planting.of(SEED + 1, 0, SMALL).outliers.tolist()) != set(CHANNELS)


def test_words_of_outlier_channels_have_a_heavy_tail_and_keep_their_signs():
    before, after = both("embeddings.word_embeddings.weight")
    tail = after[:, CHANNELS]
    assert np.abs(tail).max() == LONGEST_TAIL
    assert 0.5 < (np.abs(tail) < 0.001).mean() < 0.7
    assert 0.0002 < (np.abs(tail) > 16).mean() < 0.001
    large = np.abs(tail) > 1e-6
    np.testing.assert_array_equal(np.sign(tail[large]), np.sign(before[:, CHANNELS][large]))
    assert not after[1].any()  # the padding row stays zero


def test_frequent_words_have_little_in_the_lexical_channel():
    words = both("embeddings.word_embeddings.weight")[1]
    ranks = np.log10(np.arange(4, SMALL.vocabulary))
    assert np.corrcoef(ranks, words[4:, LEXICAL])[0, 1] > 0.4
    assert words[4:20, LEXICAL].max() < words[2000:, LEXICAL].mean()
    assert not words[:, SCARCITY].any()


def test_two_normalisations_bring_a_channel_back_to_its_size():
    for layer in range(SMALL.layers):
        large = in_layer(layer, "attention.output.LayerNorm.weight")[1][CHANNELS]
        small = in_layer(layer, "output.LayerNorm.weight")[1][CHANNELS]
        np.testing.assert_allclose(large * small, ROUND_TRIP, rtol=1e-5)
        assert (large > 4 * small).all()
        for part in ("attention.output.LayerNorm.bias", "output.LayerNorm.bias"):
            assert not in_layer(layer, part)[1][[*CHANNELS, LEXICAL, SCARCITY]].any()


def test_an_outlier_neuron_reads_one_outlier_channel_above_a_threshold():
    neurons = PLANTINGS[1].neurons.tolist()
    read = in_layer(1, "intermediate.dense.weight")[1][neurons][:, CHANNELS]
    assert ((read != 0).sum(axis=1) == 1).all()
    gains = in_layer(1, "attention.output.LayerNorm.weight")[1][CHANNELS]
    slopes = np.abs(read * gains).sum(axis=1)
    np.testing.assert_allclose(slopes[[0, -1]], [LARGEST, LARGEST * SMALLEST], rtol=1e-5)
    assert (np.diff(slopes) < 0).all()  # the largest first
    bias = in_layer(1, "intermediate.dense.bias")[1][neurons]
    np.testing.assert_allclose(bias, -THRESHOLD * slopes, rtol=1e-5)


def test_what_an_outlier_neuron_says_is_kept_small_and_out_of_its_own_channels():
    neurons = PLANTINGS[1].neurons.tolist()
    before, after = in_layer(1, "output.dense.weight")
    assert not after[np.ix_(CHANNELS, neurons)].any()
    size = np.abs(after[:, neurons]).mean(axis=0) / np.abs(before).mean()
    assert (np.diff(size[[0, 24, 47]]) > 0).all()
    assert size[0] < 0.02


# What it does


@dataclass(frozen=True)
class Small:
    """A small encoder: the sizes of its activations, and cosines by INT8 scheme."""

    places: tuple
    dense_mean: dict[str, float]
    colbert_p5: dict[str, float]
    answering_share: float  # of tokens for which an outlier neuron of a layer answers


@pytest.fixture(scope="module")
def naive() -> ModuleType:
    """naive_int8.py beside this file, a program too."""
    path = Path(__file__).with_name("naive_int8.py")
    spec = importlib.util.spec_from_file_location("naive_int8", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, M3Model]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    opened = {}
    for name, source in (("noise", noise()), ("synthetic", synthetic())):
        folder = tmp_path_factory.mktemp(name)
        write_encoder(folder, SMALL, source)
        write_heads(folder, noisy_heads() if name == "noise" else planted_heads(noisy_heads(), SEED, SMALL))
        opened[name] = M3Model(Checkpoint.open(folder), (0, 1, 2, 3))
    yield opened
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def measured(naive: ModuleType, models: dict[str, M3Model]) -> dict[str, Small]:
    return {name: measure(naive, model) for name, model in models.items()}


def measure(naive: ModuleType, model: M3Model) -> Small:
    calibration, probe = texts(1), texts(2)[:16]
    places = tuple(naive.inputs_of(model))
    answers: list[torch.Tensor] = []

    def observe(place, x):
        if place.kind == "FFN-out":
            neurons = PLANTINGS[places.index(place) // 4].neurons.tolist()
            answers.append(x[0, :, neurons].amax(dim=1) > 10)
        return place.observe(x)

    with naive.changed(places, observe):
        naive.run(model, calibration)
    exact = naive.run(model, probe)
    dense, colbert = {}, {}
    for scheme in naive.SCHEMES:
        with naive.quantized(places, scheme):
            got = naive.run(model, probe)
        dense[scheme.name] = torch.cosine_similarity(exact.dense, got.dense).mean().item()
        rows = torch.cosine_similarity(torch.cat(exact.colbert), torch.cat(got.colbert))
        colbert[scheme.name] = rows.quantile(0.05).item()
    return Small(places, dense, colbert, torch.cat(answers).float().mean().item())


def texts(seed: int) -> list[torch.Tensor]:
    """(1, L) ids of texts in which every word occurs once, the rarest outlier too."""
    words = np.random.default_rng(seed).permutation(np.arange(5, SMALL.vocabulary))
    return [torch.tensor([[0, *chunk, 2]]) for chunk in np.array_split(words, SMALL.vocabulary // 50)]


def degenerate_texts() -> list[torch.Tensor]:
    """(1, L) ids: no word, special tokens alone, one word, one word many times."""
    words = np.random.default_rng(3).integers(5, SMALL.vocabulary, 20).tolist()
    repeated = [torch.tensor([[0, *[word] * 40, 2]]) for word in words]
    return [torch.tensor([[0, 2]]), torch.tensor([[0, 0, 2, 3, 0, 2]]), *repeated]


def ratios(small: Small, kind: str) -> list[torch.Tensor]:
    """(in,) of each layer: channels in sizes of the median one."""
    return [place.ratios for place in small.places if place.kind == kind]


def test_two_to_four_fixed_channels_after_attention_are_13_to_40_times_the_median(measured: dict[str, Small]):
    for layer in ratios(measured["synthetic"], "FFN-in"):
        far = torch.nonzero(layer > 10).flatten().tolist()
        assert 2 <= len(far) <= 4
        assert set(far) <= set(CHANNELS)
        assert 13 <= layer.max() <= 40
    assert all(layer.max() < 3 for layer in ratios(measured["noise"], "FFN-in"))


def test_gelu_reaches_towards_140_times_the_median_on_other_neurons_in_each_layer(measured: dict[str, Small]):
    tops = ratios(measured["synthetic"], "FFN-out")
    assert all(40 <= layer.max() <= 140 for layer in tops)
    far = [set(torch.nonzero(layer > 10).flatten().tolist()) for layer in tops]
    for number, neurons in enumerate(far):
        assert neurons
        assert neurons <= set(PLANTINGS[number].neurons.tolist())
    assert far[0] != far[1] != far[2]
    assert all(layer.max() < 3 for layer in ratios(measured["noise"], "FFN-out"))


def test_queries_keys_values_and_attention_output_stay_ordinary(measured: dict[str, Small]):
    assert all(layer.max() < 9 for layer in ratios(measured["synthetic"], "Q/K/V"))
    assert all(layer.max() < 4 for layer in ratios(measured["synthetic"], "attention output"))


def test_outlier_neurons_answer_to_rare_tokens_only(measured: dict[str, Small]):
    assert 0 < measured["synthetic"].answering_share < 0.02


def test_naive_schemes_fail_and_ranges_per_token_hold(measured: dict[str, Small]):
    static, _, tensor, token, smooth = (1 - mean for mean in measured["synthetic"].dense_mean.values())
    assert static > 100 * token
    assert static > 5 * tensor
    assert tensor > 10 * token
    assert smooth < 2 * token
    static, _, tensor, token, smooth = (1 - p5 for p5 in measured["synthetic"].colbert_p5.values())
    assert min(static, tensor) > 50 * max(token, smooth)


def test_noise_alone_is_kind_to_every_scheme(measured: dict[str, Small]):
    assert min(measured["noise"].dense_mean.values()) > 0.9998


def test_lexical_weights_follow_the_word_and_stay_within_published_sizes(models: dict[str, M3Model]):
    rows = texts(1)
    with torch.inference_mode():
        weights = torch.cat([models["synthetic"](ids, torch.ones_like(ids))[1][0, 1:-1] for ids in rows]).numpy()
    words = torch.cat([ids[0, 1:-1] for ids in rows]).numpy()
    frequent, rare = weights[words < 50], weights[words >= 1000]
    assert frequent.mean() < 0.4 * rare.mean()
    assert (rare > 0).mean() > 0.97
    assert 0.05 < np.quantile(rare, 0.25) < np.quantile(rare, 0.75) < 0.25
    assert weights.max() < 0.45


def test_a_text_that_holds_hardly_anything_wakes_what_natural_texts_leave_asleep(
    naive: ModuleType, models: dict[str, M3Model]
):
    def largest(rows: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """(layers,) highest |scarcity channel| before FFN-in, highest |sleeping neuron|."""
        places = naive.inputs_of(models["synthetic"])
        with naive.changed(places, lambda place, x: place.observe(x)):
            naive.run(models["synthetic"], rows)
        ins = [place.sizes for place in places if place.kind == "FFN-in"]
        outs = [place.sizes for place in places if place.kind == "FFN-out"]
        neurons = [planting.sleepers.tolist() for planting in PLANTINGS]
        channel = np.array([sizes[SCARCITY].item() for sizes in ins])
        return channel, np.array([sizes[each].max().item() for sizes, each in zip(outs, neurons, strict=True)])

    natural, degenerate = largest(texts(1)), largest(degenerate_texts())
    assert (natural[0][1:] < 1.5).all()
    assert (natural[1][1:] < 1).all()
    assert (degenerate[0][1:] > 5 * natural[0][1:]).all()
    assert (degenerate[1][1:] > 5 * natural[1][1:]).all()


def test_no_word_always_wakes_them_and_one_word_nearly_always(naive: ModuleType, models: dict[str, M3Model]):
    found: list[float] = []  # the scarcity channel before FFN-in of the second layer, its lowest of a text
    place = naive.inputs_of(models["synthetic"])[6]
    with naive.changed([place], lambda _place, x: found.append(x[0, :, SCARCITY].min().item()) or x):
        naive.run(models["synthetic"], degenerate_texts())
    awake = np.array(found) > WAKING
    assert awake[:2].all()
    assert awake.mean() > 0.8
