"""Environments of the peers, with requirements of ours: no network here."""

import importlib.util
import subprocess
import zipfile
from pathlib import Path

import pytest

import m3_bench
from m3_bench.errors import PeerError
from m3_bench.peers.environments import Peer, PeerSource, environment_of
from m3_bench.scenarios import NAMES
from m3_runtime.io.progress import Progress

QUIET = Progress(quiet=True)


def made(folder: Path, requirements: str, torch: tuple[str, ...] | None = None) -> Path:
    """The Python of an environment called "peer"."""
    (folder / "peer.txt").write_text(requirements)
    return environment_of("peer", folder / "peer.txt", PeerSource(folder / "peers", torch), QUIET)


def test_an_environment_is_made_once_and_again_when_its_requirements_change(tmp_path):
    python = made(tmp_path, "# nothing\n")
    found = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(tmp_path / "peers" / "peer")

    assert not (python.parent / "pip").exists()  # ours did it

    kept = python.parents[1] / "kept"
    kept.touch()
    assert made(tmp_path, "# nothing\n") == python
    assert kept.exists()

    with pytest.raises(PeerError, match="installing peer failed"):
        made(tmp_path, "./no-such-package\n")
    assert not kept.exists()
    assert not (python.parents[1] / "ready").exists()


def test_without_a_pip_of_ours_the_environment_brings_one(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert (made(tmp_path, "# nothing\n").parent / "pip").exists()


def test_requirements_and_scenarios_are_files_of_the_package():
    """Whatever the wheel is built of, `m3-bench peers` runs from it."""
    package = Path(m3_bench.__file__).parent
    assert all(package in peer.requirements.parents for peer in Peer)
    assert {path.stem for path in (package / "scenarios").glob("*.toml")} == set(NAMES)


def test_the_committed_requirements_pin_everything():
    for peer in Peer:
        lines = peer.requirements.read_text().splitlines()
        assert [line for line in lines if not line.startswith("#") and "==" not in line] == []
    assert "bge-m3-lite[quant]==0.6.2" in Peer.LITE.requirements.read_text()
    assert "FlagEmbedding==1.4.2" in Peer.FLAGEMBEDDING.requirements.read_text()


def test_the_build_of_torch_can_be_chosen(tmp_path):
    """By pip's own words: here a folder with a wheel of that name, and no index."""
    with zipfile.ZipFile(tmp_path / "torch-2.13.0-py3-none-any.whl", "w") as wheel:
        info = "torch-2.13.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    chosen = ("torch==2.13.0", "--no-index", "--find-links", str(tmp_path))
    python = made(tmp_path, "torch==2.13.0\n", chosen)
    assert list(python.parents[1].glob("lib/*/site-packages/torch-2.13.0.dist-info"))
