"""Who can run: a command, and what is known of it before it does."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from m3_bench.documents import Model, Scenario
from m3_bench.worker_process import Command, own
from m3_runtime import Bundle
from m3_runtime.bundle.manifest import Manifest, Variant
from m3_runtime.cpu import cpu_info
from m3_runtime.engines.select import AUTO, find_variant, unmet_needs
from m3_runtime.errors import InputError

PRODUCTS = ("gemm-onnxruntime", "gemm-openvino")
FP32 = "onnx-fp32"


@dataclass(frozen=True)
class ContenderSpec:
    """A contender before it has run; see `documents.Contender`.

    Attributes:
        key: what scenarios, targets and `--peers` call it.
        heads: that it has; none of a matrix product, which is asked for no texts.
        of: the bundle that it is a variant of; None for others.
    """

    key: str
    name: str
    is_ours: bool
    engine: str
    precision: str
    heads: tuple[str, ...]
    size_bytes: int
    command: Command
    of: Bundle | None = None

    @property
    def is_product(self) -> bool:
        """It multiplies matrices instead of encoding texts."""
        return not self.heads


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


def variants_of(bundle: Bundle, names: Sequence[str], threads: int) -> Iterator[tuple[ContenderSpec, str]]:
    """Yield a bundle's variants, and for each why this processor cannot run it ("" if it can).

    Args:
        bundle: an open bundle.
        names: only these, `auto` among them; all if empty.
        threads: of each.

    Raises:
        InputError: there is no such variant.
    """
    known = [variant.name for variant in bundle.manifest.variants]
    wanted = [auto_variant(bundle) if name == AUTO else name for name in names]
    if unknown := sorted(set(wanted) - set(known)):
        raise InputError(f"the bundle has no variant {unknown[0]!r}; it has {', '.join(known)}")
    for variant in bundle.manifest.variants:
        if not names or variant.name in wanted:
            needs = unmet_needs(variant)
            reason = f"this processor lacks {' and '.join(needs)}" if needs else ""
            yield _variant(bundle, variant, variant.name, threads), reason


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
                f"{str(folder)!r} is of other weights than {str(bundle.folder)!r}; export both from one checkpoint"
            )
        for variant in other.manifest.variants:
            if variant.name in names and variant.precision != "fp32" and not unmet_needs(variant):
                yield _variant(other, variant, f"{other.folder.name} {variant.name}", threads)


def products_of(scenarios: Sequence[Scenario], threads: int) -> tuple[tuple[ContenderSpec, ...], Mapping[str, str]]:
    """The int8 matrix products that scenarios ask for, and why others cannot be made on this processor."""
    absent = {}
    if not cpu_info().has_int8_dot:
        absent["gemm-openvino"] = "no int8 dot product on this processor: OpenVINO's int8 product saturates"
    asked = {key for scenario in scenarios for key in scenario.contenders}
    able = [key for key in PRODUCTS if key in asked and key not in absent]
    return tuple(_product(key, threads) for key in able), absent


def _product(key: str, threads: int) -> ContenderSpec:
    engine = key.removeprefix("gemm-")
    return ContenderSpec(key, f"int8 GEMM on {engine}", False, engine, "int8", (), 0, gemm(engine, "int8", threads))


def gemm(engine: str, precision: str, threads: int) -> Command:
    """The program of a matrix product."""
    return own("gemm", engine=engine, precision=precision, threads=threads)


def keyed(contenders: Sequence[ContenderSpec], bundle: Bundle) -> dict[str, str]:
    """Names by what scenarios and targets call contenders: their keys, and `auto`."""
    names = {contender.key: contender.name for contender in contenders}
    auto = auto_variant(bundle)
    return names | ({AUTO: names[auto]} if auto in names else {})


def resolved(scenarios: Sequence[Scenario], names: Mapping[str, str]) -> tuple[Scenario, ...]:
    """Scenarios with contenders as the run names them; without those that ask nobody of the run."""
    found = []
    for scenario in scenarios:
        present = dict.fromkeys(names[key] for key in scenario.contenders if key in names)
        if present or not scenario.contenders:
            found.append(replace(scenario, contenders=tuple(present)))
    return tuple(found)


def asked_keys(scenarios: Sequence[Scenario], bundle: Bundle, everybody: Iterable[str]) -> set[str]:
    """Keys of contenders that some scenario asks for, `auto` as the variant that it is."""
    asked: set[str] = set()
    for scenario in scenarios:
        asked.update(scenario.contenders or everybody)
    return asked | {auto_variant(bundle)} if AUTO in asked else asked


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
