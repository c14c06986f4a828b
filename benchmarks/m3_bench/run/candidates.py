"""Who can run: a command, and what is known of it before it does."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from m3_bench.bars.stats import flop_per_token
from m3_bench.documents import Model
from m3_bench.worker_process import Command
from m3_runtime import Bundle
from m3_runtime.bundle.manifest import Manifest, Variant
from m3_runtime.engines.select import unmet_needs
from m3_runtime.errors import InputError


@dataclass(frozen=True)
class Candidate:
    """A contender before it has run; see `documents.Contender`."""

    name: str
    is_ours: bool
    engine: str
    precision: str
    heads: tuple[str, ...]
    size_bytes: int
    command: Command


def model_of(manifest: Manifest) -> Model:
    """What a bundle was made of."""
    geometry = manifest.geometry
    flop = flop_per_token(geometry.layers, geometry.hidden_size, geometry.ffn_size)
    return Model(manifest.source.name, manifest.space_id, manifest.source.weights_sha256, flop)


def variants_of(bundle: Bundle, names: Sequence[str], threads: int) -> Iterator[tuple[Candidate, str]]:
    """Yield a bundle's variants, and for each why this processor cannot run it ("" if it can).

    Args:
        bundle: an open bundle.
        names: only these; all if empty.
        threads: of each.

    Raises:
        InputError: there is no such variant.
    """
    known = [variant.name for variant in bundle.manifest.variants]
    if unknown := sorted(set(names) - set(known)):
        raise InputError(f"the bundle has no variant {unknown[0]!r}; it has {', '.join(known)}")
    for variant in bundle.manifest.variants:
        if not names or variant.name in names:
            needs = unmet_needs(variant)
            reason = f"this processor lacks {' and '.join(needs)}" if needs else ""
            yield _candidate(bundle, variant, threads), reason


def _candidate(bundle: Bundle, variant: Variant, threads: int) -> Candidate:
    sizes = {entry.path: entry.size_bytes for entry in bundle.manifest.files}
    arguments = (str(bundle.folder.absolute()), "--variant", variant.name, "--threads", str(threads))
    return Candidate(
        name=variant.name,
        is_ours=True,
        engine=variant.engine.value,
        precision=variant.precision,
        heads=tuple(head.value for head in bundle.manifest.heads),
        size_bytes=sum(sizes[path] for path in {variant.graph, *variant.files}),
        command=Command(Path(sys.executable), "m3_bench.workers.ours", arguments),
    )
