"""The variants that an export can write: which graph, quantized how, saved where."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from m3_export import passes
from m3_export.calibration import Statistics
from m3_export.passes.shift_biases import Floats, ShiftBiases
from m3_export.plan.forms import Form
from m3_export.plan.plan import Plan, Precision, Projection
from m3_export.quantize.embedding import widest_group
from m3_export.quantize.onnx_int8 import QuantizeProjections
from m3_export.quantize.openvino_int8 import name_weighted_nodes, properties, write_openvino_int8
from m3_export.recipe import VariantName
from m3_runtime.manifest import CpuFeature, EngineName, ProjectionPrecision, Variant

FILES: Mapping[VariantName, str] = {
    VariantName.ONNX_FP32: "onnx/model.onnx",
    VariantName.ONNX_INT8: "onnx/model_int8.onnx",
    VariantName.OPENVINO_INT8: "openvino/model_int8.xml",
}


def engine_of(name: VariantName) -> EngineName:
    """What runs a variant."""
    return EngineName.OPENVINO if name is VariantName.OPENVINO_INT8 else EngineName.ONNXRUNTIME


class Graphs:
    """The traced graph and what is made of it."""

    def __init__(self, portable: ir.Model, work: Path) -> None:
        """Nothing is made yet.

        Args:
            portable: the traced graph.
            work: a folder for graphs that an engine has to read from disk.
        """
        self.portable, self.work = portable, work

    @cached_property
    def fused(self) -> ir.Model:
        """With ONNX Runtime's operators."""
        return passes.for_onnxruntime(self.portable)

    def for_int8(self, statistics: Statistics, forms: Mapping[Projection, Form]) -> ir.Model:
        """What a writer starts from: the same function, activations easier to quantize, biases for the forms."""
        model = passes.for_int8(self.portable, statistics.means, statistics.loud_neurons)
        return ShiftBiases(_shifts(forms))(model).model


def write_float(graphs: Graphs, folder: Path) -> Variant:
    """Write onnx-fp32."""
    name = VariantName.ONNX_FP32
    _save(graphs.fused, folder / FILES[name])
    return Variant(str(name), engine_of(name), "fp32", FILES[name], _files(folder, name), {}, ())


def write_int8(
    name: VariantName,
    graphs: Graphs,
    statistics: Statistics,
    plan: Plan,
    forms: Mapping[Projection, Form],
    folder: Path,
) -> Variant:
    """Write an INT8 variant as its plan says; what an earlier plan left there is replaced."""
    model, path = graphs.for_int8(statistics, forms), folder / FILES[name]
    for old in _files(folder, name):
        (folder / old).unlink()
    if name is VariantName.OPENVINO_INT8:
        saved = _save(name_weighted_nodes(model), graphs.work / "for_int8.onnx")
        write_openvino_int8(saved, path, forms)
    else:
        quantize = ir.passes.Sequential(QuantizeProjections(forms), RemoveUnusedNodesPass())
        _save(quantize(passes.for_onnxruntime(model)).model, path)
    return Variant(
        name=str(name),
        engine=engine_of(name),
        precision="int8",
        graph=FILES[name],
        files=_files(folder, name),
        properties=properties(plan) if name is VariantName.OPENVINO_INT8 else {},
        plan=(_words(graphs.portable), *plan.lines()),
        needs=_needs(plan),
    )


def _needs(plan: Plan) -> tuple[CpuFeature, ...]:
    """Without int8 dot products OpenVINO's static products saturate at 16 bits: another, wrong computation."""
    is_static = any(choice.precision is Precision.STATIC for choice in plan.choices.values())
    return (CpuFeature.INT8_DOT,) if is_static else ()


def _words(portable: ir.Model) -> ProjectionPrecision:
    shape = portable.graph.initializers["words"].shape
    assert shape is not None
    return ProjectionPrecision("words", f"int8 per group of {widest_group(int(shape[1]))}")


def _shifts(forms: Mapping[Projection, Form]) -> dict[str, Floats]:
    shifts = {}
    for place, form in forms.items():
        names = place.kind.weights
        for name, part in zip(names, form.shift.chunk(len(names)), strict=True):
            shifts[f"layers.{place.layer}.{name}.weight"] = part.numpy()
    return shifts


def _files(folder: Path, name: VariantName) -> tuple[str, ...]:
    path = folder / FILES[name]
    return tuple(sorted(p.relative_to(folder).as_posix() for p in path.parent.glob(f"{path.stem}.*")))


def _save(model: ir.Model, path: Path) -> Path:
    """Weights go beside the graph: BGE-M3 in FP32 is over protobuf's 2 GB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
    return path
