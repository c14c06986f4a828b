"""The report of a finished export, for people and as JSON."""

import sys
from typing import Any

from m3_export.pipeline import Export
from m3_export.quantize.embedding import widest_group
from m3_runtime.bundle.manifest import DegenerateParity, Manifest, Parity, Variant
from m3_runtime.records import to_json

MEBIBYTE = 1 << 20
_VECTORS = f"{'dense mean':>10} {'min':>9}  {'ColBERT p5':>10} {'min':>9}  {'sparse Jaccard':>14} {'top-5':>6}"
_SCORES = (
    f"{'score mean':>10} {'p99':>9} {'max':>9}  {'Kendall tau':>11}  {'top-1':>6} {'ties aside':>10}  {'top-10':>6}"
)


def export_json(export: Export) -> dict[str, Any]:
    """The manifest's facts, the bundle's folder, what is over budget, warnings, and the process's peak memory."""
    manifest = export.bundle.manifest
    return {
        "bundle": str(export.bundle.folder),
        "space_id": manifest.space_id,
        "source": {"name": manifest.source.name, "revision": manifest.source.revision},
        "pooling": manifest.pooling.value,
        "normalize": manifest.normalize,
        "heads": [head.value for head in manifest.heads],
        "geometry": to_json(manifest.geometry),
        "tokenizer": to_json(manifest.tokenizer),
        "variants": {
            v.name: {
                "engine": v.engine.value,
                "size_bytes": _size_bytes(export, v),
                "parity": to_json(manifest.parity[v.name]),
                "over_budget": [str(excess) for excess in export.excesses.get(v.name, ())],
            }
            for v in manifest.variants
        },
        "vocabulary": to_json(manifest.vocabulary),
        "budget": manifest.recipe["budget"],
        "warnings": list(export.warnings),
        "tools": dict(manifest.tools),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def export_text(export: Export) -> str:
    """A table of parity per variant."""
    manifest = export.bundle.manifest
    first = next(iter(manifest.parity.values()))
    kind = "reranker" if manifest.is_reranker else f"pooling {manifest.pooling.value}"
    what = "pairs" if manifest.is_reranker else "texts"
    lines = [
        "",
        f"Bundle {export.bundle.folder}: {manifest.source.name}, {kind}, {manifest.space_id}",
        f"Parity with PyTorch FP32 on {first.texts} probe {what} ({first.tokens} tokens) on {first.measured_on}:",
    ]
    if first.score:
        lines += [
            "Differences of scores before the sigmoid, in parts of the scores' spread (their standard deviation, "
            f"{first.score.spread:.4f}), as the budget has them.",
        ]
    lines += ["", f"{'variant':<14} {'MiB':>6}  {_SCORES if first.score else _VECTORS}  {'alone = batch':>13}"]
    for variant in manifest.variants:
        lines.append(_row(variant, manifest.parity[variant.name], _size_bytes(export, variant)))
        lines += [f"  OVER BUDGET (allowed): {excess}" for excess in export.excesses.get(variant.name, ())]
    lines += ["", *_degenerate_lines(export), f"budget: {manifest.recipe['budget']}"]
    lines += _vocabulary_lines(manifest)
    lines += [*(f"WARNING: {warning}" for warning in export.warnings), ""]
    return "\n".join(lines)


def _vocabulary_lines(manifest: Manifest) -> list[str]:
    """How many pieces have a row, what that saves, and what it costs the probe texts of each language."""
    kept = manifest.vocabulary
    if kept is None:
        return []
    total, width = manifest.geometry.vocab_size, manifest.geometry.hidden_size
    saved = {v.name: (total - kept.rows) * _row_bytes(v, width) / MEBIBYTE for v in manifest.variants}
    lines = [
        "",
        f"{kept.rows} of {total} pieces have a row ({kept.chosen_by}); the word embedding is smaller by "
        + ", ".join(f"{size:.1f} MiB ({name})" for name, size in saved.items()),
        f"{'probe texts in':<14} {'texts':>6} {'exact':>6}   dense cosine of the others to the full model's, in FP32",
    ]
    for language, loss in kept.loss.items():
        rest = f"mean {loss.cosine_mean:.4f}, min {loss.cosine_min:.4f}" if loss.exact < loss.texts else "-"
        lines.append(f"{language:<14} {loss.texts:>6} {loss.exact / loss.texts:>6.0%}   {rest}")
    return lines


def _row_bytes(variant: Variant, width: int) -> int:
    """Bytes of a row of the word embedding: float32, or int8 with a float16 scale for each group."""
    return 4 * width if variant.precision == "fp32" else width + 2 * (width // widest_group(width))


def _degenerate_lines(export: Export) -> list[str]:
    """How the variants do on degenerate texts: one character, a word repeated, digits, code."""
    manifest = export.bundle.manifest
    return [
        f"{name}: {found.below} of {found.in_words(is_reranker=manifest.is_reranker)} "
        f"({_degenerate_figures(found, is_reranker=manifest.is_reranker)})"
        for name, parity in manifest.parity.items()
        if (found := parity.degenerate) is not None
    ]


def _degenerate_figures(found: DegenerateParity, *, is_reranker: bool) -> str:
    if not is_reranker:
        return f"dense cosine mean {found.cosine_mean:.6f}, min {found.cosine_min:.6f}"
    root, most = found.difference(found.cosine_mean), found.difference(found.cosine_min)
    return f"difference ÷ spread: root mean square {root:.4f}, max {most:.4f}"


def _row(variant: Variant, parity: Parity, size_bytes: int) -> str:
    if score := parity.score:
        mean, p99, most = score.in_spreads
        figures = (
            f"{mean:>10.2g} {p99:>9.2g} {most:>9.2g}  "
            f"{score.kendall_tau:>11.4f}  {score.top1_same:>6.1%} {score.top1_same_near_ties_aside:>10.1%}  "
            f"{score.top10_overlap:>6.1%}"
        )
        return f"{variant.name:<14} {size_bytes / MEBIBYTE:>6.0f}  {figures}  {parity.batch_invariance_min:>13.7f}"
    dense = f"{parity.dense.cosine_mean:>10.6f} {parity.dense.cosine_min:>9.6f}" if parity.dense else " " * 20
    colbert = f"{parity.colbert.cosine_p5:>10.6f} {parity.colbert.cosine_min:>9.6f}" if parity.colbert else " " * 20
    sparse = f"{parity.sparse.jaccard_mean:>14.5f} {parity.sparse.top5_same:>6.0%}" if parity.sparse else " " * 21
    return (
        f"{variant.name:<14} {size_bytes / MEBIBYTE:>6.0f}  {dense}  {colbert}  {sparse}  "
        f"{parity.batch_invariance_min:>13.7f}"
    )


def _size_bytes(export: Export, variant: Variant) -> int:
    sizes = {entry.path: entry.size_bytes for entry in export.bundle.manifest.files}
    return sum(sizes[path] for path in variant.files)


def peak_memory_bytes() -> int | None:
    """Highest resident memory of this process so far; None where the system does not report it."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
