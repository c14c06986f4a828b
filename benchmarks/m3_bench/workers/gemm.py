"""The processor's ceilings: one matrix product, M=2048, K=1024, N=4096, as fast as an engine can do it; and memory.

A product counts only if its numbers are right, so each engine's is compared with numpy's before it is timed: int8 to
the last bit, fp32 and bf16 within what their mantissas allow, dynamic int8 within what rounding to 8 bits does.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_bench.workers.serve import Encoder, serve
from m3_runtime.engines.no_telemetry import without_telemetry
from m3_runtime.engines.openvino import compile_properties
from m3_runtime.engines.ort import session_options

ROWS, INNER, COLUMNS = 2048, 1024, 4096
FLOP = 2 * ROWS * INNER * COLUMNS
DYNAMIC = {"int8 dynamic, 128": 128, "int8 dynamic, 256": 256, f"int8 dynamic, {INNER}": INNER}  # values of a group
TOLERANCE = {"int8": 0.0, "fp32": 1e-5, "bf16": 2e-2, **dict.fromkeys(DYNAMIC, 2e-2)}  # of the largest element
MEMORY = "memory"
READ_BYTES = 2**29  # more than caches hold
_CHECKED_ROWS = 64
_ZERO_POINT = 128
Array = NDArray[Any]
Multiply = Callable[[], Array]


def operands(precision: str, rows: int = ROWS) -> tuple[Array, Array]:
    """Seeded rows (M, K) and weights (K, N): integers over their whole ranges, what saturates shall show; or floats."""
    rng, shapes = np.random.default_rng(0), ((rows, INNER), (INNER, COLUMNS))
    if precision == "int8":
        return rng.integers(0, 256, shapes[0], dtype=np.uint8), rng.integers(-127, 128, shapes[1], dtype=np.int8)
    return rng.standard_normal(shapes[0], dtype=np.float32), rng.standard_normal(shapes[1], dtype=np.float32)


def exact_rows(rows: Array, weights: Array) -> Array:
    """The first rows of the product, as numpy computes it in float64, which holds these integers; of uint8 less 128."""
    shift = _ZERO_POINT if rows.dtype == np.uint8 else 0
    return (rows[:_CHECKED_ROWS].astype(np.float64) - shift) @ weights.astype(np.float64)


def on_onnxruntime(rows: Array, weights: Array, _precision: str, threads: int) -> Multiply:
    """MatMulInteger or MatMul, with the session options that the runtime gives such graphs here."""
    with without_telemetry():
        import onnxruntime
    from onnx import numpy_helper, parser

    is_int8 = rows.dtype == np.uint8
    product, constants = "MatMul(rows, weights)", {"weights": weights}
    if is_int8:
        product, constants["zero_point"] = "MatMulInteger(rows, weights, zero_point)", np.array(_ZERO_POINT, np.uint8)
    kinds = "uint8[M, K] rows) => (int32[M, N] product" if is_int8 else "float[M, K] rows) => (float[M, N] product"
    model = parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]> gemm ({kinds}) {{ product = {product} }}')
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    options = session_options({}, threads, is_int8=is_int8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["product"], {"rows": rows})[0]


def on_openvino(rows: Array, weights: Array, precision: str, threads: int) -> Multiply:
    """FP32, BF16, static int8 (FakeQuantize in steps of one, so products are integers), or dynamic int8 (groups)."""
    with without_telemetry():
        import openvino
        from openvino import opset13 as ops

    x = ops.parameter([-1, INNER], np.float32)
    left, properties = x, {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
    if precision == "int8":
        rows = rows.astype(np.float32) - _ZERO_POINT
        low, high = np.float32(-_ZERO_POINT), np.float32(255 - _ZERO_POINT)
        left = ops.fake_quantize(x, low, high, low, high, levels=256)
        right = ops.multiply(ops.convert(ops.constant(weights), np.float32), np.float32(1.0))
    elif precision in DYNAMIC:
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = str(DYNAMIC[precision])
        scales = np.abs(weights).max(axis=0, keepdims=True) / np.float32(127)
        whole = ops.constant(np.round(weights / scales).astype(np.int8))
        right = ops.multiply(ops.convert(whole, np.float32), ops.constant(scales))
    else:
        right = ops.constant(weights)
    model = openvino.Model([ops.matmul(left, right, False, False)], [x])
    compiled = openvino.Core().compile_model(model, "CPU", compile_properties(properties, threads))
    request = compiled.create_infer_request()

    def multiply() -> Array:
        request.infer([rows], share_inputs=True)
        return np.asarray(request.get_output_tensor(0).data)

    return multiply


ENGINES: Mapping[str, Callable[[Array, Array, str, int], Multiply]] = {
    "onnxruntime": on_onnxruntime,
    "openvino": on_openvino,
}


class Product(Encoder):
    """One engine's product, known to be right. Its work is FLOP."""

    def __init__(self, engine: str, precision: str, threads: int, rows: int = ROWS) -> None:
        """Make the product and compare it with numpy's.

        Raises:
            ArithmeticError: it is further off than the precision explains.
        """
        self.packages, self._flop = (engine, "numpy"), 2.0 * rows * INNER * COLUMNS
        left, weights = operands(precision, rows)
        self._multiply = ENGINES[engine](left, weights, precision, threads)
        exact = exact_rows(left, weights)
        off = float(np.abs(self._multiply()[:_CHECKED_ROWS] - exact).max() / np.abs(exact).max())
        if not off <= TOLERANCE[precision]:
            raise ArithmeticError(f"{engine}'s {precision} product is off by {off:.1g} of its largest element")

    def run(self, _texts: Sequence[str], _heads: Sequence[str]) -> None:
        self._multiply()

    def work(self, _result: None) -> float:
        return self._flop


class Reading(Encoder):
    """How fast memory is read: the dot product of an array with itself, each thread a part. Its work is bytes."""

    packages = ("numpy",)

    def __init__(self, threads: int) -> None:
        self._parts = np.array_split(np.ones(READ_BYTES // 4, dtype=np.float32), threads)
        self._pool = ThreadPoolExecutor(threads)

    def run(self, _texts: Sequence[str], _heads: Sequence[str]) -> float:
        return float(sum(self._pool.map(lambda part: np.dot(part, part), self._parts)))  # numpy lets other threads run

    def work(self, result: float) -> float:
        if not np.isclose(result, READ_BYTES // 4, rtol=1e-3):
            raise ArithmeticError(f"the sum of {READ_BYTES // 4} ones came out as {result}")
        return float(READ_BYTES)


def open_ceiling(engine: str, **options: Any) -> Encoder:
    """A product of an engine, or of the engine "memory" reading it."""
    return Reading(options["threads"]) if engine == MEMORY else Product(engine, **options)


if __name__ == "__main__":
    serve(open_ceiling)
