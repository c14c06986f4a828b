"""INT8 for OpenVINO: what is compressed, what stays float, and that the bytes repeat."""

import hashlib
import re

import onnx_ir as ir
import openvino as ov
import pytest
from test_graph import UNUSED, checkpoint_of, padded, texts_of

from m3_export import passes
from m3_export.model import M3Model
from m3_export.quantize.openvino_int8 import PRECISION, name_weighted_nodes, write_openvino_int8
from m3_export.trace import trace


@pytest.fixture(scope="module")
def portable(tmp_path_factory):
    """A traced graph on disk, its nodes named by their weights."""
    path = tmp_path_factory.mktemp("portable") / "portable.onnx"
    model = name_weighted_nodes(passes.portable(trace(M3Model(checkpoint_of(), UNUSED))))
    ir.save(model, path, external_data="portable.onnx.data")
    return path


@pytest.fixture(scope="module")
def written(portable, tmp_path_factory):
    """The compressed model and its plan."""
    target = tmp_path_factory.mktemp("openvino") / "model_int8.xml"
    return target, write_openvino_int8(portable, target)


def test_the_plan_names_every_projection_and_the_embedding(written):
    _, plan = written
    kinds = ("query", "key", "value", "attention_out", "ffn_in", "ffn_out")
    assert {line.projection for line in plan} == {"words", *(f"layer.{i}.{k}" for i in range(2) for k in kinds)}
    assert {line.precision for line in plan if line.projection != "words"} == {PRECISION}


def constants(path) -> dict[str, str]:
    """Element types of all weights, by the name of the node that reads them first."""
    model = ov.Core().read_model(path)
    found = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant" and len(node.shape) == 2 and min(node.shape) > 1:
            found[node.get_friendly_name()] = node.get_element_type().get_type_name()
    return found


def test_weights_lie_compressed_on_disk_and_heads_in_float(written):
    target, _ = written
    types = constants(target)
    assert sum(kind == "i8" for kind in types.values()) == 13  # six in each of two layers, and the embedding
    assert sum(kind == "f32" for kind in types.values()) == 2  # positions and the ColBERT head


def test_outputs_keep_their_names_and_are_close(written, portable):
    target, _ = written
    batch = padded(texts_of(12, 12))
    exact, int8 = (
        ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(batch) for path in (portable, target)
    )
    for name in ("dense_vecs", "token_weights", "colbert_vecs"):
        assert exact[name].shape == int8[name].shape
    assert (exact["dense_vecs"] * int8["dense_vecs"]).sum(axis=1).min() > 0.995


def test_the_same_graph_gives_the_same_bytes(written, portable, tmp_path):
    """Although OpenVINO numbers its nodes by a counter of the process."""
    target, _ = written
    again = tmp_path / "model_int8.xml"
    write_openvino_int8(portable, again)
    for suffix in (".xml", ".bin"):
        first, second = (hashlib.sha256(p.with_suffix(suffix).read_bytes()).digest() for p in (target, again))
        assert first == second, suffix


def test_no_folder_of_this_machine_in_the_file(written, portable):
    text = written[0].read_text(encoding="utf-8")
    assert str(portable.parent) not in text
    assert not re.search(r"/(home|tmp|root|usr)/", text)
