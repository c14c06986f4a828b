"""This machine's ceilings: one matrix product by each engine in each precision, in turns, exactness checked first."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from statistics import median
from typing import Any

from m3_bench.documents import Ceiling, Roofline, Scenario, ScenarioRun
from m3_bench.errors import WorkerError
from m3_bench.machine import this_machine
from m3_bench.run.contenders import NO_INT8_DOT, product
from m3_bench.run.turns import PRODUCTS_PER_ROUND, measure_group
from m3_bench.workers.gemm import COLUMNS, DYNAMIC, INNER, MEMORY, READ_BYTES, ROWS
from m3_runtime.cpu import cpu_info
from m3_runtime.io.progress import Progress

_READING = (MEMORY, "read")
_PRODUCTS = (
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("onnxruntime", "int8"),
    ("openvino", "int8"),
    *(("openvino", precision) for precision in DYNAMIC),
)
_PACKAGES = {
    MEMORY: ("numpy",),
    "onnxruntime": ("onnxruntime", "onnx"),
    "openvino": ("openvino",),
}


@dataclass(frozen=True)
class Measured:
    """The ceilings, with the releases of the engines, and how fast memory is read, the median."""

    roofline: Roofline
    versions: Mapping[str, str]
    read_bytes_per_s: float

    def facts(self) -> dict[str, Any]:
        """What is kept beside what plans cost on a processor: FLOP/s by engine and precision are medians."""
        speeds: dict[str, dict[str, float]] = {}
        for one in self.roofline.ceilings:
            if one.flop_per_s:
                speeds.setdefault(one.engine, {})[one.precision] = median(one.flop_per_s)
        return {
            "processor": self.roofline.machine.cpu,
            "flags": list(self.roofline.machine.flags),
            "threads": self.roofline.threads,
            "versions": dict(self.versions),
            "flop_per_s": speeds,
            "read_bytes_per_s": self.read_bytes_per_s,
        }


def measure(threads: int, rounds: int, progress: Progress, rows: int = ROWS) -> Measured:
    """Time every product that this machine can do, with so many rows (tokens in a model), and reading its memory.

    Raises:
        WorkerError: memory could not be read.
    """
    reasons = {one: _why_not(*one) for one in (*_PRODUCTS, _READING)}
    able = {
        (engine, precision): product(f"{precision} on {engine}", engine, precision, threads, rows)
        for (engine, precision), reason in reasons.items()
        if not reason
    }
    names = tuple(contender.name for contender in able.values())
    with progress.step(f"{len(able)} matrix products and memory reads, in {rounds} rounds"):
        scenario = Scenario("products", "matrix products", (), (), PRODUCTS_PER_ROUND, contenders=names)
        found = measure_group([scenario], list(able.values()), None, rounds, threads)
    runs = {one: found[scenario.name, contender.name] for one, contender in able.items()}
    for one, run in runs.items():
        reasons[one] = " ".join(run.error.split())
        if run.error:
            progress.say(f"{able[one].name} is left out: {run.error}")
    if reasons[_READING]:
        raise WorkerError(reasons[_READING])
    flop = 2 * rows * INNER * COLUMNS
    ceilings = tuple(Ceiling(*one, _per_s(flop, runs.get(one)), reasons[one]) for one in _PRODUCTS)
    versions = {name: metadata.version(name) for name in sorted({n for engine, _ in able for n in _PACKAGES[engine]})}
    return Measured(Roofline(this_machine(), threads, ceilings), versions, median(_per_s(READ_BYTES, runs[_READING])))


def _per_s(work: int, run: ScenarioRun | None) -> tuple[float, ...]:
    """Work per second of every product that counts."""
    if run is None or run.error:
        return ()
    return tuple(work / seconds for one in run.rounds for seconds in one.seconds)


def _why_not(engine: str, precision: str) -> str:
    """Why there is no such ceiling here; empty if there is."""
    if missing := [name for name in _PACKAGES[engine] if find_spec(name) is None]:
        return f"{missing[0]} is not installed"
    if precision == "bf16" and not cpu_info().has_bf16:
        return "this processor has no bf16"
    if engine == "openvino" and precision.startswith("int8") and not cpu_info().has_int8_dot:
        return NO_INT8_DOT
    return ""
