"""How the dense vector is pooled: flags, sentence-transformers files, FlagEmbedding's arguments, BGE-M3's own way."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from m3_export.checkpoint.folder import Checkpoint
from m3_export.checkpoint.pooling import TRAINING_ARGUMENTS, PoolingChoice, read_pooling
from m3_export.errors import CheckpointError
from m3_runtime.bundle.manifest import Pooling

FILES = "sentence-transformers files"
OLD = "sentence_transformers.models"
NEW = "sentence_transformers.sentence_transformer.modules"
MODES = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]


def write(
    folder: Path, config: Any, *, kinds: tuple[str, ...] = ("Transformer", "Pooling", "Normalize"), home: str = OLD
):
    """The files that sentence-transformers writes beside a model."""
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"{home}.{kind}"}
        for i, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(config))


def flags(*on: str) -> dict[str, Any]:
    """1_Pooling/config.json as older releases write it."""
    modes = {f"pooling_mode_{mode}": mode in on for mode in MODES}
    return {"word_embedding_dimension": 64, **modes, "include_prompt": True}


def refusal(folder: Path, pooling: Pooling | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_pooling(folder, pooling)
    return str(caught.value)


def test_without_files_it_is_bge_m3s_way(tmp_path: Path):
    assert read_pooling(tmp_path) == PoolingChoice(Pooling.CLS, "default", True, "default")


@pytest.mark.parametrize(
    ("mode", "pooling"),
    [("cls_token", Pooling.CLS), ("mean_tokens", Pooling.MEAN), ("lasttoken", Pooling.LAST_TOKEN)],
)
def test_flags_of_older_releases(tmp_path: Path, mode: str, pooling: Pooling):
    write(tmp_path, flags(mode))
    assert read_pooling(tmp_path) == PoolingChoice(pooling, FILES, True, FILES)


@pytest.mark.parametrize("home", [OLD, NEW])
@pytest.mark.parametrize(
    ("word", "pooling"), [("cls", Pooling.CLS), ("mean", Pooling.MEAN), ("lasttoken", Pooling.LAST_TOKEN)]
)
def test_the_word_of_newer_releases(tmp_path: Path, word: str, pooling: Pooling, home: str):
    write(tmp_path, {"embedding_dimension": 64, "pooling_mode": word, "include_prompt": True}, home=home)
    assert read_pooling(tmp_path) == PoolingChoice(pooling, FILES, True, FILES)


def test_no_normalize_module_means_not_normalised(tmp_path: Path):
    write(tmp_path, flags("mean_tokens"), kinds=("Transformer", "Pooling"))
    assert read_pooling(tmp_path) == PoolingChoice(Pooling.MEAN, FILES, False, FILES)


def test_flags_of_the_user_win_one_by_one(tmp_path: Path):
    write(tmp_path, flags("mean_tokens"))
    assert read_pooling(tmp_path, pooling=Pooling.CLS) == PoolingChoice(Pooling.CLS, "flag", True, FILES)
    assert read_pooling(tmp_path, normalize=False) == PoolingChoice(Pooling.MEAN, FILES, False, "flag")
    assert read_pooling(tmp_path, Pooling.LAST_TOKEN, normalize=False) == PoolingChoice(
        Pooling.LAST_TOKEN, "flag", False, "flag"
    )


@pytest.mark.parametrize(
    "config",
    [
        flags("max_tokens"),
        flags("cls_token", "max_tokens"),
        flags("cls_token", "mean_tokens"),
        flags(),
        {},
        {"pooling_mode": "max"},
        {"pooling_mode": "weightedmean"},
        {"pooling_mode": ["cls", "mean"]},
        {"pooling_mode": {"cls": True}},
        {**flags("cls_token"), "pooling_mode": "max"},
    ],
    ids=str,
)
def test_a_pooling_that_m3_does_not_have_is_refused_with_the_remedy(tmp_path: Path, config: dict):
    write(tmp_path, config)
    message = refusal(tmp_path)
    assert message.startswith("1_Pooling/config.json asks for pooling ")
    assert "--pooling" in message and "cls, mean, last_token" in message


def test_a_module_that_would_change_the_vector_is_refused(tmp_path: Path):
    write(tmp_path, flags("cls_token"), kinds=("Transformer", "Pooling", "Dense", "Normalize"))
    message = refusal(tmp_path)
    assert "modules.json has a Dense module" in message and "--pooling" in message and "--normalize" in message


def test_modules_without_pooling_are_refused(tmp_path: Path):
    write(tmp_path, flags("cls_token"), kinds=("Transformer", "Normalize"))
    message = refusal(tmp_path)
    assert "modules.json names no Pooling module" in message and "--pooling" in message


@pytest.mark.parametrize("text", ["", "{", "{}", "3"])
def test_modules_that_are_no_list_are_refused(tmp_path: Path, text: str):
    (tmp_path / "modules.json").write_text(text)
    message = refusal(tmp_path)
    assert message.startswith("modules.json: ") and "--pooling" in message


@pytest.mark.parametrize("text", [None, "", "[]"])
def test_a_pooling_config_that_is_missing_or_no_object_is_refused(tmp_path: Path, text: str | None):
    write(tmp_path, flags("cls_token"))
    config = tmp_path / "1_Pooling/config.json"
    config.unlink() if text is None else config.write_text(text)
    message = refusal(tmp_path)
    assert message.startswith("config.json: ") and "--pooling" in message


def test_both_flags_make_damaged_files_not_matter(tmp_path: Path):
    (tmp_path / "modules.json").write_text("{")
    assert read_pooling(tmp_path, Pooling.MEAN, normalize=True) == PoolingChoice(Pooling.MEAN, "flag", True, "flag")
    assert "modules.json" in refusal(tmp_path, Pooling.MEAN)


def test_a_checkpoint_carries_the_choice(tiny_random_checkpoint: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_random_checkpoint, tmp_path / "checkpoint"))
    assert Checkpoint.open(folder).pooling == PoolingChoice(Pooling.CLS, "default", True, "default")
    write(folder, flags("mean_tokens"))
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.pooling == PoolingChoice(Pooling.MEAN, FILES, True, FILES)
    assert {"modules.json", "1_Pooling/config.json"} <= {entry.path for entry in checkpoint.files()}


# FlagEmbedding's training arguments, which transformers' Trainer pickles beside the weights


def trained(folder: Path, **arguments: Any) -> Path:
    """A file as the Trainer saves it: an object of a class of the training's own."""
    torch.save(SimpleNamespace(output_dir="mean", seed=42, **arguments), folder / TRAINING_ARGUMENTS)
    return folder


@pytest.mark.parametrize("name", ["normalize_embeddings", "normlized"])
@pytest.mark.parametrize("is_normalized", [True, False])
@pytest.mark.parametrize("pooling", list(Pooling))
def test_what_flagembedding_trained_with(tmp_path: Path, pooling: Pooling, is_normalized: bool, name: str):
    trained(tmp_path, sentence_pooling_method=pooling.value, **{name: is_normalized})
    expected = PoolingChoice(pooling, TRAINING_ARGUMENTS, is_normalized, TRAINING_ARGUMENTS)
    assert read_pooling(tmp_path) == expected


def test_the_file_that_flagembedding_wrote():
    """FlagEmbedding 1.4.2's encoder_only.m3 with `--sentence_pooling_method mean --normalize_embeddings True`."""
    folder = Path(__file__).parents[1] / "golden" / "flagembedding_training"
    assert read_pooling(folder) == PoolingChoice(Pooling.MEAN, TRAINING_ARGUMENTS, True, TRAINING_ARGUMENTS)


def test_flags_and_sentence_transformers_files_win_over_training_arguments(tmp_path: Path):
    trained(tmp_path, sentence_pooling_method="mean", normalize_embeddings=False)
    assert read_pooling(tmp_path, Pooling.CLS) == PoolingChoice(Pooling.CLS, "flag", False, TRAINING_ARGUMENTS)
    write(tmp_path, flags("lasttoken"))
    assert read_pooling(tmp_path) == PoolingChoice(Pooling.LAST_TOKEN, FILES, True, FILES)


def test_arguments_of_other_training_say_nothing(tmp_path: Path):
    assert read_pooling(trained(tmp_path, normalize_embeddings=False)).pooling_from == "default"
    (tmp_path / TRAINING_ARGUMENTS).write_bytes(b"sentence_pooling_method mean")
    assert read_pooling(tmp_path).pooling_from == "default"


@pytest.mark.parametrize(("pooled", "is_normalized"), [("max", True), (None, True), ("mean", None), ("mean", "True")])
def test_training_arguments_of_unknown_meaning_are_refused(tmp_path: Path, pooled: object, is_normalized: object):
    trained(tmp_path, sentence_pooling_method=pooled, normalize_embeddings=is_normalized)
    message = refusal(tmp_path)
    assert message.startswith(f"{TRAINING_ARGUMENTS}: sentence_pooling_method is ") and "--pooling" in message
    assert read_pooling(tmp_path, Pooling.MEAN, normalize=True).pooling is Pooling.MEAN


def test_a_checkpoint_lists_the_training_arguments_that_it_follows(tiny_random_checkpoint: Path, tmp_path: Path):
    folder = trained(Path(shutil.copytree(tiny_random_checkpoint, tmp_path / "checkpoint")))
    assert TRAINING_ARGUMENTS not in {entry.path for entry in Checkpoint.open(folder).files()}
    checkpoint = Checkpoint.open(trained(folder, sentence_pooling_method="mean", normalize_embeddings=True))
    assert checkpoint.pooling.pooling is Pooling.MEAN
    assert TRAINING_ARGUMENTS in {entry.path for entry in checkpoint.files()}


def test_training_arguments_that_cannot_be_read_are_not_guessed(tmp_path: Path):
    path = tmp_path / TRAINING_ARGUMENTS
    trained(tmp_path, sentence_pooling_method="mean", normalize_embeddings=True)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"version https://git-lfs.github.com/spec/v1\noid sha256:0"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=TRAINING_ARGUMENTS):
            read_pooling(tmp_path)
        assert read_pooling(tmp_path, Pooling.MEAN, normalize=True).pooling_from == "flag"
    path.unlink()
    path.symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="a link to nothing; say how to pool: m3-export --pooling"):
        read_pooling(tmp_path)


def test_heads_that_were_trained_without_normalization_are_warned_of(tmp_path: Path):
    trained(tmp_path, sentence_pooling_method="cls", normalize_embeddings=False)
    assert read_pooling(tmp_path).warning is None
    (tmp_path / "sparse_linear.pt").touch()
    assert "say --normalize, or --no-normalize" in str(read_pooling(tmp_path).warning)
    assert read_pooling(tmp_path, normalize=False).warning is None
