"""OpenVINO INT8: signed int8 weights per column, activations quantized on the fly in groups.

Groups of 128 keep an outlier channel from coarsening a whole row, and the weights stay compressed (and mapped from
disk) in memory, the word embedding included. In an earlier trial (e5-small weights, 240 texts in three languages, not
the probe texts) the dense cosine was 0.9996 on average, 0.9991 with one group per row, 0.9985 fully static; a static
model would also unfold the embedding to float.
"""

import contextlib
import io
import logging
import re
from pathlib import Path
from typing import Any

import onnx_ir as ir

from m3_export.passes.loud_neurons import LOUD
from m3_runtime.engines.no_telemetry import without_telemetry
from m3_runtime.manifest import ProjectionPrecision

PRECISION = "int8 per column x int8 per group of 128"
EMBEDDING_PRECISION = "int8 per row"
# They belong to the variant: with other values it is another computation than the one that was verified.
PROPERTIES = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}
# Left in float: 0.3 % of the work and 2 % of the bytes, and users see what the heads write.
FLOAT_NODES = ("gather.positions", "sparse", "colbert")


def write_openvino_int8(graph: Path, target: Path) -> tuple[ProjectionPrecision, ...]:
    """Convert a graph saved after `name_weighted_nodes`, compress it and write `target` (.xml, its .bin beside it).

    Returns:
        The precision plan, in graph order.
    """
    with without_telemetry():
        import nncf
        import openvino as ov

    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own set_log_level turns down everybody's handlers
    model = ov.convert_model(graph)
    with contextlib.redirect_stdout(io.StringIO()):  # nncf prints its tables where our report goes
        compressed = nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT8_SYM,
            ignored_scope=nncf.IgnoredScope(
                names=list(FLOAT_NODES), patterns=[f".*{re.escape(LOUD)}.*"], validate=False
            ),
        )
    _name_by_position(compressed)
    target.parent.mkdir(parents=True, exist_ok=True)
    # OpenVINO would round what is left in float to fp16 by default
    ov.save_model(compressed, target, compress_to_fp16=False)
    return _plan(compressed)


def name_weighted_nodes(model: ir.Model) -> ir.Model:
    """A copy whose nodes with weights carry the weight's name: `layers.3.ffn_out`, `sparse`, `gather.words`."""
    named = model.clone()
    for node in named.graph:
        place = {"MatMul": 1, "Gather": 0}.get(node.op_type)
        weight = node.inputs[place] if place is not None else None
        if weight is not None and weight.name in named.graph.initializers and len(weight.const_value.shape) == 2:
            # a Gather may not be called as its table is: OpenVINO would rename one of the two
            node.name = ("gather." if node.op_type == "Gather" else "") + weight.name.removesuffix(".weight")
    return named


def _name_by_position(model: Any) -> None:
    """OpenVINO names nodes by a counter of the process; name them by their place, so that bytes repeat."""
    for place, node in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r"[A-Za-z]+_\d+(/.*)?", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}.{place}")


def _plan(model: Any) -> tuple[ProjectionPrecision, ...]:
    """Read from the finished model what is compressed, rather than from what was asked for."""
    plan = []
    for node in model.get_ordered_ops():
        place = {"MatMul": 1, "Gather": 0}.get(node.get_type_name())
        name = node.get_friendly_name()
        if place is None or not name.startswith(("layers.", "gather.words")) or LOUD in name:
            continue
        weight = node.input(place).get_source_output().get_node()
        kind = EMBEDDING_PRECISION if name == "gather.words" else PRECISION
        is_int8 = weight.get_type_name() != "Constant" and _constant_type(weight) == "i8"
        projection = name.replace("layers.", "layer.", 1).removeprefix("gather.")
        plan.append(ProjectionPrecision(projection, kind if is_int8 else "fp32"))
    return tuple(plan)


def _constant_type(node: Any) -> str:
    """Element type of the constant that a chain of conversions and scalings starts from."""
    while node.get_type_name() != "Constant":
        node = node.input(0).get_source_output().get_node()
    return str(node.get_element_type().get_type_name())
