"""INT8 for OpenVINO: what each precision becomes, what stays float, and that the bytes repeat.

Static products are computed in float here (`SIMULATED`): the same integers, on every processor.
"""

import hashlib
import re

import numpy as np
import onnx_ir as ir
import openvino as ov
import pytest
import torch
from test_graph import UNUSED, checkpoint_of, padded, texts_of

from m3_export.graph.model import M3Model
from m3_export.graph.passes.shift_biases import ShiftBiases
from m3_export.plan.plan import Kind, Precision, Projection, Scheme, projections
from m3_export.quantize.openvino_int8 import name_weighted_nodes, write_openvino_int8
from m3_export.quantize.projection import InputStatistics, quantize_projection
from m3_export.verify.measure import SIMULATED

SCHEMES = {
    Kind.QKV: Scheme(Precision.STATIC, smoothing=0.5),
    Kind.ATTENTION_OUT: Scheme(Precision.DYNAMIC, float_columns=4),
    Kind.FFN_IN: Scheme(Precision.DYNAMIC, smoothing=0.5),
    Kind.FFN_OUT: Scheme(Precision.STATIC, clip=0.8),
}
SPARED = Projection(1, Kind.FFN_IN)


@pytest.fixture(scope="module")
def model() -> M3Model:
    return M3Model(checkpoint_of(), UNUSED)


@pytest.fixture(scope="module")
def quantized(model):
    """All projections but one, on noise with two outlier channels."""
    found = {}
    for projection in projections(2):
        weight = torch.cat(
            [getattr(model.layers[projection.layer], name).weight for name in projection.kind.weights], dim=1
        )
        rows = torch.from_numpy(np.random.default_rng(0).normal(size=(60, len(weight))).astype(np.float32))
        rows[:, :2] *= 5
        if projection.kind is Kind.FFN_OUT:
            rows = torch.nn.functional.gelu(rows)
        inputs = InputStatistics(rows.amin(0), rows.amax(0), rows, projection.kind is Kind.FFN_OUT)
        found[projection] = quantize_projection(SCHEMES[projection.kind], inputs, weight, 32)
    del found[SPARED]
    return found


@pytest.fixture(scope="module")
def graphs(portable_graph, quantized, tmp_path_factory):
    """The traced graph on disk, its nodes named by their weights: exact, and with biases shifted for the products."""
    folder, shifts = tmp_path_factory.mktemp("portable"), {}
    for projection, product in quantized.items():
        for name, part in zip(projection.kind.weights, product.shift.chunk(len(projection.kind.weights)), strict=True):
            shifts[f"layers.{projection.layer}.{name}.weight"] = part.numpy()
    graph = portable_graph()
    for name, content in (("exact", graph), ("shifted", ShiftBiases(shifts)(graph.clone()).model)):
        ir.save(name_weighted_nodes(content), folder / f"{name}.onnx", external_data=f"{name}.data")
    return folder


@pytest.fixture(scope="module")
def written(graphs, quantized, tmp_path_factory):
    target = tmp_path_factory.mktemp("openvino") / "model_int8.xml"
    write_openvino_int8(graphs / "shifted.onnx", target, quantized)
    return target


def nodes(path, kind: str) -> list:
    return [node for node in ov.Core().read_model(path).get_ordered_ops() if node.get_type_name() == kind]


def test_a_static_projection_has_one_fake_quantize_and_query_key_value_share_theirs(written):
    # the last layer's query reads some rows only, so it has one of its own
    assert len(nodes(written, "FakeQuantize")) == 2 + 2 + 1


def test_weights_lie_in_int8_and_what_is_spared_in_float(written):
    types = {}
    for node in nodes(written, "Constant"):
        if len(node.shape) >= 2 and sorted(node.shape)[-2] > 4:
            types.setdefault(node.get_element_type().get_type_name(), []).append(tuple(node.shape))
    assert len(types["i8"]) == 12  # eleven projections and the embedding
    assert {(32, 64), (64, 32)} & set(types["f32"])  # the one that was spared, whichever way it lies
    assert (50, 1, 32) in types["i8"]  # the embedding, one group of 32 a word


def test_outputs_keep_their_names_and_are_close(written, graphs):
    batch = padded(texts_of(12, 12))
    core = ov.Core()
    exact = core.compile_model(graphs / "exact.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(batch)
    int8 = core.compile_model(written, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **SIMULATED})(batch)
    for name in ("dense_vecs", "token_weights", "colbert_vecs"):
        assert exact[name].shape == int8[name].shape
    assert (exact["dense_vecs"] * int8["dense_vecs"]).sum(axis=1).min() > 0.95  # calibrated on noise, not on texts


def test_the_same_graph_gives_the_same_bytes(written, graphs, quantized, tmp_path):
    """Although OpenVINO numbers its nodes by a counter of the process."""
    again = tmp_path / "model_int8.xml"
    write_openvino_int8(graphs / "shifted.onnx", again, quantized)
    for suffix in (".xml", ".bin"):
        first, second = (hashlib.sha256(p.with_suffix(suffix).read_bytes()).digest() for p in (written, again))
        assert first == second, suffix


def test_no_folder_of_this_machine_in_the_file(written, graphs):
    text = written.read_text(encoding="utf-8")
    assert str(graphs) not in text
    assert not re.search(r"/(home|tmp|root|usr)/", text)
