"""The geometry of BGE-M3 and the random weights for it; the 2.3 GB themselves are not written in tests."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from m3_models import synthetic, write_checkpoint
from m3_models.checkpoint_files import Geometry, config_json, write_safetensors
from m3_models.seeded_weights import SEED, Spread, seeded_heads, seeded_tensors
from m3_models.synthetic import BGE_M3_GEOMETRY, Planting

CLASSIFIER = ("dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias")

SPREAD = Spread(word=1.0, weight=0.02, bias=0.02, gain=0.1)


def test_geometry_is_that_of_bge_m3() -> None:
    config = config_json(BGE_M3_GEOMETRY)
    assert config["hidden_size"] == 1024
    assert config["num_hidden_layers"] == 24
    assert config["max_position_embeddings"] == 8194
    assert config["vocab_size"] == 250002
    assert config["layer_norm_eps"] == 1e-5
    assert BGE_M3_GEOMETRY.max_tokens == 8192
    parameters = sum(math.prod(shape) for shape in BGE_M3_GEOMETRY.tensor_shapes().values())
    assert 566e6 < parameters < 569e6


def test_the_checkpoint_written_has_what_is_planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thin = Geometry(hidden=16, layers=1, heads=2, ffn=64, vocabulary=250002, positions=10, epsilon=1e-5)
    monkeypatch.setattr(synthetic, "BGE_M3_GEOMETRY", thin)  # 2.3 GB otherwise
    write_checkpoint("synthetic-xlmr-large", tmp_path / "thin")
    encoder = load_file(tmp_path / "thin/model.safetensors")
    gains = encoder["encoder.layer.0.attention.output.LayerNorm.weight"]
    planting = Planting.of(SEED, 0, thin)
    assert sorted(np.flatnonzero(gains > 2)) == sorted(planting.outliers)
    sparse = torch.load(tmp_path / "thin/sparse_linear.pt", weights_only=True)
    assert sparse["weight"].argmax() == planting.lexical


def test_the_reranker_is_the_same_encoder_with_a_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thin = Geometry(hidden=16, layers=1, heads=2, ffn=64, vocabulary=250002, positions=10, epsilon=1e-5)
    monkeypatch.setattr(synthetic, "BGE_M3_GEOMETRY", thin)
    write_checkpoint("synthetic-reranker-large", tmp_path / "thin")
    found = load_file(tmp_path / "thin/model.safetensors")
    encoder = {f"roberta.{name}" for name in thin.tensor_shapes()}
    assert found.keys() - encoder == {f"classifier.{part}" for part in CLASSIFIER}
    gains = found["roberta.encoder.layer.0.attention.output.LayerNorm.weight"]
    assert sorted(np.flatnonzero(gains > 2)) == sorted(Planting.of(SEED, 0, thin).outliers)


def test_each_tensor_has_its_own_stream_whatever_the_order() -> None:
    first, second = seeded_tensors(1, SPREAD), seeded_tensors(1, SPREAD)
    a, b = first("x.weight", (4, 8)), first("y.weight", (4, 8))
    np.testing.assert_array_equal(b, second("y.weight", (4, 8)))
    np.testing.assert_array_equal(a, second("x.weight", (4, 8)))
    assert not np.array_equal(a, b)
    assert not np.array_equal(a, seeded_tensors(2, SPREAD)("x.weight", (4, 8)))


def test_values_by_kind() -> None:
    source = seeded_tensors(1, SPREAD)
    assert abs(source("a.LayerNorm.weight", (4096,)).mean() - 1) < 0.02
    assert 0.01 < source("a.LayerNorm.bias", (4096,)).std() < 0.03
    assert 0.01 < source("a.dense.weight", (64, 64)).std() < 0.03
    words = source("embeddings.word_embeddings.weight", (64, 64))
    assert not words[1].any()
    assert words[0].any()


def test_heads_have_the_widths_asked_for() -> None:
    heads = seeded_heads(1, hidden=16, colbert=6, sparse_bias=0.1)
    assert (heads.sparse.weight.shape, heads.sparse.bias.shape) == ((1, 16), (1,))
    assert (heads.colbert.weight.shape, heads.colbert.bias.shape) == ((6, 16), (6,))
    assert all(part.dtype == np.float32 for part in (heads.sparse.weight, heads.colbert.bias))


def test_streamed_file_is_read_by_the_library(tmp_path: Path) -> None:
    shapes = {"a": (3, 5), "b": (7,), "c": (1, 1)}
    source = seeded_tensors(3, SPREAD)
    write_safetensors(tmp_path / "m.safetensors", shapes, source)
    read = load_file(tmp_path / "m.safetensors")
    assert {name: tensor.shape for name, tensor in read.items()} == shapes
    for name, shape in shapes.items():
        np.testing.assert_array_equal(read[name], source(name, shape))


def test_a_source_that_gives_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a: expected shape \(2,\), got \(3,\)"):
        write_safetensors(tmp_path / "m", {"a": (2,)}, lambda _name, _shape: np.zeros(3, np.float32))
