"""The processor's ceiling: one int8 matrix product, M=2048, K=1024, N=4096, as fast as an engine can do it exactly.

A product counts only if its numbers are right, so each engine's is compared with numpy's before it is timed.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_bench.workers.serve import serve
from m3_runtime.engines.no_telemetry import without_telemetry
from m3_runtime.engines.ort import session_config

ROWS, DEPTH, COLUMNS = 2048, 1024, 4096
FLOP = 2 * ROWS * DEPTH * COLUMNS
_CHECKED_ROWS = 64
_ZERO_POINT = 128
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
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in session_config({}, is_int8=True).items():
        options.add_session_config_entry(key, value)
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
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.Core().compile_model(model, "CPU", config).create_infer_request()
    centred = rows.astype(np.float32) - _ZERO_POINT

    def multiply() -> NDArray[Any]:
        request.infer([centred], share_inputs=True)
        return np.asarray(request.get_output_tensor(0).data)

    return multiply


ENGINES = {"onnxruntime": on_onnxruntime, "openvino": on_openvino}


class Product:
    """One engine's product, known to be exact."""

    def __init__(self, engine: str, threads: int) -> None:
        rows, weights = operands()
        self._multiply = ENGINES[engine](rows, weights, threads)
        got = self._multiply()[:_CHECKED_ROWS]
        if not np.array_equal(got, exact_rows(rows, weights)):
            raise ArithmeticError(f"{engine}'s int8 product is not exact on this processor, so it is no ceiling")

    def run(self, _texts: Sequence[str], _heads: Sequence[str]) -> None:
        """See `serve.Encoder.run`."""
        self._multiply()

    def inspect(self, _result: None) -> tuple[float, Sequence[float]]:
        """See `serve.Encoder.inspect`."""
        return float(FLOP), ()


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=tuple(ENGINES))
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    serve(lambda: Product(args.engine, args.threads), (args.engine, "numpy"))


if __name__ == "__main__":
    main()
