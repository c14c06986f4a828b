"""Real parts, built once per session: two checkpoints, and the bundles that the command makes of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

import m3_models

# A red build must be red again when it is run again; at a desk every run tries other examples.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def run_export(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run m3-export in a process of its own, as a user does."""
    command = [sys.executable, "-m", "m3_export", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="session")
def mini_m3_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mini-m3's checkpoint folder: real weights, mean pooling."""
    folder = tmp_path_factory.mktemp("checkpoints") / "mini-m3"
    m3_models.write_checkpoint("mini-m3", folder)
    return folder


@pytest.fixture(scope="session")
def tiny_random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-random's checkpoint folder: CLS pooling, C ≠ H."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-random"
    m3_models.write_checkpoint("tiny-random", folder)
    return folder


@pytest.fixture(scope="session")
def mini_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mini-m3 with all three variants."""
    return _exported(tmp_path_factory, "mini-m3")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-random with all three variants."""
    return _exported(tmp_path_factory, "tiny-random")


def _exported(tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    out = tmp_path_factory.mktemp("bundles") / name
    done = run_export(name, out)
    assert done.returncode == 0, done.stderr
    return out
