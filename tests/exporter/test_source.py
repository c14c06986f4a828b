"""SOURCE: a folder, a name, or a hub id; for everything else the error says what would have been one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import m3_models
from m3_export.checkpoint.folder import Checkpoint
from m3_export.checkpoint.source import HUB_ID, Source, resolve
from m3_export.errors import CheckpointError, SourceError
from m3_runtime.errors import ExtraNotInstalledError


def found(source: str | Path, scratch: Path, progress: Callable[[str], None] = lambda _: None) -> Source:
    return resolve(str(source), scratch, revision=None, progress=progress)


def refusal(source: str | Path, scratch: Path) -> str:
    with pytest.raises(SourceError) as caught:
        found(source, scratch)
    return str(caught.value)


def test_a_folder_is_taken_as_it_is(tiny_random_checkpoint: Path, tmp_path: Path):
    assert found(tiny_random_checkpoint, tmp_path) == Source("tiny-random", tiny_random_checkpoint, None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_known_by_its_name_not_its_path(
    tiny_random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tiny_random_checkpoint)
    assert found(".", tmp_path).name == "tiny-random"
    assert found("../tiny-random/", tmp_path).name == "tiny-random"
    monkeypatch.setenv("HOME", str(tiny_random_checkpoint.parent))
    assert found("~/tiny-random", tmp_path) == Source("tiny-random", tiny_random_checkpoint, None)


def test_a_model_of_ours_keeps_its_name_and_others_have_their_folders(tiny_random_checkpoint: Path, tmp_path: Path):
    moved = Path(shutil.copytree(tiny_random_checkpoint, tmp_path / "ckpt"))
    assert found(moved, tmp_path / "scratch") == Source("tiny-random", moved, None)
    config = json.loads((moved / "config.json").read_text())
    for base in ("BAAI/bge-m3", "", None, 7):  # what it was fine-tuned from is not what it is
        (moved / "config.json").write_text(json.dumps(config | {"_name_or_path": base}))
        assert found(moved, tmp_path / "scratch").name == "ckpt"


def test_a_name_is_built_in_the_scratch_folder(tmp_path: Path):
    said: list[str] = []
    source = found("tiny-random", tmp_path, said.append)
    assert source == Source("tiny-random", tmp_path / "tiny-random", None)
    assert (source.folder / "config.json").is_file()
    assert any("tiny-random" in line for line in said)


def test_a_folder_wins_over_a_name(tiny_random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(tiny_random_checkpoint, tmp_path / "mini-m3")
    monkeypatch.chdir(tmp_path)
    assert found("mini-m3", tmp_path / "scratch").folder == Path("mini-m3")
    assert not (tmp_path / "scratch").exists()


def test_a_training_folder_points_at_its_newest_checkpoint(tiny_random_checkpoint: Path, tmp_path: Path):
    run = tmp_path / "run"
    for step in ("checkpoint-90", "checkpoint-1000", "checkpoint-200"):
        shutil.copytree(tiny_random_checkpoint, run / step)
    (run / "checkpoint-2000").mkdir()  # no config.json: not finished
    message = refusal(run, tmp_path)
    assert f"{run} holds no config.json" in message
    assert message.endswith(f"did you mean {run / 'checkpoint-1000'}?")
    assert found(run / "checkpoint-1000", tmp_path).folder == run / "checkpoint-1000"


def test_an_empty_folder_is_refused_with_what_makes_a_checkpoint(tmp_path: Path):
    assert refusal(tmp_path, tmp_path) == f"{tmp_path} holds no config.json; a checkpoint folder has config.json"


def test_a_folder_that_hides_a_model_of_its_name_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini-m3").mkdir()
    assert refusal("mini-m3", tmp_path).endswith(
        "A folder goes before the model of its name: run this elsewhere to have mini-m3 built"
    )


def test_a_bundle_is_no_checkpoint(tiny_bundle: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match=rf"^{tiny_bundle.name} is a bundle; expected the checkpoint"):
        Checkpoint.open(found(tiny_bundle, tmp_path).folder)


class WritesMarker:
    """Unpickled by pickle itself, this writes a file: the proof that code has run."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.marker, "ran")


def test_what_a_training_run_leaves_beside_the_model_is_ignored(tiny_random_checkpoint: Path, tmp_path: Path):
    step, marker = tmp_path / "checkpoint-500", tmp_path / "marker"
    shutil.copytree(tiny_random_checkpoint, step)
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save(WritesMarker(marker), step / name)
    (step / "trainer_state.json").write_text("{")
    checkpoint = Checkpoint.open(found(step, tmp_path).folder)
    plain = Checkpoint.open(tiny_random_checkpoint)
    assert checkpoint.weights_sha256() == plain.weights_sha256()
    assert checkpoint.files() == plain.files()
    assert not marker.exists()


@pytest.mark.parametrize(
    "source", ["tiny", "Mini-M3", "./mini-m3", "no/such/folder", "/no/such", "../nothing", "a b/c", "a/"]
)
def test_what_is_none_of_the_three_is_refused_with_all_three(source: str, tmp_path: Path):
    message = refusal(source, tmp_path)
    assert message.startswith(f"SOURCE {source!r} is not a folder")
    assert all(name in message for name in m3_models.names())
    assert "hub id of the form owner/name" in message


def test_a_file_is_not_a_folder(tiny_random_checkpoint: Path, tmp_path: Path):
    assert "is a file, not a folder" in refusal(tiny_random_checkpoint / "model.safetensors", tmp_path)


@pytest.mark.parametrize(
    ("source", "is_id"),
    [
        ("BAAI/bge-m3", True),
        ("me/my_model.v2-fp16", True),
        ("./folder", False),
        ("../folder", False),
        ("/folder", False),
        ("bge-m3", False),
        ("a/b/c", False),
        ("https://huggingface.co/BAAI/bge-m3", False),
    ],
)
def test_hub_ids_are_told_from_paths(source: str, is_id: bool):
    assert bool(HUB_ID.fullmatch(source)) is is_id


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)  # how Python says "not installed"
    with pytest.raises(ExtraNotInstalledError) as caught:
        found("tiny-random", tmp_path)
    message = str(caught.value)
    assert "'torch'" in message and 'pip install "m3-runtime[export]"' in message
    assert list(tmp_path.iterdir()) == []
