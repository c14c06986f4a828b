"""A precision plan as an OpenVINO model: static, dynamic and float projections side by side.

    static    each channel scaled and moved to 0…255, FakeQuantize, int8 weights: OpenVINO does the three in one pass,
              or in the operator that makes the activation, and multiplies u8 x s8. Smoothing and zero points are in the
              scaling and cost nothing. (A FakeQuantize with ranges by channel cannot have them on the last of 3 axes.)
    dynamic   int8 weights alone: with the compile property DYNAMIC_QUANTIZATION_GROUP_SIZE OpenVINO quantizes the
              activation in groups while it runs, where the processor multiplies int8; elsewhere it computes in float.
    float     left as it is.

The word embedding is looked up in int8 and then scaled. Scaled before, it would be a constant that OpenVINO unfolds to
float at load as soon as a model has a FakeQuantize: 1 GB for BGE-M3.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from m3_export.graph.passes.last_hidden_state import LAST_HIDDEN_STATE, NORMS
from m3_export.plan.plan import Precision, PrecisionPlan, Projection
from m3_export.quantize.embedding import quantize_groups, widest_group
from m3_export.quantize.projection import LEVELS, QuantizedProjection
from m3_export.quantize.weights import QuantizedWeight, dynamic_factors
from m3_runtime.engines import PACKING_DEFAULTS
from m3_runtime.engines.no_telemetry import without_telemetry

EMBEDDING_NODE = "gather.words"


def compile_properties(plan: PrecisionPlan) -> dict[str, str]:
    """The compile properties of a plan: with others it is another computation than the one that was verified."""
    return {"INFERENCE_PRECISION_HINT": plan.float_type.value, "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(plan.group)}


def write_openvino_int8(graph: Path, target: Path, quantized: Mapping[Projection, QuantizedProjection]) -> None:
    """Convert a float graph, its biases shifted, saved after `name_weighted_nodes`, and write .xml and .bin."""
    with without_telemetry():
        import openvino as ov

    model = ov.convert_model(graph)
    writer = _Writer(ov.opset13)
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        if node.get_type_name() == "MatMul" and (weight := QuantizedWeight.find(f"{name}.weight", quantized)):
            writer.quantize(node, weight)
        elif node.get_type_name() == "Gather" and name == EMBEDDING_NODE:
            writer.quantize_embedding(node)
    writer.close_optional_inputs(model)
    model.validate_nodes_and_infer_types()
    _name_by_position(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    # OpenVINO would round what is left in float to fp16 by default
    ov.save_model(model, target, compress_to_fp16=False)


def name_weighted_nodes(model: ir.Model) -> ir.Model:
    """A copy whose nodes with weights carry the weight's name: `layers.3.ffn_out`, `sparse`, `gather.words`.

    The last norm is called `last_hidden_state`, as in the encoder without heads.
    """
    named = model.clone()
    for node in named.graph:
        index = {"MatMul": 1, "Gather": 0}.get(node.op_type)
        weight = node.inputs[index] if index is not None else None
        if weight is not None and weight.name in named.graph.initializers and len(weight.const_value.shape) == 2:
            # a Gather may not be called as its table is: OpenVINO would rename one of the two
            node.name = ("gather." if node.op_type == "Gather" else "") + weight.name.removesuffix(".weight")
    norms = [node for node in named.graph if node.op_type in NORMS]
    norms[-1].name = LAST_HIDDEN_STATE
    return named


class _Writer:
    """Puts quantized products in the place of float ones; query, key and value share what they read."""

    def __init__(self, opset: Any) -> None:
        self._op = opset
        self._read: dict[tuple[str, int, Projection], Any] = {}

    def quantize(self, node: Any, weight: QuantizedWeight) -> None:
        """Rewrite one MatMul."""
        source = node.input_value(0)
        key = (source.get_node().get_friendly_name(), source.get_index(), weight.projection)
        if key not in self._read:
            self._read[key] = self._quantized_input(source, weight.whole)
        product = self._op.matmul(self._read[key], self._quantized_weight(weight), False, True)
        product.set_friendly_name(node.get_friendly_name())
        node.set_friendly_name(f"{node.get_friendly_name()}.float")
        result = self._with_float_columns(product, source, weight) if weight.whole.float_columns else product
        node.output(0).replace(result.output(0))

    def quantize_embedding(self, node: Any) -> None:
        """Rewrite the lookup of words: rows and their scales are looked up, then multiplied."""
        op, table = self._op, node.input_value(0).get_node().get_data()
        values, scales = quantize_groups(table, widest_group(table.shape[1]))
        ids, axis = node.input_value(1), op.constant(np.int64(0))
        rows = op.convert(op.gather(op.constant(values), ids, axis), np.float32)
        row_scales = op.convert(op.gather(op.constant(scales), ids, axis), np.float32)
        shape = op.constant(np.array([0, 0, table.shape[1]], np.int64))
        joined = op.reshape(op.multiply(rows, row_scales), shape, True)
        node.output(0).replace(joined.output(0))

    def close_optional_inputs(self, model: Any) -> None:
        """Put constants of their names in the place of inputs that have defaults: OpenVINO has no such inputs.

        Not earlier: what depends on a constant is computed at conversion, and could not be opened any more.
        """
        for parameter in list(model.get_parameters()):
            name = parameter.get_friendly_name()
            if name in PACKING_DEFAULTS:
                constant = self._op.constant(PACKING_DEFAULTS[name])
                for reader in parameter.output(0).get_target_inputs():
                    reader.replace_source_output(constant.output(0))
                model.remove_parameter(parameter)
                constant.set_friendly_name(name)

    def _quantized_input(self, source: Any, quantized: QuantizedProjection) -> Any:
        """What the int8 product reads."""
        op = self._op
        if quantized.precision is Precision.STATIC:
            factors, offsets = 1 / quantized.step.numpy(), -(quantized.low / quantized.step).numpy()
            steps = op.add(op.multiply(source, op.constant(factors[None, None])), op.constant(offsets[None, None]))
            bounds = [op.constant(np.float32(bound)) for bound in (0, LEVELS, 0, LEVELS * _unit(quantized))]
            return op.fake_quantize(steps, *bounds, LEVELS + 1)
        smoothing = dynamic_factors(quantized)
        return source if smoothing is None else op.multiply(source, op.constant(smoothing[None, None]))

    def _quantized_weight(self, weight: QuantizedWeight) -> Any:
        """(N, K) int8, each row times its scale: OpenVINO multiplies this layout without transposing a copy at load."""
        op, scales = self._op, weight.scales
        if weight.whole.precision is Precision.STATIC:
            scales = scales / np.float32(_unit(weight.whole))
        values = op.convert(op.constant(np.ascontiguousarray(weight.values.T)), np.float32)
        return op.multiply(values, op.constant(scales[:, None].astype(np.float32)))

    def _with_float_columns(self, product: Any, source: Any, weight: QuantizedWeight) -> Any:
        """The product plus that of the outlier channels, in float."""
        op, which = self._op, np.array(weight.whole.float_columns, np.int64)
        channels = op.gather(source, op.constant(which), op.constant(np.int64(2)))
        return op.add(product, op.matmul(channels, op.constant(weight.float_weight), False, False))


def _unit(quantized: QuantizedProjection) -> float:
    """What one of the 255 steps is worth behind a FakeQuantize: any value is right, a middling one keeps magnitudes."""
    return float(quantized.step.log().mean().exp())


def _name_by_position(model: Any) -> None:
    """OpenVINO names nodes by a counter of the process; name them by their projection, so that bytes repeat."""
    for position, node in enumerate(model.get_ordered_ops()):
        if re.fullmatch(r"[A-Za-z]+_\d+(/.*)?", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}.{position}")
