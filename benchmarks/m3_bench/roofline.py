"""This machine's ceilings: one matrix product by each engine in each precision, in turns, exactness checked first.

`ProcessorFacts` is the same in brief, with how fast memory is read.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from m3_bench.documents import Ceiling, Roofline
from m3_bench.errors import WorkerError
from m3_bench.machine import this_machine
from m3_bench.worker_process import Command, WorkerProcess
from m3_bench.workers.gemm import DYNAMIC
from m3_bench.workers.messages import Request
from m3_export.progress import Progress
from m3_runtime.cpu import CpuInfo, cpu_info

PRODUCTS = 10  # in a turn
BETWEEN_S = 0.2
_WAYS = (
    ("onnxruntime", "fp32"), ("openvino", "fp32"), ("torch", "fp32"), ("openvino", "bf16"), ("torch", "bf16"),
    ("onnxruntime", "int8"), ("openvino", "int8"), *(("openvino", precision) for precision in DYNAMIC),
)  # fmt: skip
_MEMORY = ("memory", "read")
_PACKAGES = {
    _MEMORY[0]: ("numpy",),
    "onnxruntime": ("onnxruntime", "onnx"),
    "openvino": ("openvino",),
    "torch": ("torch",),
}


@dataclass(frozen=True)
class ProcessorFacts:
    """What a processor can do; kept beside what plans cost on it.

    Attributes:
        processor: its name.
        flags: instruction sets that matter.
        threads: of every figure.
        versions: releases of the engines.
        flop_per_s: by engine, then precision, the median; what the processor cannot do is absent.
        read_bytes_per_s: of memory, the median.
    """

    processor: str
    flags: tuple[str, ...]
    threads: int
    versions: Mapping[str, str]
    flop_per_s: Mapping[str, Mapping[str, float]]
    read_bytes_per_s: float


@dataclass(frozen=True)
class _Way:
    """An engine in a precision, running."""

    engine: str
    precision: str
    worker: WorkerProcess


@dataclass(frozen=True)
class Measured:
    """The ceilings, every product of them and in brief."""

    roofline: Roofline
    facts: ProcessorFacts


def measure(threads: int, rounds: int, progress: Progress) -> Measured:
    """Time every product that this machine can do, and reading its memory.

    Args:
        threads: of each engine.
        rounds: turns of each; ten products a turn.
        progress: says what takes long.
    """
    found: dict[tuple[str, str], list[float]] = {}
    reasons: dict[tuple[str, str], str] = {}
    with ExitStack() as stack:
        ways = list(_opened(threads, stack, reasons, progress))
        for number in range(rounds + 1):  # the first one is for warming up
            progress.say(f"Round {number} of {rounds}" if number else "Warming up")
            for way in ways:
                time.sleep(BETWEEN_S)
                reply = way.worker.ask(Request(((),) * PRODUCTS, ()))
                if number:
                    speeds = [work / seconds for work, seconds in zip(reply.work, reply.seconds, strict=True)]
                    found.setdefault((way.engine, way.precision), []).extend(speeds)
        versions = {name: release for way in ways for name, release in way.worker.ready.versions.items()}
    ceilings = tuple(Ceiling(*key, tuple(found.get(key, ())), reasons.get(key, "")) for key in _WAYS)
    roofline = Roofline(this_machine(), threads, ceilings)
    return Measured(roofline, _facts(roofline, versions, found[_MEMORY]))


def _facts(roofline: Roofline, versions: Mapping[str, str], read: Sequence[float]) -> ProcessorFacts:
    speeds: dict[str, dict[str, float]] = {}
    for one in roofline.ceilings:
        if one.flop_per_s:
            speeds.setdefault(one.engine, {})[one.precision] = median(one.flop_per_s)
    machine = roofline.machine
    return ProcessorFacts(machine.cpu, machine.flags, roofline.threads, versions, speeds, median(read))


def _opened(threads: int, stack: ExitStack, reasons: dict[tuple[str, str], str], progress: Progress) -> Iterator[_Way]:
    for engine, precision in (*_WAYS, _MEMORY):
        if reason := _why_not(engine, precision, cpu_info()):
            reasons[engine, precision] = reason
            continue
        command = _command(engine, precision, threads)
        errors = stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115 - the stack closes it
        try:
            worker = WorkerProcess.start(f"{precision} on {engine}", command, threads, errors)
        except WorkerError as error:
            reasons[engine, precision] = str(error).splitlines()[0]
            progress.say(f"{precision} on {engine} is left out: {error}")
            continue
        yield _Way(engine, precision, stack.enter_context(worker))


def _command(engine: str, precision: str, threads: int) -> Command:
    more = ("--threads", str(threads))
    if (engine, precision) == _MEMORY:
        return Command(Path(sys.executable), "m3_bench.workers.memory", more)
    return Command(Path(sys.executable), "m3_bench.workers.gemm", (engine, "--precision", precision, *more))


def _why_not(engine: str, precision: str, cpu: CpuInfo) -> str:
    """Why there is no such ceiling here; empty if there is."""
    if missing := [name for name in _PACKAGES[engine] if find_spec(name) is None]:
        return f"{missing[0]} is not installed"
    if precision == "bf16" and not cpu.has_bf16:
        return "this processor has no bf16"
    if engine == "openvino" and precision.startswith("int8") and not cpu.has_int8_dot:
        return "no int8 dot product on this processor: OpenVINO's int8 product saturates"
    return ""
