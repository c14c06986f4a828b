"""Environments of the peers, with requirements of ours: no network here."""

import subprocess
import zipfile
from pathlib import Path

import pytest

import m3_bench
from m3_bench.errors import PeerError
from m3_bench.peers import environments
from m3_bench.peers.environments import Peer, PeerSource, ensure_environment, requirement_of
from m3_bench.scenarios import NAMES
from m3_runtime.io.progress import Progress

QUIET = Progress(quiet=True)


@pytest.fixture
def requirements(tmp_path, monkeypatch):
    folder = tmp_path / "requirements"
    folder.mkdir()
    monkeypatch.setattr(environments, "REQUIREMENTS", folder)
    return folder / "bge-m3-lite.txt"


def test_an_environment_is_made_once_and_again_when_its_requirements_change(requirements, tmp_path):
    source = PeerSource(tmp_path / "peers", None)
    requirements.write_text("# nothing\n")
    python = ensure_environment(Peer.LITE, source, QUIET)
    found = subprocess.run([python, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(tmp_path / "peers" / "bge-m3-lite")

    assert not (python.parent / "pip").exists()  # ours did it

    kept = python.parents[1] / "kept"
    kept.touch()
    assert ensure_environment(Peer.LITE, source, QUIET) == python
    assert kept.exists()

    requirements.write_text("./no-such-package\n")
    with pytest.raises(PeerError, match="installing bge-m3-lite failed"):
        ensure_environment(Peer.LITE, source, QUIET)
    assert not kept.exists()
    assert not (python.parents[1] / "ready").exists()


def test_without_a_pip_of_ours_the_environment_brings_one(requirements, tmp_path, monkeypatch):
    requirements.write_text("# nothing\n")
    monkeypatch.setattr(environments.importlib.util, "find_spec", lambda name: None)
    python = ensure_environment(Peer.LITE, PeerSource(tmp_path / "peers", None), QUIET)
    assert (python.parent / "pip").exists()


def test_requirements_and_scenarios_are_files_of_the_package():
    """Whatever the wheel is built of, `m3-bench peers` runs from it."""
    package = Path(m3_bench.__file__).parent
    assert package in environments.REQUIREMENTS.parents
    assert {path.stem for path in (package / "scenarios").glob("*.toml")} == set(NAMES)


def test_the_committed_requirements_pin_everything():
    for peer in Peer:
        lines = (environments.REQUIREMENTS / f"{peer}.txt").read_text().splitlines()
        assert [line for line in lines if not line.startswith("#") and "==" not in line] == []
    assert "bge-m3-lite[quant]==0.6.2" in (environments.REQUIREMENTS / "bge-m3-lite.txt").read_text()
    assert "FlagEmbedding==1.4.2" in (environments.REQUIREMENTS / "flagembedding.txt").read_text()


def test_a_release_is_read_off_the_requirements(tmp_path):
    assert requirement_of(Peer.LLAMA_CPP, "llama_cpp_python") == "llama_cpp_python==0.3.36"
    with pytest.raises(PeerError, match="do not pin llama"):
        requirement_of(Peer.LLAMA_CPP, "llama")


def test_the_build_of_torch_can_be_chosen(requirements, tmp_path):
    """By pip's own words: here a folder with a wheel of that name, and no index."""
    requirements.write_text("torch==2.13.0\n")
    with zipfile.ZipFile(tmp_path / "torch-2.13.0-py3-none-any.whl", "w") as wheel:
        info = "torch-2.13.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    chosen = ("torch==2.13.0", "--no-index", "--find-links", str(tmp_path))
    python = ensure_environment(Peer.LITE, PeerSource(tmp_path / "peers", chosen), QUIET)
    assert list(python.parents[1].glob("lib/*/site-packages/torch-2.13.0.dist-info"))
