"""Small graphs run on an engine, for the planner to time: written by the very writers that write the variants."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from m3_export.plan.forms import Form
from m3_export.plan.plan import DYNAMIC, Plan, Projection
from m3_export.quantize.onnx_int8 import QuantizeProjections
from m3_export.quantize.openvino_int8 import properties, write_openvino_int8
from m3_runtime.cpu import default_threads
from m3_runtime.engines.no_telemetry import without_telemetry
from m3_runtime.engines.ort import session_config
from m3_runtime.manifest import EngineName

Run = Callable[[np.ndarray], object]
OPENVINO_GROUP = 128  # values of a token that share a dynamic range: fastest, and nearer to exact than a whole token


def runner(engine: EngineName) -> Callable[[ir.Model, Mapping[Projection, Form]], Run]:
    """A function that makes a graph with one input ready to run on an engine."""
    return {EngineName.ONNXRUNTIME: on_onnxruntime, EngineName.OPENVINO: on_openvino}[engine]


def on_onnxruntime(graph: ir.Model, forms: Mapping[Projection, Form]) -> Run:
    """As ONNX Runtime runs it, with the session configuration of our engine."""
    with without_telemetry():
        import onnxruntime

    model = graph.clone()
    if forms:
        model.graph.opset_imports["com.microsoft"] = 1
        QuantizeProjections(forms)(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = default_threads()
    options.log_severity_level = 3
    for key, value in session_config({}, is_int8=bool(forms)).items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda rows: session.run(None, {"x": rows})


def on_openvino(graph: ir.Model, forms: Mapping[Projection, Form]) -> Run:
    """As OpenVINO runs it, with the compile properties of our variant."""
    with without_telemetry():
        import openvino as ov
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "sample.onnx", Path(folder) / "sample.xml"
        ir.save(graph, source)
        write_openvino_int8(source, target, forms)
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(default_threads()),
            "ENABLE_MMAP": "NO",  # the folder goes away
            **properties(Plan({Projection.parse("layer.0.qkv"): DYNAMIC}, OPENVINO_GROUP)),
        }
        core = ov.Core()
        request: Any = core.compile_model(core.read_model(target), "CPU", config).create_infer_request()
    return lambda rows: request.infer({"x": rows}, share_inputs=True, share_outputs=True)
