"""Contenders: the command that runs each, and what is known of it beforehand."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from m3_bench.documents import Model, Scenario
from m3_bench.scenarios import ENCODER, SCORE
from m3_bench.worker_process import Command, own
from m3_bench.workers.gemm import ROWS
from m3_runtime import Bundle
from m3_runtime.bundle.manifest import Manifest, Variant
from m3_runtime.cpu import FEATURE_MEANS, cpu_info
from m3_runtime.engines.select import AUTO, find_variant, is_installed, unmet_needs
from m3_runtime.errors import InputError

PRODUCTS = ("gemm-onnxruntime", "gemm-openvino")
FP32 = "onnx-fp32"
NO_INT8_DOT = "no int8 dot product on this processor: OpenVINO's int8 product saturates"


@dataclass(frozen=True)
class ContenderSpec:
    """A contender before it has run; see `documents.Contender`."""

    key: str  # what scenarios, targets and `--peers` call it
    name: str
    is_ours: bool
    engine: str
    precision: str
    heads: tuple[str, ...]  # that it has; none of a matrix product, which is asked for no texts
    size_bytes: int
    command: Command
    of: Bundle | None = None  # the bundle that it is a variant of; None for others

    @property
    def is_product(self) -> bool:
        """It multiplies matrices instead of encoding texts."""
        return not self.heads

    @property
    def gives_vectors(self) -> bool:
        """It encodes texts; a reranker and a product do not."""
        return bool(self.heads) and SCORE not in self.heads


def flop_per_token(layers: int, hidden: int, ffn: int) -> float:
    """Multiplications and additions of one token in the encoder's projections; attention itself is not counted.

    >>> flop_per_token(24, 1024, 4096)  # XLM-R large
    603979776.0
    """
    return 2.0 * layers * (4 * hidden * hidden + 2 * hidden * ffn)


def model_of(manifest: Manifest) -> Model:
    """What a bundle was made of."""
    geometry = manifest.geometry
    flop = flop_per_token(geometry.layers, geometry.hidden_size, geometry.ffn_size)
    return Model(manifest.source.name, manifest.space_id, manifest.source.weights_sha256, flop)


def auto_variant(bundle: Bundle) -> str:
    """The variant that `M3Encoder.open` takes here."""
    return find_variant(bundle).variant.name


def reason_against(variant: Variant) -> str:
    """Why a variant cannot run here; empty if it can."""
    if not is_installed(variant.engine):
        return f"{variant.engine.value} is not installed"
    if needs := unmet_needs(variant):
        words = " and ".join(f"{need.value} ({FEATURE_MEANS[need]})" for need in needs)
        return f"it needs {words}, which this processor ({cpu_info().name}) does not have"
    return ""


def variants_of(bundle: Bundle, names: Sequence[str], threads: int) -> Iterator[tuple[ContenderSpec, str]]:
    """Yield a bundle's variants of these names ("auto" is one; all if empty), and why each cannot run ("" if it can).

    Raises:
        InputError: there is no such variant.
    """
    known = [variant.name for variant in bundle.manifest.variants]
    wanted = [auto_variant(bundle) if name == AUTO else name for name in names] or known
    if unknown := sorted(set(wanted) - set(known)):
        raise InputError(f"the bundle has no variant {unknown[0]!r}; it has {', '.join(known)}")
    for variant in bundle.manifest.variants:
        if variant.name in wanted:
            yield _variant(bundle, variant, variant.name, threads), reason_against(variant)


def variants_of_plans(bundle: Bundle, names: set[str], plans: Sequence[Path], threads: int) -> Iterator[ContenderSpec]:
    """Yield the INT8 variants of these names of other bundles of the same weights, those that can run here.

    Raises:
        InputError: a bundle is of other weights.
        M3Error: a bundle cannot be opened.
    """
    for folder in plans:
        other = Bundle.open(folder)
        if other.manifest.space_id != bundle.manifest.space_id:
            raise InputError(
                f"{str(folder)!r} has different weights than {str(bundle.folder)!r}; export both from one checkpoint"
            )
        for variant in other.manifest.variants:
            if variant.name in names and variant.precision != "fp32" and not reason_against(variant):
                yield _variant(other, variant, f"{other.folder.name} {variant.name}", threads)


def encoder_beside(reranker: Bundle, folder: Path, threads: int) -> ContenderSpec:
    """The encoder, as `M3Encoder.open` opens it, that a reranker of the same size is compared with.

    Raises:
        InputError: the bundle is no encoder's, or of another size.
        M3Error: it cannot be opened, or nothing of it runs here.
    """
    bundle = Bundle.open(folder)
    sizes = [model_of(one.manifest).flop_per_token for one in (reranker, bundle)]
    if bundle.manifest.is_reranker or not reranker.manifest.is_reranker or sizes[0] != sizes[1]:
        raise InputError(f"--encoder {str(folder)!r}: expected an encoder's bundle of the size of BUNDLE, a reranker's")
    variant = find_variant(bundle).variant
    return replace(_variant(bundle, variant, f"{bundle.folder.name} {variant.name}", threads), key=ENCODER)


def products_of(scenarios: Sequence[Scenario], threads: int) -> tuple[tuple[ContenderSpec, ...], Mapping[str, str]]:
    """The int8 matrix products that scenarios ask for, and why others cannot be made on this processor."""
    absent = {} if cpu_info().has_int8_dot else {"gemm-openvino": NO_INT8_DOT}
    asked = {key for scenario in scenarios for key in scenario.contenders} - absent.keys()
    engines = {key: key.removeprefix("gemm-") for key in PRODUCTS if key in asked}
    able = (replace(product(f"int8 GEMM on {engine}", engine, "int8", threads), key=k) for k, engine in engines.items())
    return tuple(able), absent


def product(name: str, engine: str, precision: str, threads: int, rows: int = ROWS) -> ContenderSpec:
    """A matrix product as a contender; see `workers.gemm`."""
    command = own("gemm", engine=engine, precision=precision, threads=threads, rows=rows)
    return ContenderSpec(name, name, False, engine, precision, (), 0, command)


def asked_keys(scenarios: Sequence[Scenario], default: Iterable[str]) -> set[str]:
    """Keys of the contenders that some scenario names; of one that names none, all of `default`."""
    return {key for scenario in scenarios for key in scenario.contenders or default}


def _variant(bundle: Bundle, variant: Variant, name: str, threads: int) -> ContenderSpec:
    sizes = {entry.path: entry.size_bytes for entry in bundle.manifest.files}
    return ContenderSpec(
        key=name,
        name=name,
        is_ours=True,
        engine=variant.engine.value,
        precision=variant.precision,
        heads=tuple(head.value for head in bundle.manifest.heads),
        size_bytes=sum(sizes[path] for path in {variant.graph, *variant.files}),
        command=own("ours", bundle=str(bundle.folder.absolute()), variant=variant.name, threads=threads),
        of=bundle,
    )
