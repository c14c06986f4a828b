"""m3-runtime info: what a bundle is."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from m3_runtime.bundle.manifest import Manifest, Parity, ProjectionPrecision, Variant
from m3_runtime.bundle.reader import Bundle
from m3_runtime.cli.arguments import add_parser, add_verify
from m3_runtime.cores import UsableCores, usable_cores
from m3_runtime.cpu import FEATURE_MEANS, cpu_info
from m3_runtime.engines.select import find_variant, is_installed, unmet_needs
from m3_runtime.errors import M3Error
from m3_runtime.records import to_json

_EPILOG = """\
examples:
  m3-runtime info my-bundle
  m3-runtime info my-bundle --json | jq .manifest.space_id
  m3-runtime info my-bundle --verify full
"""


def add_command(commands: Any) -> None:
    """Add `info` to the command line."""
    command = add_parser(
        commands,
        "info",
        run,
        summary="what a bundle is, and what would run here",
        description="What a bundle holds, how faithful its variants are, and which one this machine would run.",
        epilog=_EPILOG,
    )
    command.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder")
    command.add_argument("--json", action="store_true", help="the same for programs: the manifest and this machine")
    add_verify(command)


def run(arguments: argparse.Namespace) -> None:
    """Describe the bundle."""
    bundle = Bundle.open(arguments.bundle, verify=arguments.verify)
    text = _as_json(bundle) if arguments.json else "\n".join(_in_words(bundle))
    sys.stdout.write(text + "\n")


def _as_json(bundle: Bundle) -> str:
    cpu, usable = cpu_info(), usable_cores()
    machine = {
        "cpu": cpu.name,
        "architecture": cpu.architecture,
        "flags": sorted(cpu.flags),
        "x86_level": cpu.x86_level,
        "threads": usable.threads,
        "usable_cores": to_json(usable),
        "variant": _chosen(bundle),
        "unmet_needs": {v.name: [need.value for need in unmet_needs(v)] for v in bundle.manifest.variants},
    }
    return json.dumps({"manifest": to_json(bundle.manifest), "machine": machine}, indent=2, ensure_ascii=False)


def _in_words(bundle: Bundle) -> Iterator[str]:
    manifest = bundle.manifest
    yield from _model_lines(manifest)
    for variant in manifest.variants:
        yield ""
        yield from _variant_lines(variant, manifest)
    cpu, usable = cpu_info(), usable_cores()
    yield ""
    yield f"this machine: {cpu.name} ({cpu.architecture}), {usable.threads} thread{'s' * (usable.threads != 1)}"
    yield from _core_lines(usable)
    yield f"  flags: {cpu.flags_in_words}"
    yield f"  would run: {_chosen(bundle) or 'nothing: no variant of this bundle runs here'}"


def _model_lines(manifest: Manifest) -> Iterator[str]:
    source, geometry = manifest.source, manifest.geometry
    revision = f" at {source.revision}" if source.revision else ""
    width = f", ColBERT width {geometry.colbert_dim}" if geometry.colbert_dim else ""
    yield f"source: {source.name}{revision}"
    yield f"space_id: {manifest.space_id}"
    yield f"heads: {', '.join(head.value for head in manifest.heads)}"
    if manifest.is_reranker:
        yield "score: of a query and a passage together, before the sigmoid"
    else:
        yield f"dense: {manifest.pooling.value} pooling, {'unit length' if manifest.normalize else 'not normalized'}"
    yield (
        f"encoder: {geometry.layers} layers, hidden size {geometry.hidden_size}{width}, "
        f"vocabulary {geometry.vocab_size}, up to {geometry.max_tokens} tokens"
    )
    if (kept := manifest.vocabulary) is not None:
        yield f"pieces: {kept.rows} of {geometry.vocab_size} have a row, {kept.chosen_by}"
        yield f"  texts with no other piece have the vectors of {kept.full_space_id}"
    yield f"size: {_mb(sum(entry.size_bytes for entry in manifest.files))} in {len(manifest.files)} files"


def _variant_lines(variant: Variant, manifest: Manifest) -> Iterator[str]:
    size = sum(entry.size_bytes for entry in manifest.files if entry.path in {variant.graph, *variant.files})
    missing = "" if is_installed(variant.engine) else ", which is not installed here"
    yield f"variant {variant.name}: {variant.precision} on {variant.engine.value}{missing}, {_mb(size)}"
    yield from _need_lines(variant)
    if variant.properties.get("INFERENCE_PRECISION_HINT") == "bf16":
        here = "" if cpu_info().has_bf16 else "; in f32 here, which this processor multiplies faster"
        yield f"  what is not int8 runs in bf16{here}"
    yield from _plan_lines(variant.plan)
    parity = manifest.parity.get(variant.name)
    if parity is None:
        yield "  parity: not measured"
    else:
        yield from _parity_lines(parity, "pairs" if manifest.is_reranker else "texts")
    for figure in manifest.over_budget.get(variant.name, ()):
        yield f"  OVER BUDGET: {figure}"


def _need_lines(variant: Variant) -> Iterator[str]:
    unmet = unmet_needs(variant)
    for need in dict.fromkeys((*variant.needs, *unmet)):
        is_met = "NOT met here: it does not run" if need in unmet else "met here"
        yield f"  needs {need.value} ({FEATURE_MEANS[need]}): {is_met}"


def _plan_lines(plan: tuple[ProjectionPrecision, ...]) -> Iterator[str]:
    """How many projections of each kind have which precision: `ffn_out 20 dynamic, 4 float`."""
    kinds: dict[str, Counter[str]] = {}
    for line in plan:
        kinds.setdefault(line.projection.rpartition(".")[2], Counter())[line.precision] += 1
    for kind, counts in kinds.items():
        yield f"  plan    {kind}: {', '.join(f'{count} {precision}' for precision, count in counts.most_common())}"


def _parity_lines(parity: Parity, what: str) -> Iterator[str]:
    how = "simulated in float, " if parity.is_simulated else ""
    yield f"  parity with PyTorch FP32 on {parity.texts} probe {what} ({how}{parity.tokens} tokens):"
    if parity.dense is not None:
        yield f"    dense   cosine {parity.dense.cosine_mean:.5f}, lowest {parity.dense.cosine_min:.5f}"
    if parity.sparse is not None:
        sparse = parity.sparse
        yield f"    sparse  weighted Jaccard {sparse.jaccard_mean:.4f}, lowest {sparse.jaccard_min:.4f}"
    if parity.colbert is not None:
        colbert = parity.colbert
        yield f"    colbert cosine {colbert.cosine_mean:.5f}, 5th percentile {colbert.cosine_p5:.5f}"
    if parity.score is not None:
        score = parity.score
        mean, p99, most = score.in_spreads
        yield (
            f"    score   difference {mean:.5f}, 99th percentile {p99:.5f}, at most {most:.5f}, in parts of the spread "
            f"(before the sigmoid; scores spread by {score.spread:.3f})"
        )
        yield (
            f"    order   Kendall's tau {score.kendall_tau:.4f}, same best passage {score.top1_same:.1%} (near ties "
            f"aside {score.top1_same_near_ties_aside:.1%}), of the best ten the same {score.top10_overlap:.1%}"
        )


def _core_lines(usable: UsableCores) -> Iterator[str]:
    """Why so many threads."""
    cpus = len(usable.allowed_cpus)
    lost = "" if cpus == usable.machine_cpus else "; affinity or a cpuset keeps the others"
    yield f"  CPUs: {cpus} of {usable.machine_cpus}{lost}"
    if usable.topology is None:
        yield f"  cores: {usable.cores}; nothing here says which CPUs share a core"
    else:
        shared = "" if usable.cores == cpus else ", whose hardware threads count once"
        yield f"  cores: {usable.cores}{shared}, by {usable.topology}"
    if usable.quota is None:
        yield "  CPU quota: none"
    else:
        yield f"  CPU quota: {usable.quota.cpus:g} CPUs, of {usable.quota.group}"
    if len(usable.numa_nodes) > 1:
        sizes = ", ".join(str(len(node)) for node in usable.numa_nodes)
        yield f"  NUMA: nodes of {sizes} CPUs; --workers {len(usable.numa_nodes)} gives each worker one of its own"


def _chosen(bundle: Bundle) -> str | None:
    try:
        return find_variant(bundle).variant.name
    except M3Error:
        return None


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
