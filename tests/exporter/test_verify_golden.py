"""m3-export verify-golden: published numbers against a bundle's, on bundles that are and that are not the real one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from export_command import export

from m3_export.verify import golden
from m3_runtime import Bundle, M3Encoder
from m3_runtime.bundle.manifest import Head, Manifest


def as_if_real(bundle: Path, out: Path) -> Path:
    """A copy that says it is BAAI/bge-m3."""
    shutil.copytree(bundle, out)
    manifest = Bundle.open(out).manifest
    write(out, replace(manifest, source=replace(manifest.source, name="BAAI/bge-m3")))
    return out


def write(bundle: Path, manifest: Manifest) -> None:
    (bundle / "manifest.json").write_text(manifest.to_text(), encoding="utf-8")


def make_dense_only(bundle: Path) -> None:
    """As far as its manifest goes."""
    manifest = Bundle.open(bundle).manifest
    parity = {name: replace(one, sparse=None, colbert=None) for name, one in manifest.parity.items()}
    geometry = replace(manifest.geometry, colbert_dim=None)
    write(bundle, replace(manifest, heads=(Head.DENSE,), geometry=geometry, parity=parity))


def test_verify_golden_skips_another_model_with_the_reason(tiny_bundle: Path):
    done = export("verify-golden", tiny_bundle)
    assert (done.code, done.stderr) == (2, "")
    assert done.stdout.startswith("SKIPPED: the bundle is of 'tiny-random'; the published numbers are of BAAI/bge-m3's")
    assert "m3-export BAAI/bge-m3 OUT" in done.stdout
    done = export("verify-golden", "--json", tiny_bundle)
    assert done.code == 2
    result = json.loads(done.stdout)
    assert (result["failed"], result["checks"]) == (False, []) and "tiny-random" in result["skipped"]


@pytest.mark.parametrize(
    ("name", "is_it"), [("mini-m3", False), ("bge-m3", True), ("BAAI/bge-m3", True), ("bge-m3-v2", False)]
)
def test_only_the_real_model_is_compared(tiny_bundle: Path, name: str, is_it: bool):
    manifest = Bundle.open(tiny_bundle).manifest
    reason = golden.why_not(replace(manifest, source=replace(manifest.source, name=name)))
    assert reason is None if is_it else name in str(reason)


def test_verify_golden_finds_the_numbers_of_a_wrong_model_off(tiny_bundle: Path, tmp_path: Path):
    wrong = as_if_real(tiny_bundle, tmp_path / "bundle")
    done = export("verify-golden", wrong)
    assert (done.code, done.stderr) == (1, "")
    off = [line for line in done.stdout.splitlines() if line.startswith("OFF")]
    assert len(off) > 15
    assert any("dense Q1 P1" in line and "published 0.6259035" in line for line in off)
    result = json.loads(export("verify-golden", "--json", wrong).stdout)
    assert result["failed"] and sum(not check["holds"] for check in result["checks"]) == len(off)


def test_verify_golden_holds_when_the_numbers_are_the_models_own(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bundle = as_if_real(tiny_bundle, tmp_path / "bundle")
    with M3Encoder.open(bundle, variant="onnx-fp32") as encoder:
        found = encoder.encode([*golden.QUERIES, *golden.PASSAGES], return_sparse=True, return_colbert_vecs=True)
        words = [encoder.convert_id_to_token(found["lexical_weights"][q]) for q in range(2)]
        lexical = [
            encoder.compute_lexical_matching_score(found["lexical_weights"][0], found["lexical_weights"][2 + p])
            for p in (0, 1)
        ]
        colbert = [encoder.colbert_score(found["colbert_vecs"][0], found["colbert_vecs"][2 + p]) for p in (0, 1)]
    dense = np.asarray(found["dense_vecs"])
    monkeypatch.setattr(golden, "DENSE", dense[:2] @ dense[2:].T)
    monkeypatch.setattr(golden, "LEXICAL_WEIGHTS", words)
    monkeypatch.setattr(golden, "LEXICAL_SCORES", lexical)
    monkeypatch.setattr(golden, "COLBERT_SCORES", colbert)
    monkeypatch.setattr(golden, "COLBERT_ROWS", (len(found["colbert_vecs"][0]), len(found["colbert_vecs"][2])))
    assert golden.verify_golden(bundle, "onnx-fp32").failed is False
    monkeypatch.setattr(golden, "COLBERT_SCORES", [colbert[0] + 2e-4, colbert[1]])
    off = [check for check in golden.verify_golden(bundle, "onnx-fp32").checks if not check.holds]
    assert [check.name for check in off] == ["ColBERT Q1 P1"]
    monkeypatch.setattr(golden, "LEXICAL_WEIGHTS", [words[0], dict(list(words[1].items())[1:])])
    off = [check for check in golden.verify_golden(bundle, "onnx-fp32").checks if not check.holds]
    assert any(check.name.startswith("weight Q2") and check.published == 0.0 for check in off), "a word too many is off"


def test_a_number_that_is_none_does_not_hold():
    assert golden.Check("x", 0.5, 0.5, 1e-4).holds
    assert not golden.Check("x", 0.5, float("nan"), 1e-4).holds


@pytest.mark.parametrize("flaw", ["missing", "no bundle", "damaged", "variant", "dense-only"])
def test_verify_golden_on_what_cannot_be_compared_is_wrong_input(flaw: str, tiny_bundle: Path, tmp_path: Path):
    bundle, words = tmp_path / "bundle", []
    if flaw == "no bundle":
        bundle.mkdir()
    elif flaw == "damaged":
        shutil.copytree(tiny_bundle, bundle)
        (bundle / "tokenizer.json").write_text("{}")
    elif flaw == "variant":
        bundle, words = tiny_bundle, ["--variant", "onnx-fp16"]
    elif flaw == "dense-only":
        make_dense_only(as_if_real(tiny_bundle, bundle))
    done = export("verify-golden", *words, bundle)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith("m3-export: ") and done.stderr.count("\n") == 1
    named = {"variant": "onnx-fp16", "dense-only": "dense-only", "damaged": "tokenizer.json"}.get(flaw, "bundle")
    assert named in done.stderr
