"""Small graphs written as ONNX text, and running a graph exactly as it is."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from m3_runtime.engines.ort import session_config

Run = Callable[..., list[np.ndarray]]


def graph_of(text: str, **initializers: np.ndarray) -> ir.Model:
    """A model from ONNX text (the inside of a graph) with shapes inferred; initializers are given as arrays."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{text}')
    for name, array in initializers.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model))


def operators(model: ir.Model) -> Counter[str]:
    """How often each operator stands in the graph, branches included."""
    return Counter(node.op_type for node in ir.traversal.RecursiveGraphIterator(model.graph))


def opened(model: ir.Model) -> Run:
    """To run with ONNX Runtime's own optimiser off, so that it is our graph that runs."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString(), options)
    return lambda **inputs: session.run(None, inputs)


def run(model: ir.Model, **inputs: np.ndarray) -> list[np.ndarray]:
    """Run once, ONNX Runtime's own optimiser off."""
    return opened(model)(**inputs)


def run_int8(model: ir.Model, **inputs: np.ndarray) -> list[np.ndarray]:
    """Run as our engine does: where int8 products would saturate, ONNX Runtime's optimiser picks others."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for key, value in session_config({}, is_int8=True).items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString(), options).run(None, inputs)


def optimised(model: ir.Model, folder: Path) -> Counter[str]:
    """How often each operator stands in what ONNX Runtime's own optimiser makes of the graph."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString(), options)
    return operators(ir.load(options.optimized_model_filepath))


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    """Seeded noise."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
