"""Which variant runs here, and on what."""

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from m3_runtime.bundle.manifest import CpuFeature, EngineName, Manifest, Variant
from m3_runtime.bundle.reader import Bundle
from m3_runtime.cpu import FEATURE_MEANS, CpuInfo, cpu_info
from m3_runtime.engines import DEFAULT_OPENING, FLOAT_PRECISION, Engine, Opening
from m3_runtime.engines.no_telemetry import INSTALL
from m3_runtime.errors import EngineNotInstalledError, InputError, VariantError

_log = logging.getLogger("m3_runtime")

AUTO = "auto"


@dataclass(frozen=True)
class VariantChoice:
    """The variant to run, and the ones that would be better if this processor had what they need."""

    variant: Variant
    passed_over: tuple[Variant, ...] = ()


def is_installed(engine: EngineName) -> bool:
    """Whether the package behind an engine is there; nothing is imported."""
    try:
        return importlib.util.find_spec(engine.value) is not None
    except (ImportError, ValueError):
        return False


def unmet_needs(variant: Variant) -> tuple[CpuFeature, ...]:
    """What a variant, by its manifest, or its engine needs of the processor and this one does not have."""
    of_engine = (CpuFeature.X86,) if variant.engine is EngineName.OPENVINO else ()
    return tuple(need for need in (*variant.needs, *of_engine) if not cpu_info().has(need))


def choose_variant(bundle: Bundle, variant: str = AUTO, engine: str = AUTO) -> Variant:
    """The variant to run. One that this processor cannot run is passed over with a warning, once in a process.

    On a processor without AVX2 a warning says that encoding is slow: SSE4.2 alone is enough (tried in an emulator).

    Args:
        bundle: an open bundle.
        variant: a variant's name, or "auto": the one that its export found fastest on such a processor, else what
            multiplies int8 fastest here (see `_rank`); variants that are over their budget come last.
        engine: "onnxruntime", "openvino", or "auto" for any that is installed.

    Raises:
        InputError: no engine is called that.
        VariantError: no such variant, not on the engine asked for, or this processor lacks what it needs.
        EngineNotInstalledError: the engine that was asked for, or that the variant needs, is not installed.
    """
    choice, cpu = find_variant(bundle, variant, engine), cpu_info()
    if cpu.x86_level == 2:
        _warn_once(
            f"this processor ({cpu.name}) has no {'AVX2' if 'avx' in cpu.flags else 'AVX'}, so encoding is far slower "
            "than elsewhere; a virtual machine may hide it: give it the CPU type 'host'"
        )
    for passed in choice.passed_over:
        _warn_once(
            f"variant {passed.name!r} needs {_in_words(unmet_needs(passed))}, which this processor "
            f"({cpu.name}) does not have; {choice.variant.name!r} runs instead"
        )
    return choice.variant


def find_variant(bundle: Bundle, variant: str = AUTO, engine: str = AUTO) -> VariantChoice:
    """What `choose_variant` chooses and what it passes over, without the warning.

    Arguments and errors are those of `choose_variant`.
    """
    wanted = _engine_name(engine)
    if variant != AUTO:
        return VariantChoice(_named(bundle, variant, wanted))
    fitting = [v for v in bundle.manifest.variants if wanted in (None, v.engine)]
    if not fitting:
        raise VariantError(f"the bundle has no variant for {engine}; it has: {_listed(bundle)}")
    installed = [v for v in fitting if is_installed(v.engine)]
    if not installed:
        raise _not_installed(fitting[0])
    cpu, over_budget = cpu_info(), bundle.manifest.over_budget
    measured = _fastest_first(bundle.manifest, cpu)
    best_first = sorted(
        installed, key=lambda v: (bool(over_budget.get(v.name)), measured.get(v.name, len(measured)), _rank(v, cpu))
    )
    place = next((i for i, v in enumerate(best_first) if not unmet_needs(v)), None)
    if place is None:
        raise _not_capable(bundle, best_first[0])
    return VariantChoice(best_first[place], tuple(best_first[:place]))


def open_engine(bundle: Bundle, variant: Variant, threads: int, opening: Opening = DEFAULT_OPENING) -> Engine:
    """Load a variant's graph on its engine; `threads` are those of all runs together.

    Raises:
        EngineNotInstalledError: the engine's package is missing.
        EngineError: the engine cannot load the graph.
    """
    return open_graph(bundle.file(variant.graph), variant, threads, opening)


def open_graph(graph: Path, variant: Variant, threads: int, opening: Opening = DEFAULT_OPENING) -> Engine:
    """Load a variant's graph from a file that need not be in a bundle; see `open_engine`."""
    match variant.engine:
        case EngineName.ONNXRUNTIME:
            from m3_runtime.engines.ort import OrtEngine

            return OrtEngine.open(graph, variant, threads, opening)
        case EngineName.OPENVINO:
            from m3_runtime.engines.openvino import OpenVinoEngine

            return OpenVinoEngine.open(graph, variant, threads, opening)


@cache
def _warn_once(message: str) -> None:
    """Each text once in the life of the process."""
    _log.warning("%s", message)


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
    if unmet_needs(variant):
        raise _not_capable(bundle, variant)
    return variant


def _not_installed(variant: Variant) -> EngineNotInstalledError:
    return EngineNotInstalledError(
        f"variant {variant.name!r} needs {variant.engine.value}, which is not installed; "
        f"install it: {INSTALL[variant.engine]}"
    )


def _not_capable(bundle: Bundle, variant: Variant) -> VariantError:
    cpu = cpu_info()
    others = ", ".join(v.name for v in bundle.manifest.variants if not unmet_needs(v))
    remedy = (
        f"take variant='auto', or one of: {others}"
        if others
        else "export the checkpoint again, with --variants onnx-int8 or onnx-fp32 too"
    )
    return VariantError(
        f"variant {variant.name!r} needs {_in_words(unmet_needs(variant))}; this processor ({cpu.name}) has "
        f"{cpu.flags_in_words}, and would compute something else than what "
        f"was measured; {remedy}"
    )


def _in_words(needs: Sequence[CpuFeature]) -> str:
    return " and ".join(f"{need.value} ({FEATURE_MEANS[need]})" for need in needs)


def _listed(bundle: Bundle) -> str:
    return ", ".join(f"{v.name} ({v.engine.value})" for v in bundle.manifest.variants)


def _fastest_first(manifest: Manifest, cpu: CpuInfo) -> dict[str, int]:
    """Places of the variants in the order that the export measured; empty if that was on another kind of processor."""
    if manifest.recipe.get("processor") != cpu.multipliers:
        return {}
    names = manifest.recipe.get("fastest_first", "").split(",")
    return {name: place for place, name in enumerate(names) if name}


def _rank(variant: Variant, cpu: CpuInfo) -> int:
    """How well a variant suits a processor; the best comes first.

    On x86 without VNNI or AMX OpenVINO multiplies int8 weights in float; ONNX Runtime multiplies int8, and faster
    (Zen 3, AVX2: 0.21 and 0.16 TFLOP/s).
    """
    if variant.engine is EngineName.ONNXRUNTIME:
        return 3 if variant.precision == FLOAT_PRECISION else 1
    if variant.precision == FLOAT_PRECISION or not cpu.is_x86:
        return 4
    return 0 if cpu.has_int8_dot else 2
