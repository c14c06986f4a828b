"""What is a reranker's checkpoint, and what is refused: each with the item, what was expected, and the remedy."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from export_command import export, names
from safetensors.torch import load_file, save_file

from m3_export.checkpoint.folder import Checkpoint
from m3_export.errors import CheckpointError
from m3_runtime.bundle.manifest import Head

OUT_PROJ = "classifier.out_proj.weight"


@pytest.fixture
def folder(reranker_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(reranker_checkpoint, tmp_path / "reranker"))


def change_weights(folder: Path, **tensors: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}  # not in the file that is written
    weights |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, path, {"format": "pt"})


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_a_reranker_is_known_by_its_config_and_its_weights(folder: Path):
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.heads == (Head.SCORE,)
    assert (checkpoint.sparse, checkpoint.colbert, checkpoint.geometry.colbert_dim) == (None, None, None)
    assert (checkpoint.pooling.pooling_from, checkpoint.pooling.normalize) == ("classifier", False)
    digest = checkpoint.weights_sha256()
    change_config(folder, architectures=None, id2label=None)
    assert Checkpoint.open(folder).heads == (Head.SCORE,)
    change_weights(folder, classifier__dense__bias=torch.ones(64))
    assert Checkpoint.open(folder).weights_sha256() != digest


def test_an_encoder_is_none(tiny_random_checkpoint: Path):
    checkpoint = Checkpoint.open(tiny_random_checkpoint)
    assert checkpoint.classifier is None
    assert Head.SCORE not in checkpoint.heads


@pytest.mark.parametrize("name", ["sparse_linear.pt", "colbert_linear.pt"])
def test_heads_of_both_kinds_are_refused(folder: Path, tiny_random_checkpoint: Path, name: str):
    shutil.copy(tiny_random_checkpoint / name, folder)
    with pytest.raises(CheckpointError, match=f"heads of both kinds.*For a reranker move {name} elsewhere; for an enc"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("labels", [2, 3])
def test_two_labels_and_more_are_refused(folder: Path, labels: int):
    change_weights(folder, **{OUT_PROJ: torch.zeros(labels, 64), "classifier.out_proj.bias": torch.zeros(labels)})
    with pytest.raises(CheckpointError, match=f"the classifier has {labels} labels; .* train it with num_labels=1"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("values", [{"id2label": {"0": "no", "1": "yes"}}, {"num_labels": 3}], ids=str)
def test_labels_that_config_and_weights_do_not_agree_on(folder: Path, values: dict[str, object]):
    change_config(folder, **values)
    with pytest.raises(CheckpointError, match=rf"{next(iter(values))} is .* but the classifier has one label"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({OUT_PROJ: None}, "the weights lack 'classifier.out_proj.weight'"),
        ({"classifier.dense.weight": torch.zeros(64, 32)}, r"classifier.dense: weight has shape \(64, 32\)"),
        ({OUT_PROJ: torch.zeros(1, 32)}, r"classifier.out_proj: weight has shape \(1, 32\).* hidden_size 64"),
        ({OUT_PROJ: torch.full((1, 64), torch.nan)}, "out_proj.weight holds NaN or infinity"),
        ({OUT_PROJ: torch.zeros(64)}, "64 labels"),
        ({OUT_PROJ: torch.tensor(1.0)}, "0 labels"),
    ],
    ids=["missing", "narrow", "short", "nan", "flat", "scalar"],
)
def test_a_classifier_that_is_not_one(folder: Path, tensors: dict[str, torch.Tensor | None], said: str):
    change_weights(folder, **tensors)
    with pytest.raises(CheckpointError, match=said):
        Checkpoint.open(folder)


def test_a_config_of_an_encoder_over_a_rerankers_weights(folder: Path):
    change_config(folder, architectures=["XLMRobertaModel"])
    with pytest.raises(
        CheckpointError, match=r"config.json says XLMRobertaModel, but the weights hold .* For a reranker"
    ):
        Checkpoint.open(folder)


def test_prompts_of_a_reranker(folder: Path):
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({"prompts": {"query": ""}}))
    assert Checkpoint.open(folder).prompts.prompts == {}
    path.write_text(json.dumps({"prompts": {"query": "query: "}}))
    with pytest.raises(CheckpointError, match="a reranker's bundle has no prompts"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--heads", "dense"], "--heads is for encoders"),
        (["--heads", "dense,sparse,colbert"], "--heads is for encoders"),
        (["--pooling", "cls"], "--pooling is for encoders"),
        (["--normalize"], "--normalize is for encoders"),
        (["--no-normalize"], "--normalize is for encoders"),
        (["--budget", "dense_min=0.9"], "the budget of a reranker has no entry 'dense_min'"),
    ],
    ids=" ".join,
)
def test_options_of_encoders_are_refused(folder: Path, words: list[str], said: str):
    done = export(folder, "--quiet", *words, folder.parent / "bundle")
    assert done.code == 2 and said in done.stderr
    assert names(folder.parent) == {"reranker"}


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("mini-reranker", ["--languages", "zh"], "are for encoders; a reranker keeps every piece"),
        ("mini-reranker", ["--heads", "dense"], "--heads is for encoders"),
        ("mini-reranker", ["--budget", "dense_min=0.9"], "the budget of a reranker has no entry 'dense_min'"),
        ("mini-m3", ["--budget", "score_p99=0.1"], "the budget has no entry 'score_p99'"),
    ],
)
def test_a_named_model_of_another_kind_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: list[str], said: str
):
    monkeypatch.chdir(tmp_path)  # where no folder is called so
    done = export(name, *words, tmp_path / "bundle")
    assert done.code == 2 and said in done.stderr
    assert "checkpoint" not in done.stderr.replace("the checkpoint is a reranker", "")
    assert not names(tmp_path)


def test_options_of_rerankers_are_refused_for_an_encoder(tiny_random_checkpoint: Path, tmp_path: Path):
    done = export(tiny_random_checkpoint, "--quiet", "--budget", "score_p99=0.1", tmp_path / "bundle")
    assert done.code == 2 and "the budget has no entry 'score_p99'" in done.stderr
    assert not names(tmp_path)
