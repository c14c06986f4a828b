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
from m3_bench.run.contenders import ContenderSpec, gemm
from m3_bench.run.turns import PRODUCTS_PER_ROUND, measure_group
from m3_bench.worker_process import own
from m3_bench.workers.gemm import DYNAMIC, FLOP
from m3_bench.workers.memory import BYTES
from m3_runtime.cpu import CpuInfo, cpu_info
from m3_runtime.io.progress import Progress

_MEMORY = ("memory", "read")
_PRODUCTS = (
    ("onnxruntime", "fp32"), ("openvino", "fp32"), ("torch", "fp32"), ("openvino", "bf16"), ("torch", "bf16"),
    ("onnxruntime", "int8"), ("openvino", "int8"), *(("openvino", precision) for precision in DYNAMIC),
)  # fmt: skip
_PACKAGES = {
    _MEMORY[0]: ("numpy",),
    "onnxruntime": ("onnxruntime", "onnx"),
    "openvino": ("openvino",),
    "torch": ("torch",),
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


def measure(threads: int, rounds: int, progress: Progress) -> Measured:
    """Time every product that this machine can do, and reading its memory.

    Args:
        threads: of each engine.
        rounds: turns of each; ten products a turn.
        progress: says what takes long.

    Raises:
        WorkerError: memory could not be read.
    """
    reasons = {one: _why_not(*one, cpu_info()) for one in (*_PRODUCTS, _MEMORY)}
    able = {one: _contender(*one, threads) for one, reason in reasons.items() if not reason}
    with progress.step(f"{len(able)} ways of multiplying and reading, in {rounds} rounds"):
        names = tuple(contender.name for contender in able.values())
        scenario = Scenario("products", "matrix products", (), (), PRODUCTS_PER_ROUND, contenders=names)
        found = measure_group([scenario], list(able.values()), None, rounds, threads)
    runs = {one: found[scenario.name, contender.name] for one, contender in able.items()}
    for one, run in runs.items():
        reasons[one] = " ".join(run.error.split())
        if run.error:
            progress.say(f"{able[one].name} is left out: {run.error}")
    if reasons[_MEMORY]:
        raise WorkerError(reasons[_MEMORY])
    ceilings = tuple(Ceiling(*one, _per_s(FLOP, runs.get(one)), reasons[one]) for one in _PRODUCTS)
    roofline = Roofline(this_machine(), threads, ceilings)
    engines = {name for engine, _ in able for name in _PACKAGES[engine]}
    versions = {name: metadata.version(name) for name in sorted(engines)}
    return Measured(roofline, versions, median(_per_s(BYTES, runs[_MEMORY])))


def _per_s(work: int, run: ScenarioRun | None) -> tuple[float, ...]:
    """Work per second of every product that counts."""
    if run is None or run.error:
        return ()
    return tuple(work / seconds for one in run.rounds for seconds in one.seconds)


def _contender(engine: str, precision: str, threads: int) -> ContenderSpec:
    command = own("memory", threads=threads) if engine == _MEMORY[0] else gemm(engine, precision, threads)
    name = f"{precision} on {engine}"
    return ContenderSpec(name, name, False, engine, precision, (), 0, command)


def _why_not(engine: str, precision: str, cpu: CpuInfo) -> str:
    """Why there is no such ceiling here; empty if there is."""
    if missing := [name for name in _PACKAGES[engine] if find_spec(name) is None]:
        return f"{missing[0]} is not installed"
    if precision == "bf16" and not cpu.has_bf16:
        return "this processor has no bf16"
    if engine == "openvino" and precision.startswith("int8") and not cpu.has_int8_dot:
        return "no int8 dot product on this processor: OpenVINO's int8 product saturates"
    return ""
