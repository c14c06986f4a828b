"""Activation statistics, against the plain arithmetic."""

import numpy as np
import torch
from test_graph import UNUSED, checkpoint_of, texts_of

from m3_export.calibration.statistics import (
    MOST_OUTLIERS,
    OUTLIER_FACTOR,
    colbert_moments,
    gather_statistics,
    outlier_neurons,
)
from m3_export.graph.model import M3Model
from m3_export.plan.plan import Kind, Projection


def test_means_are_of_all_tokens_in_graph_order():
    model = M3Model(checkpoint_of(), UNUSED)
    texts = texts_of(5, 12, 30)
    outputs: dict[object, list[np.ndarray]] = {model.embedding_norm: [], model.layers[0].attention_norm: []}
    hooks = [
        norm.register_forward_hook(lambda norm, _i, output: outputs[norm].append(output[0].numpy())) for norm in outputs
    ]
    with torch.inference_mode():
        for text in texts:
            model(torch.from_numpy(text)[None], torch.ones((1, len(text)), dtype=torch.int64))
    for hook in hooks:
        hook.remove()
    statistics = gather_statistics(model, texts, lambda rows: rows)
    assert len(statistics.means) == 5  # the embedding's, and two in each of two layers
    for got, seen in zip(statistics.means, outputs.values(), strict=False):
        np.testing.assert_allclose(got, np.concatenate(seen).mean(axis=0), atol=1e-6)


def test_no_token_is_outside_the_first_layers_range():
    model = M3Model(checkpoint_of(), UNUSED)
    with torch.no_grad():
        model.words[49, 3] = 90.0
    texts = [np.where(ids == 49, 48, ids) for ids in texts_of(12, 30)]
    statistics = gather_statistics(model, texts, lambda rows: rows)
    inputs, mean = statistics.inputs[Projection(0, Kind.QKV)], statistics.means[0]
    with torch.inference_mode():
        embedded = model.embedded(torch.tensor([[49]]))[0, 0].numpy() - mean
    assert inputs.highest[3] >= 0.99 * embedded[3] > 3 * inputs.rows[:, 3].max()  # at another position


def test_observing_leaves_no_trace():
    model = M3Model(checkpoint_of(), UNUSED)
    gather_statistics(model, texts_of(4), lambda rows: rows)
    assert not any(module._forward_hooks for module in model.modules())


def test_colbert_moments_are_of_natural_texts_alone():
    model = M3Model(checkpoint_of(), UNUSED)
    texts = texts_of(5, 12, 5, 30)  # of one length: the first and the third, which is degenerate with the last
    with torch.inference_mode():
        given = [
            model(torch.from_numpy(text)[None], torch.ones((1, len(text)), dtype=torch.int64))[2][0].numpy()
            for text in texts[:2]
        ]
    rows = np.concatenate(given).astype(np.float64)
    found = gather_statistics(model, texts, lambda batches: batches, natural=2).colbert_moments
    np.testing.assert_allclose(found, rows.T @ rows, atol=1e-4)
    run: list[list[int]] = []
    alone = colbert_moments(model, texts, lambda batches: run.extend(batches) or batches, natural=2)
    np.testing.assert_array_equal(alone, found)  # bit for bit: a digest of the axes is part of their space
    assert sorted(i for batch in run for i in batch) == [0, 1, 2]


def test_outlier_neurons_are_those_of_the_activations():
    model = M3Model(checkpoint_of(), UNUSED)
    with torch.no_grad():  # what one neuron of the first layer reads for one word, and little else
        word = torch.tensor([[0, 9, 2]])
        seen: list[torch.Tensor] = []
        hook = model.layers[0].attention_norm.register_forward_hook(lambda _m, _i, output: seen.append(output[0, 1]))
        model(word, torch.ones_like(word))
        hook.remove()
        model.layers[0].ffn_in.weight[:, 7] = 1000 * seen[0] / seen[0].norm() ** 2
        model.layers[0].ffn_in.bias[7] = -900
    texts = [word[0].numpy(), *texts_of(20, 31)]
    outputs: list[np.ndarray] = []
    hook = model.layers[0].gelu.register_forward_hook(lambda _m, _i, output: outputs.append(output[0].numpy()))
    statistics = gather_statistics(model, texts, lambda rows: rows)
    hook.remove()
    activations = np.concatenate(outputs)
    expected = np.flatnonzero(activations.max(axis=0) > OUTLIER_FACTOR * np.median(activations.max(axis=1)))
    assert expected.tolist() == list(statistics.outlier_neurons[0]) == [7]


def test_outliers_are_relative_to_the_median_token_and_bounded():
    of_token = np.array([1.0, 2.0, 3.0])
    assert outlier_neurons(np.array([OUTLIER_FACTOR * 2.0, 0.0]), of_token) == ()
    assert outlier_neurons(np.array([0.0, OUTLIER_FACTOR * 2.0 + 0.1]), of_token) == (1,)
    many = np.linspace(100, 200, 2 * MOST_OUTLIERS)
    assert outlier_neurons(many, of_token) == tuple(range(MOST_OUTLIERS, 2 * MOST_OUTLIERS))
