"""Whether plans hold the budget: on texts that no plan was made on, by vectors that a run has kept."""

from dataclasses import replace

import numpy as np
import pytest

from m3_bench.documents import Model, OutputsFile, Run
from m3_bench.machine import this_machine
from m3_bench.recording import write_outputs
from m3_bench.run.budget import DEGENERATE, over_budget, unseen_texts
from m3_bench.run.contenders import variants_of
from m3_bench.run.run import unmeasured
from m3_export.calibration.texts import chosen_texts
from m3_export.verify.parity import Outputs
from m3_runtime import Bundle


def test_unseen_texts_are_neither_calibration_nor_probe_texts(tmp_path):
    chosen = chosen_texts(None, None)
    known = (*chosen.calibration, *chosen.probe, *chosen.degenerate_calibration, *chosen.degenerate_probe)
    found = unseen_texts(None)
    assert len(found) - DEGENERATE > 50
    assert not {text.text for text in known} & set(found)
    assert found == unseen_texts(None)
    assert len(set(found)) == len(found)
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    assert len(unseen_texts(tmp_path / "few.txt")) == 2 + DEGENERATE


@pytest.fixture
def plans(tiny_bundle):
    """onnx-fp32 and onnx-int8 of tiny-random, by name."""
    found = (one for one, _ in variants_of(Bundle.open(tiny_bundle), ["onnx-fp32", "onnx-int8"], 1))
    return {one.name: one for one in found}


def run_with(folder, plans, change) -> Run:
    """A run whose INT8 vectors are those of FP32, changed."""
    rng, texts = np.random.default_rng(0), 3 + DEGENERATE
    dense = rng.standard_normal((texts, 8)).astype(np.float32)
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    rows = [dense[:2]] * texts
    contenders = []
    for name, vectors in (("onnx-fp32", dense), ("onnx-int8", change(dense.copy()))):
        write_outputs(Outputs(vectors, [{5: 1.0}] * texts, rows), folder / f"{name}.safetensors")
        contenders.append(replace(unmeasured(plans[name]), outputs=OutputsFile(f"{name}.safetensors", "")))
    return Run(this_machine(), Model("m", "m3-1", "2" * 64), 1, (0,), "", (), tuple(contenders))


def test_a_plan_that_breaks_on_degenerate_texts_alone_does_not_hold(plans, tmp_path):
    def broken(dense):
        dense[-20:] *= -1
        return dense

    def new(change) -> set[str]:
        run = run_with(tmp_path, plans, change)
        return {one for one in over_budget(run, plans, tmp_path)["onnx-int8"] if one.startswith("other texts")}

    same = new(lambda dense: dense)
    assert not any("dense cosine" in one for one in same)
    (degenerate,) = new(broken) - same
    assert "degenerate texts below" in degenerate


def test_a_plan_that_breaks_on_natural_texts_does_not_hold(plans, tmp_path):
    def broken(dense):
        dense[0] *= -1
        return dense

    (over,) = over_budget(run_with(tmp_path, plans, broken), plans, tmp_path).values()
    assert any(one.startswith("other texts: dense cosine min") for one in over)


def test_without_vectors_of_fp32_nothing_can_be_said(plans, tmp_path):
    run = run_with(tmp_path, plans, lambda dense: dense)
    over = over_budget(replace(run, contenders=run.contenders[1:]), plans, tmp_path)
    assert over == {"onnx-int8": ("onnx-fp32 gave no vectors to compare with",)}
