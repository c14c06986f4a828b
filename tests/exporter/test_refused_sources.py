"""Folders that are no finished checkpoint: refused by name with the remedy, or warned of before parity is measured."""

import json
import re
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from export_command import FEW, export

from m3_export.checkpoint.folder import Checkpoint
from m3_export.checkpoint.source import resolve
from m3_export.errors import CheckpointError, SourceError
from m3_export.verify.parity import Outputs
from m3_export.verify.reference import silent_heads
from m3_runtime.bundle.manifest import Head, Pooling

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4665\nsize 2271064456\n"


@pytest.fixture
def folder(tiny_random_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_random_checkpoint, tmp_path / "mine"))


def refusal(folder: Path) -> str:
    """What the command says; it is over before the reference runs."""
    done = export(folder, "--quiet", *FEW, folder.parent / "out")
    assert done.code == 2, done.stderr
    assert not done.out.exists()
    return done.stderr


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("is_alone", [False, True])
def test_an_adapter_is_refused_beside_full_weights_too(folder: Path, name: str, is_alone: bool):
    if is_alone:
        for path in folder.iterdir():
            path.unlink()
    (folder / name).write_text("{}")
    message = refusal(folder)
    assert name in message and "merge_and_unload" in message
    if not is_alone:
        with pytest.raises(CheckpointError, match="merge_and_unload"):
            Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("global_step500", "zero_to_fp32.py"),
        ("zero_to_fp32.py", "zero_to_fp32.py"),
        ("mp_rank_00_model_states.pt", "zero_to_fp32.py"),
        ("pytorch_model_fsdp_0", "accelerate merge-weights"),
    ],
)
@pytest.mark.parametrize("has_config", [False, True])
def test_shards_of_training_are_refused_with_the_command_that_merges_them(
    folder: Path, name: str, remedy: str, has_config: bool
):
    (folder / name).mkdir()
    assert Checkpoint.open(folder)  # beside plain weights they do not matter
    (folder / "model.safetensors").unlink()
    if not has_config:
        (folder / "config.json").unlink()
    message = refusal(folder)
    assert name in message and remedy in message


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "sparse_linear.pt", "colbert_linear.pt", "tokenizer.json", "config.json"],
)
def test_git_lfs_pointers_are_named(folder: Path, name: str):
    (folder / name).write_text(POINTER)
    message = refusal(folder)
    assert f"{name}: a Git-LFS pointer" in message and "git lfs pull" in message


def test_pointers_that_are_not_read_do_not_matter(folder: Path):
    (folder / "pytorch_model.bin").write_text(POINTER)
    assert Checkpoint.open(folder)
    (folder / "sparse_linear.pt").write_text(POINTER)
    assert Checkpoint.open(folder, heads=(Head.DENSE,))


@pytest.mark.parametrize("name", ["sparse_linear.pt", "pytorch_model.bin"])
def test_no_message_advises_to_load_code(folder: Path, tmp_path: Path, name: str):
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    marker = tmp_path / "marker"
    for content in (WritesMarker(marker), b"no pickle at all", torch.nn.Linear(2, 1)):
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            torch.save(content, folder / name)
        message = refusal(folder)
        assert name in message and "refused (" in message and "refused ()" not in message
        assert "weights_only" not in message and "torch.load" not in message
    (folder / name).write_bytes(b"")
    assert "refused (it is empty or cut off)" in refusal(folder)
    assert not marker.exists()


class WritesMarker:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.marker, "ran")


# The hub's cache


def cached(tiny_random_checkpoint: Path, tmp_path: Path, *commits: str) -> Path:
    repo = tmp_path / "hub" / "models--BAAI--bge-m3"
    for commit in commits:
        shutil.copytree(tiny_random_checkpoint, repo / "snapshots" / commit)
    return repo


def test_a_folder_of_the_hubs_cache_is_its_snapshot(tiny_random_checkpoint: Path, tmp_path: Path):
    repo = cached(tiny_random_checkpoint, tmp_path, "abc")
    found = resolve(str(repo), tmp_path, revision=None, progress=print)
    assert (found.name, found.folder, found.revision) == ("BAAI/bge-m3", repo / "snapshots" / "abc", "abc")
    cached(tiny_random_checkpoint, tmp_path, "def")
    with pytest.raises(SourceError, match="it has abc, def; give one of them"):
        resolve(str(repo), tmp_path, revision=None, progress=print)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("def")
    assert resolve(str(repo), tmp_path, revision=None, progress=print).revision == "def"
    (repo / "refs" / "main").write_bytes(b"\xff")
    with pytest.raises(SourceError, match="it has abc, def; give one of them"):
        resolve(str(repo), tmp_path, revision=None, progress=print)


def test_a_snapshot_of_links_is_read_and_named_by_its_repository(tiny_random_checkpoint: Path, tmp_path: Path):
    repo = cached(tiny_random_checkpoint, tmp_path, "abc")
    (repo / "blobs").mkdir()
    for number, path in enumerate(sorted((repo / "snapshots" / "abc").iterdir())):
        path.rename(repo / "blobs" / str(number))
        path.symlink_to(f"../../blobs/{number}")
    found = resolve(str(repo / "snapshots" / "abc"), tmp_path, revision=None, progress=print)
    assert (found.name, found.revision) == ("BAAI/bge-m3", "abc")
    checkpoint, plain = (Checkpoint.open(each) for each in (found.folder, tiny_random_checkpoint))
    assert checkpoint.weights_sha256() == plain.weights_sha256() and checkpoint.files() == plain.files()
    (repo / "blobs" / "0").unlink()
    with pytest.raises(CheckpointError, match="which is not there; download the checkpoint again"):
        Checkpoint.open(resolve(str(repo), tmp_path, revision=None, progress=print).folder)
    plain_folder = Path(shutil.copytree(tiny_random_checkpoint, tmp_path / "snapshots" / "step-500"))
    assert resolve(str(plain_folder), tmp_path, revision=None, progress=print).revision is None


def test_the_cache_itself_and_an_empty_one_are_refused_with_what_to_give(tiny_random_checkpoint: Path, tmp_path: Path):
    repo = cached(tiny_random_checkpoint, tmp_path, "abc")
    with pytest.raises(SourceError, match=f"did you mean {repo}"):
        resolve(str(repo.parent), tmp_path, revision=None, progress=print)
    with pytest.raises(SourceError, match=f"did you mean {repo / 'snapshots' / 'abc'}"):
        resolve(str(repo / "snapshots"), tmp_path, revision=None, progress=print)
    shutil.rmtree(repo / "snapshots" / "abc")
    with pytest.raises(SourceError, match="it has none"):
        resolve(str(repo), tmp_path, revision=None, progress=print)


# Merged encoders


def test_a_merge_by_lm_cocktail_needs_heads_and_is_then_read(folder: Path, tiny_random_checkpoint: Path):
    """Its mix_models: transformers' AutoModel of each, weights added up, saved, then sentence-transformers' files."""
    models = [transformers.AutoModel.from_pretrained(str(tiny_random_checkpoint)) for _ in range(2)]
    with torch.no_grad():
        for tuned, base in zip(*(model.parameters() for model in models), strict=True):
            tuned.mul_(3)
            base.copy_(0.5 * base + 0.5 * tuned)
    for path in folder.iterdir():
        path.unlink()
    models[1].save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(str(tiny_random_checkpoint)).save_pretrained(folder)
    say_pooling(folder, "cls", normalize=True)
    message = refusal(folder)
    assert "sparse_linear.pt and colbert_linear.pt not found in mine" in message
    assert "LM_Cocktail" in message and "copy both files" in message and "--heads dense" in message
    assert Checkpoint.open(folder, heads=(Head.DENSE,)).pooling.pooling_from == "sentence-transformers files"
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        shutil.copy(tiny_random_checkpoint / name, folder)
    merged, plain = (Checkpoint.open(each) for each in (folder, tiny_random_checkpoint))
    assert merged.pooling.warning is None
    assert (merged.pooling.pooling, merged.pooling.normalize) == (plain.pooling.pooling, plain.pooling.normalize)
    assert all(torch.allclose(merged.encoder[name], 2 * tensor) for name, tensor in plain.encoder.items())


# Heads that say nothing


def write_head(folder: Path, name: str, *, weight: float, bias: float) -> None:
    state = torch.load(folder / name, weights_only=True)
    values = OrderedDict(weight=state["weight"] * weight, bias=torch.full_like(state["bias"], bias))
    torch.save(values, folder / name)


@pytest.mark.parametrize(
    ("name", "weight", "bias", "said"),
    [
        ("sparse_linear.pt", 0, -1, r"gives no weight to \d+ of \d+ probe texts"),
        ("sparse_linear.pt", 0, 1, "gives every token about the same weight, 1"),
        ("colbert_linear.pt", 0, 1, "the same row for every token"),
        ("colbert_linear.pt", 0, 0, "the same row for every token"),
    ],
)
def test_a_silent_head_is_refused_before_parity(folder: Path, name: str, weight: float, bias: float, said: str):
    write_head(folder, name, weight=weight, bias=bias)
    message = refusal(folder)
    assert "--allow-silent-head" in message and "--heads dense" in message
    assert re.search(said, message)


def test_heads_that_say_something_are_not_silent():
    generator = np.random.default_rng(0)
    ids = [np.array([0, 5, 6, 7, 2]), np.array([0, 8, 9, 2]), np.array([0, 2])]
    rows = [generator.normal(size=(len(row) - 1, 4)).astype(np.float32) for row in ids]
    dense = generator.normal(size=(3, 4)).astype(np.float32)
    outputs = Outputs(dense, [{5: 0.2, 7: 0.1}, {8: 0.3}, {}], rows)
    assert silent_heads(outputs, ids, {0, 1, 2, 3}) == {}
    same = Outputs(np.ones((3, 4), np.float32), outputs.lexical, rows)
    assert silent_heads(same, ids, {0, 1, 2, 3}).keys() == {Head.DENSE}
    assert silent_heads(Outputs(dense, None, None), ids, {0, 2}) == {}


# Pooling that contradicts the heads


def say_pooling(folder: Path, mode: str, *, normalize: bool = False) -> None:
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": kind} for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode}))


def test_mean_pooling_beside_heads_and_a_silent_head_on_purpose_are_warned_of(folder: Path):
    say_pooling(folder, "mean")
    write_head(folder, "sparse_linear.pt", weight=0, bias=-1)
    warned = export(folder, "--variants", "onnx-fp32", "--allow-silent-head", *FEW, folder.parent / "warned")
    assert warned.code == 0, warned.stderr
    for output in (warned.stdout, warned.stderr):
        assert "WARNING: sentence-transformers files say mean pooling" in output
        assert re.search(r"^(\[.*\] )?WARNING: .*gives no weight", output, re.MULTILINE)


def test_when_there_is_nothing_to_warn_of(folder: Path):
    def warning(**flags: object) -> str | None:
        return Checkpoint.open(folder, **flags).pooling.warning

    say_pooling(folder, "cls", normalize=True)
    assert warning() is None
    say_pooling(folder, "cls")
    assert "--normalize" in str(warning())
    assert warning(normalize=False) is None
    say_pooling(folder, "mean", normalize=True)
    assert "--pooling" in str(warning())
    assert warning(pooling=Pooling.CLS) is None
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        (folder / name).unlink()
    assert warning(heads=(Head.DENSE,)) is None
