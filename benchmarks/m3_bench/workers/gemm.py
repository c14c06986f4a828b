"""The processor's ceilings: one matrix product, M=2048, K=1024, N=4096, as fast as an engine can do it.

A product counts only if its numbers are right, so each engine's is compared with numpy's before it is timed: int8 to
the last bit, fp32 and bf16 within what their mantissas allow, dynamic int8 within what rounding to 8 bits does.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_bench.workers.serve import Encoder, serve
from m3_runtime.engines.no_telemetry import without_telemetry
from m3_runtime.engines.openvino import compile_properties
from m3_runtime.engines.ort import session_options

ROWS, DEPTH, COLUMNS = 2048, 1024, 4096
FLOP = 2 * ROWS * DEPTH * COLUMNS
_CHECKED_ROWS = 64
_ZERO_POINT = 128
Floats = NDArray[np.float32]
Multiply = Callable[[], NDArray[Any]]


def operands() -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Seeded rows (M, K) uint8 and weights (K, N) int8, over their whole ranges: what saturates shall show."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (ROWS, DEPTH), dtype=np.uint8)
    return rows, rng.integers(-127, 128, (DEPTH, COLUMNS), dtype=np.int8)


def exact_rows(rows: NDArray[np.uint8], weights: NDArray[np.int8]) -> NDArray[np.int64]:
    """The first rows of (rows - 128) · weights."""
    return (rows[:_CHECKED_ROWS].astype(np.int64) - _ZERO_POINT) @ weights.astype(np.int64)


def on_onnxruntime(rows: NDArray[np.uint8], weights: NDArray[np.int8], threads: int) -> Multiply:
    """MatMulInteger, uint8 by int8, with the session configuration that the runtime gives int8 graphs here."""
    with without_telemetry():
        import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("MatMulInteger", ["rows", "weights", "zero_point"], ["product"])
    graph = helper.make_graph(
        [node],
        "gemm",
        [helper.make_tensor_value_info("rows", TensorProto.UINT8, [None, DEPTH])],
        [helper.make_tensor_value_info("product", TensorProto.INT32, [None, COLUMNS])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array(_ZERO_POINT, np.uint8), "zero_point"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = session_options({}, threads, is_int8=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["product"], {"rows": rows})[0]


def on_openvino(rows: NDArray[np.uint8], weights: NDArray[np.int8], threads: int) -> Multiply:
    """Static int8: FakeQuantize on float rows, int8 weights with a scale; steps of one, so products are integers."""
    with without_telemetry():
        import openvino
        from openvino import opset13 as ops

    x = ops.parameter([-1, DEPTH], np.float32)
    low, high = np.float32(-_ZERO_POINT), np.float32(255 - _ZERO_POINT)
    quantized = ops.fake_quantize(x, low, high, low, high, levels=256)
    unfolded = ops.multiply(ops.convert(ops.constant(weights), np.float32), np.float32(1.0))
    model = openvino.Model([ops.matmul(quantized, unfolded, False, False)], [x])
    return _inferring(model, rows.astype(np.float32) - _ZERO_POINT, "f32", threads)


def dynamic_on_openvino(rows: Floats, weights: Floats, precision: str, threads: int) -> Multiply:
    """Dynamic int8: float rows, which the engine quantizes group by group, and int8 weights with a scale a column."""
    with without_telemetry():
        import openvino
        from openvino import opset13 as ops

    scales = np.abs(weights).max(axis=0, keepdims=True) / np.float32(127)
    whole = np.round(weights / scales).astype(np.int8)
    x = ops.parameter([-1, DEPTH], np.float32)
    unfolded = ops.multiply(ops.convert(ops.constant(whole), np.float32), ops.constant(scales))
    model = openvino.Model([ops.matmul(x, unfolded, False, False)], [x])
    return _inferring(model, rows, "f32", threads, {"DYNAMIC_QUANTIZATION_GROUP_SIZE": str(DYNAMIC[precision])})


def _inferring(
    model: Any, rows: NDArray[np.float32], hint: str, threads: int, more: Mapping[str, str] | None = None
) -> Multiply:
    """An OpenVINO model of one product, compiled."""
    import openvino

    config = compile_properties({"INFERENCE_PRECISION_HINT": hint, **(more or {})}, threads)
    request = openvino.Core().compile_model(model, "CPU", config).create_infer_request()

    def multiply() -> NDArray[Any]:
        request.infer([rows], share_inputs=True)
        return np.asarray(request.get_output_tensor(0).data)

    return multiply


def float_on_onnxruntime(rows: Floats, weights: Floats, _precision: str, threads: int) -> Multiply:
    """MatMul, fp32."""
    with without_telemetry():
        import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["rows", "weights"], ["product"])],
        "gemm",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, DEPTH])],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, [None, COLUMNS])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = session_options({}, threads, is_int8=False)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["product"], {"rows": rows})[0]


def float_on_openvino(rows: Floats, weights: Floats, precision: str, threads: int) -> Multiply:
    """MatMul, fp32 or bf16."""
    with without_telemetry():
        import openvino
        from openvino import opset13 as ops

    x = ops.parameter([-1, DEPTH], np.float32)
    model = openvino.Model([ops.matmul(x, ops.constant(weights), False, False)], [x])
    return _inferring(model, rows, {"fp32": "f32", "bf16": "bf16"}[precision], threads)


def float_on_torch(rows: Floats, weights: Floats, precision: str, threads: int) -> Multiply:
    """PyTorch's matmul, fp32 or bf16."""
    import torch

    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    x, w = torch.from_numpy(rows).to(dtype), torch.from_numpy(weights).to(dtype)

    def multiply() -> NDArray[Any]:
        with torch.inference_mode():
            return np.asarray((x @ w)[:_CHECKED_ROWS].float().numpy())

    return multiply


DYNAMIC = {"int8 dynamic, 128": 128, "int8 dynamic, 256": 256, f"int8 dynamic, {DEPTH}": DEPTH}  # values of a group
INT8 = {"onnxruntime": on_onnxruntime, "openvino": on_openvino}
FLOAT = {"onnxruntime": float_on_onnxruntime, "openvino": float_on_openvino, "torch": float_on_torch}
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, **dict.fromkeys(DYNAMIC, 2e-2)}  # of the largest element


class Product(Encoder):
    """One engine's product, known to be right."""

    def __init__(self, engine: str, precision: str, threads: int) -> None:
        is_int8 = precision == "int8"
        self._multiply = int8_product(engine, threads) if is_int8 else float_product(engine, precision, threads)

    def run(self, _texts: Sequence[str], _heads: Sequence[str]) -> None:
        """See `serve.Encoder.run`."""
        self._multiply()

    def inspect(self, _result: None) -> tuple[float, Sequence[float]]:
        """See `serve.Encoder.inspect`."""
        return float(FLOP), ()


def int8_product(engine: str, threads: int) -> Multiply:
    """An engine's int8 product.

    Raises:
        ArithmeticError: it is not exact.
    """
    rows, weights = operands()
    multiply = INT8[engine](rows, weights, threads)
    if not np.array_equal(multiply()[:_CHECKED_ROWS], exact_rows(rows, weights)):
        raise ArithmeticError(f"{engine}'s int8 product is not exact on this processor, so it is no ceiling")
    return multiply


def float_product(engine: str, precision: str, threads: int) -> Multiply:
    """An engine's product of floats, in whatever it computes it.

    Raises:
        ArithmeticError: it is not near enough.
    """
    rng = np.random.default_rng(0)
    rows, weights = (rng.standard_normal(shape, dtype=np.float32) for shape in ((ROWS, DEPTH), (DEPTH, COLUMNS)))
    make = dynamic_on_openvino if precision in DYNAMIC else FLOAT[engine]
    multiply = make(rows, weights, precision, threads)
    exact = rows[:_CHECKED_ROWS].astype(np.float64) @ weights
    off = float(np.abs(multiply()[:_CHECKED_ROWS] - exact).max() / np.abs(exact).max())
    if not off <= TOLERANCE[precision]:
        raise ArithmeticError(f"{engine}'s {precision} product is off by {off:.1g} of its largest element")
    return multiply


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=tuple(FLOAT))
    parser.add_argument("--precision", choices=("int8", *TOLERANCE), default="int8")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    serve(lambda: Product(args.engine, args.precision, args.threads), (args.engine, "numpy"))


if __name__ == "__main__":
    main()
