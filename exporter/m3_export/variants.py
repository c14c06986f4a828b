"""The variants that an export can write: which graph, quantized how, saved where."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from m3_export import passes
from m3_export.calibration import Statistics
from m3_export.quantize.onnx_int8 import QuantizeProjections
from m3_export.quantize.openvino_int8 import PROPERTIES, name_weighted_nodes, write_openvino_int8
from m3_export.recipe import VariantName
from m3_runtime.manifest import EngineName, ProjectionPrecision, Variant


class Graphs:
    """The traced graph and what is made of it, each made once and only when a variant asks."""

    def __init__(self, portable: ir.Model, calibrate: Callable[[], Statistics], work: Path) -> None:
        """Nothing is made yet.

        Args:
            portable: the traced graph.
            calibrate: measures the activations; called once, when the first INT8 variant is written.
            work: a folder for graphs that an engine has to read from disk.
        """
        self.portable = portable
        self._calibrate = calibrate
        self._work = work

    @cached_property
    def fused(self) -> ir.Model:
        """With ONNX Runtime's operators."""
        return passes.for_onnxruntime(self.portable)

    @cached_property
    def for_int8(self) -> ir.Model:
        """What INT8 starts from: the same function, its activations easier to quantize."""
        statistics = self._calibrate()
        return passes.for_int8(self.portable, statistics.means, statistics.loud_neurons)

    @cached_property
    def saved_for_int8(self) -> Path:
        """That graph on disk, its nodes named by their weights."""
        return _save(name_weighted_nodes(self.for_int8), self._work / "for_int8.onnx")


def _onnx_fp32(graphs: Graphs, folder: Path) -> Variant:
    _save(graphs.fused, folder / "onnx/model.onnx")
    return _variant(folder, VariantName.ONNX_FP32, "fp32", "onnx/model.onnx", {}, ())


def _onnx_int8(graphs: Graphs, folder: Path) -> Variant:
    quantize = QuantizeProjections()
    model = ir.passes.Sequential(quantize, RemoveUnusedNodesPass())(passes.for_onnxruntime(graphs.for_int8)).model
    _save(model, folder / "onnx/model_int8.onnx")
    return _variant(folder, VariantName.ONNX_INT8, "int8", "onnx/model_int8.onnx", {}, tuple(quantize.plan))


def _openvino_int8(graphs: Graphs, folder: Path) -> Variant:
    plan = write_openvino_int8(graphs.saved_for_int8, folder / "openvino/model_int8.xml")
    return _variant(folder, VariantName.OPENVINO_INT8, "int8", "openvino/model_int8.xml", PROPERTIES, plan)


WRITERS: Mapping[VariantName, Callable[[Graphs, Path], Variant]] = {
    VariantName.ONNX_FP32: _onnx_fp32,
    VariantName.ONNX_INT8: _onnx_int8,
    VariantName.OPENVINO_INT8: _openvino_int8,
}


def _variant(
    folder: Path,
    name: VariantName,
    precision: str,
    graph: str,
    properties: Mapping[str, str],
    plan: tuple[ProjectionPrecision, ...],
) -> Variant:
    stem = (folder / graph).stem
    files = sorted(p.relative_to(folder).as_posix() for p in (folder / graph).parent.glob(f"{stem}.*"))
    engine = EngineName.OPENVINO if name is VariantName.OPENVINO_INT8 else EngineName.ONNXRUNTIME
    return Variant(str(name), engine, precision, graph, tuple(files), properties, plan)


def _save(model: ir.Model, path: Path) -> Path:
    """Weights go beside the graph: BGE-M3 in FP32 is over protobuf's 2 GB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
    return path
