"""The variants that an export can write: which graph, quantized how, saved where."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from m3_export.arrays import Float32Array
from m3_export.calibration.statistics import ActivationStatistics
from m3_export.errors import PlanError
from m3_export.graph import passes
from m3_export.graph.passes.packed_rows import PACKED_TOKENS
from m3_export.graph.passes.shift_biases import ShiftBiases
from m3_export.options import VariantName
from m3_export.plan.plan import FloatType, Precision, PrecisionPlan, Projection
from m3_export.quantize.embedding import widest_group
from m3_export.quantize.onnx_int8 import QuantizeProjections
from m3_export.quantize.openvino_int8 import compile_properties, name_weighted_nodes, write_openvino_int8
from m3_export.quantize.projection import QuantizedProjection
from m3_export.quantize.weights import weight_names
from m3_runtime.bundle.manifest import CpuFeature, EngineName, ProjectionPrecision, Variant

FILES: Mapping[VariantName, str] = {
    VariantName.ONNX_FP32: "onnx/model.onnx",
    VariantName.ONNX_INT8: "onnx/model_int8.onnx",
    VariantName.OPENVINO_INT8: "openvino/model_int8.xml",
}
OPENVINO_WEIGHTS = "openvino/openvino_model.bin"
"""Named after the encoder without heads: others find its weights by that name alone, our engine by the manifest."""


def engine_of(name: VariantName) -> EngineName:
    """What runs a variant."""
    return EngineName.OPENVINO if name is VariantName.OPENVINO_INT8 else EngineName.ONNXRUNTIME


@dataclass(frozen=True)
class Graphs:
    """The traced graph, and a folder for graphs that an engine has to read from disk."""

    portable: ir.Model
    work: Path

    def with_score_correction(self, scale: float, shift: float) -> "Graphs":
        """A reranker's, its scores stretched and shifted."""
        return replace(self, portable=passes.with_score_correction(self.portable, scale, shift))

    def for_int8(
        self, statistics: ActivationStatistics, quantized: Mapping[Projection, QuantizedProjection]
    ) -> ir.Model:
        """What a writer starts from: the same function, activations easier to quantize, biases for the products."""
        model = passes.for_int8(self.portable, statistics.means, statistics.outlier_neurons)
        return ShiftBiases(_shifts(quantized))(model).model


def write_float(graphs: Graphs, folder: Path) -> Variant:
    """Write onnx-fp32."""
    name = VariantName.ONNX_FP32
    _save(passes.for_onnxruntime(graphs.portable), folder / FILES[name])
    return Variant(str(name), engine_of(name), "fp32", FILES[name], _files(folder, name), {}, ())


def write_int8(
    name: VariantName,
    graphs: Graphs,
    statistics: ActivationStatistics,
    plan: PrecisionPlan,
    quantized: Mapping[Projection, QuantizedProjection],
    folder: Path,
) -> Variant:
    """Write an INT8 variant as its plan says."""
    model, path = graphs.for_int8(statistics, quantized), folder / FILES[name]
    if name is VariantName.OPENVINO_INT8:
        saved = _save(name_weighted_nodes(passes.for_openvino(model)), graphs.work / "for_int8.onnx")
        write_openvino_int8(saved, path, quantized)
        path.with_suffix(".bin").replace(folder / OPENVINO_WEIGHTS)
    else:
        quantize = ir.passes.Sequential(QuantizeProjections(quantized), RemoveUnusedNodesPass())
        _save(quantize(passes.for_onnxruntime(model)).model, path)
    return Variant(
        name=str(name),
        engine=engine_of(name),
        precision="int8",
        graph=FILES[name],
        files=_files(folder, name),
        properties=properties_of(name, plan),
        plan=(_words(graphs.portable), *plan.lines()),
        needs=_needs(plan),
        packed_tokens=PACKED_TOKENS if name is VariantName.OPENVINO_INT8 else 0,
    )


def properties_of(name: VariantName, plan: PrecisionPlan) -> dict[str, str]:
    """The properties that belong to a variant of this plan.

    Raises:
        PlanError: the plan wants bf16 of an engine that has none.
    """
    if name is VariantName.OPENVINO_INT8:
        return compile_properties(plan)
    if plan.float_type is not FloatType.F32:
        raise PlanError(f"{name}: ONNX Runtime multiplies no bf16 on CPUs; the plan's float_type must be f32")
    return {}


def _needs(plan: PrecisionPlan) -> tuple[CpuFeature, ...]:
    """Without int8 dot products OpenVINO's static products saturate at 16 bits: another, wrong computation."""
    is_static = any(scheme.precision is Precision.STATIC for scheme in plan.schemes.values())
    return (CpuFeature.INT8_DOT,) if is_static else ()


def _words(portable: ir.Model) -> ProjectionPrecision:
    shape = portable.graph.initializers["words"].shape
    assert shape is not None
    return ProjectionPrecision("words", f"int8 per group of {widest_group(int(shape[1]))}")


def _shifts(quantized: Mapping[Projection, QuantizedProjection]) -> dict[str, Float32Array]:
    shifts: dict[str, Float32Array] = {}
    for projection, product in quantized.items():
        names = weight_names(projection)
        shifts |= dict(zip(names, (part.numpy() for part in product.shift.chunk(len(names))), strict=True))
    return shifts


def _files(folder: Path, name: VariantName) -> tuple[str, ...]:
    if name is VariantName.OPENVINO_INT8:
        return FILES[name], OPENVINO_WEIGHTS
    path = folder / FILES[name]
    return tuple(sorted(p.relative_to(folder).as_posix() for p in path.parent.glob(f"{path.stem}.*")))


def _save(model: ir.Model, path: Path) -> Path:
    """Weights go beside the graph, since BGE-M3 in FP32 is over protobuf's 2 GB, in the file where browsers look."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, path, external_data=f"{path.name}_data", size_threshold_bytes=1024)
    return path
