"""Which variant runs here, and on what."""

import importlib.util
from enum import IntEnum

from m3_runtime.bundle import Bundle
from m3_runtime.cpu import CpuInfo, cpu_info
from m3_runtime.engines import Engine
from m3_runtime.errors import EngineNotInstalledError, InputError, VariantError
from m3_runtime.manifest import EngineName, Variant

AUTO = "auto"
_FLOAT = "fp32"

_REMEDY = {
    EngineName.ONNXRUNTIME: "pip install m3-runtime",
    EngineName.OPENVINO: 'pip install "m3-runtime[openvino]"',
}


class _Rank(IntEnum):
    """How well a variant suits this machine; the best comes first."""

    OPENVINO_INT8 = 0
    ONNX_INT8 = 1
    ONNX_FLOAT = 2
    OTHER = 3


def is_installed(engine: EngineName) -> bool:
    """Whether the package behind an engine is there; nothing is imported."""
    try:
        return importlib.util.find_spec(engine.value) is not None
    except (ImportError, ValueError):
        return False


def choose_variant(bundle: Bundle, variant: str = AUTO, engine: str = AUTO) -> Variant:
    """The variant to run.

    Args:
        bundle: an open bundle.
        variant: a variant's name, or "auto": OpenVINO int8 on x86 where it is installed, else ONNX int8, else
            whatever runs; variants that are over their budget come last.
        engine: "onnxruntime", "openvino", or "auto" for any that is installed.

    Raises:
        InputError: no engine is called that.
        VariantError: no such variant, or not on the engine asked for.
        EngineNotInstalledError: the engine that was asked for, or that the variant needs, is not installed.
    """
    wanted = _engine_name(engine)
    if variant != AUTO:
        return _named(bundle, variant, wanted)
    fitting = [v for v in bundle.manifest.variants if wanted in (None, v.engine)]
    if not fitting:
        raise VariantError(f"the bundle has no variant for {engine}; it has: {_listed(bundle)}")
    runnable = [v for v in fitting if is_installed(v.engine)]
    if not runnable:
        raise _not_installed(fitting[0])
    cpu, over_budget = cpu_info(), bundle.manifest.over_budget
    return min(runnable, key=lambda v: (bool(over_budget.get(v.name)), _rank(v, cpu)))


def open_engine(bundle: Bundle, variant: Variant, threads: int) -> Engine:
    """Load a variant's graph on its engine.

    Raises:
        EngineNotInstalledError: the engine's package is missing.
        EngineError: the engine cannot load the graph.
    """
    graph = bundle.file(variant.graph)
    match variant.engine:
        case EngineName.ONNXRUNTIME:
            from m3_runtime.engines.ort import OrtEngine

            return OrtEngine.open(graph, variant.properties, threads, is_int8=variant.precision != _FLOAT)
        case EngineName.OPENVINO:
            from m3_runtime.engines.openvino import OpenVinoEngine

            return OpenVinoEngine.open(graph, variant.properties, threads)


def _engine_name(engine: str) -> EngineName | None:
    if engine == AUTO:
        return None
    try:
        return EngineName(engine)
    except ValueError as error:
        names = ", ".join(repr(e.value) for e in EngineName)
        raise InputError(f"engine must be 'auto' or one of {names}, got {engine!r}") from error


def _named(bundle: Bundle, name: str, wanted: EngineName | None) -> Variant:
    variant = bundle.variant(name)
    if wanted not in (None, variant.engine):
        raise VariantError(
            f"variant {name!r} runs on {variant.engine.value}, not on {wanted.value if wanted else ''}; "
            f"the bundle has: {_listed(bundle)}"
        )
    if not is_installed(variant.engine):
        raise _not_installed(variant)
    return variant


def _not_installed(variant: Variant) -> EngineNotInstalledError:
    return EngineNotInstalledError(
        f"variant {variant.name!r} needs {variant.engine.value}, which is not installed; "
        f"install it: {_REMEDY[variant.engine]}"
    )


def _listed(bundle: Bundle) -> str:
    return ", ".join(f"{v.name} ({v.engine.value})" for v in bundle.manifest.variants)


def _rank(variant: Variant, cpu: CpuInfo) -> _Rank:
    is_float = variant.precision == _FLOAT
    if variant.engine is EngineName.OPENVINO:
        return _Rank.OPENVINO_INT8 if cpu.is_x86 and not is_float else _Rank.OTHER
    return _Rank.ONNX_FLOAT if is_float else _Rank.ONNX_INT8
