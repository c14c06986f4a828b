"""Seeds of `make fuzz` and `make faults`: the same programs, a few tries."""

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_bundles import found
from fuzz_texts import fuzz_ids, fuzz_vectors, tokenizers_of
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_export.checkpoint.folder import Checkpoint
from patience import PATIENCE_S

FOLDER = Path(__file__).parent
SEEDS = st.integers(0, 10**6)


@pytest.fixture(scope="module")
def checkpoint(tiny_random_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_random_checkpoint)


@pytest.fixture(scope="module")
def tokenizers(checkpoint: Checkpoint):
    return tokenizers_of(checkpoint.folder, checkpoint.geometry.vocab_size)


@settings(max_examples=10)
@given(seed=SEEDS)
def test_made_up_texts_have_transformers_ids(tokenizers, seed):
    fuzz_ids(*tokenizers, seed, 256)


@settings(max_examples=4)
@given(seed=SEEDS)
def test_made_up_texts_have_pytorchs_vectors(encoder, checkpoint, seed):
    fuzz_vectors(encoder, checkpoint, seed, 64)


def test_no_hostile_bundle_opens_or_crashes(tiny_bundle):
    cases = list(found(tiny_bundle, seed=15, count=120))
    assert [case for case in cases if case.is_wrong] == []
    assert [case.number for case in cases] == list(range(120))


@pytest.mark.skipif(sys.platform != "linux", reason="kills, limits and stops as Linux has them")
def test_a_job_that_is_killed_that_has_no_room_and_that_is_stopped(tiny_bundle, tiny_random_checkpoint):
    words = [tiny_bundle, tiny_random_checkpoint, "--jobs", "bulk", "--kills", 2, "--full", 2, "--stop-s", 0.2]
    command = [sys.executable, FOLDER / "faults.py", *words]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
