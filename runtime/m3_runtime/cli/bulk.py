"""m3-runtime bulk: large files to shards of vectors."""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from m3_runtime.bulk.cluster import DEFAULT_ACTOR_THREADS, BundleOnNode, Cluster, encode_on_cluster
from m3_runtime.bulk.encode import Limits
from m3_runtime.bulk.job import ColbertDtype, DenseDtype, Job, OnLong, VectorSettings
from m3_runtime.bulk.progress import ProgressBar
from m3_runtime.bulk.rows import Columns
from m3_runtime.bulk.run import BulkSummary, Encode, encode_here, run_job
from m3_runtime.bulk.sources import SourceFormat, find_sources
from m3_runtime.bulk.workers import encode_in_processes
from m3_runtime.bundle.manifest import Head, Manifest, Variant
from m3_runtime.bundle.reader import Bundle, Verify
from m3_runtime.cli.arguments import add_batching, add_bundle, integer
from m3_runtime.cpu import default_threads
from m3_runtime.encode.options import checked_max_length
from m3_runtime.encoder import M3Encoder
from m3_runtime.engines.select import choose_variant
from m3_runtime.errors import HeadError

E = TypeVar("E", bound=StrEnum)

_SHARD_ROWS, _COLBERT_SHARD_ROWS = 10_000, 1_000

_DESCRIPTION = """\
Encode large files into Parquet shards, in constant memory.

Inputs are JSONL, Parquet or text files (every line is a text), or folders of them; the name's ending says which, and
.gz is unpacked. OUT/vectors then holds the shards, OUT/rejected.jsonl the rows that could not be encoded and why, and
OUT/journal.jsonl says what is done. Whatever stops the job, the same command goes on; no row is lost or doubled.
"""

_EPILOG = """\
examples:
  m3-runtime bulk my-bundle docs.jsonl -o docs-vectors
  m3-runtime bulk my-bundle part-*.parquet -o out --text body --id doc_id --heads dense,sparse
  m3-runtime bulk my-bundle corpus/ -o out --heads dense,sparse,colbert --colbert-dtype int8 --colbert-pool 2
  m3-runtime bulk my-bundle corpus/ -o out --workers 4          # on a machine of many cores
  m3-runtime bulk my-bundle corpus/ -o out --ray                # on the nodes of a Ray cluster

columns of a shard:
  id string, tokens int32, dense_vecs list of H floats, lexical_weights list of {id int32, weight float32},
  colbert_vecs list of lists of C float16, or int8 with colbert_scales
  the schema's metadata has m3.space_id and m3.variant
  read them with pyarrow.dataset.dataset("OUT/vectors"), DuckDB, Polars or Spark; docs/bulk.md shows how

A row without an id is called by its place, "FILE:number".
"""


def add_command(commands: Any) -> None:
    """Add `bulk` to the command line."""
    command = commands.add_parser(
        "bulk",
        help="large files to Parquet shards, resumable (extra bulk)",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_bundle(command)
    command.add_argument("inputs", metavar="INPUT", nargs="+", help="a file or folder")
    command.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="the job's folder")
    _add_input(command)
    _add_vectors(command)
    command.add_argument(
        "--shard-rows",
        type=integer(1),
        metavar="N",
        help=f"rows of a shard (default: {_SHARD_ROWS}, with ColBERT {_COLBERT_SHARD_ROWS})",
    )
    command.add_argument(
        "--workers",
        type=integer(1),
        metavar="N",
        help="processes that encode, each with the model in memory and its share of the cores (default: 1; with --ray "
        "as many as the nodes have room for)",
    )
    _add_cluster(command)
    command.add_argument("--strict", action="store_true", help="stop at a bad row instead of putting it aside")
    command.add_argument("--quiet", action="store_true", help="no progress, no summary")
    add_batching(command)
    command.set_defaults(run=run)


def _add_input(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("reading")
    group.add_argument(
        "--input-format",
        type=_one_of(SourceFormat),
        metavar="FORMAT",
        help="jsonl, parquet or lines, for every file (default: by its ending; lines if that says nothing)",
    )
    group.add_argument("--text", default="text", metavar="NAME", help="column of the texts (default: %(default)s)")
    group.add_argument("--id", metavar="NAME", help='column of the ids (default: "id" where there is one)')


def _add_cluster(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("a Ray cluster (extra ray)")
    group.add_argument(
        "--ray",
        action="store_true",
        help="encode on the nodes of a Ray cluster: each worker takes as many of Ray's CPUs as it has --threads "
        f"(default: {DEFAULT_ACTOR_THREADS}). BUNDLE and OUT must be at the same path on every node, inputs need not",
    )
    group.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="of the cluster; means --ray (default: RAY_ADDRESS, or the cluster that runs here, or a new one on this "
        "machine)",
    )


def _add_vectors(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("vectors")
    group.add_argument(
        "--heads",
        type=_heads,
        default=(Head.DENSE,),
        metavar="LIST",
        help="comma-separated: dense, sparse, colbert (default: dense)",
    )
    group.add_argument(
        "--max-length", type=integer(3), metavar="N", help="tokens per text, both specials included (default: 512)"
    )
    group.add_argument(
        "--on-truncate",
        type=_one_of(OnLong),
        default=OnLong.TRUNCATE,
        metavar="WHAT",
        help="truncate longer texts and count them, or reject them as bad rows (default: truncate)",
    )
    group.add_argument(
        "--dense-dtype",
        type=_one_of(DenseDtype),
        default=DenseDtype.FLOAT32,
        metavar="TYPE",
        help="float32 or float16 (default: float32)",
    )
    group.add_argument(
        "--colbert-dtype",
        type=_one_of(ColbertDtype),
        default=ColbertDtype.FLOAT16,
        metavar="TYPE",
        help="float16, or int8 with a scale for each row: half of that (default: float16)",
    )
    group.add_argument(
        "--colbert-pool",
        type=integer(1),
        default=1,
        metavar="N",
        help="make one ColBERT row of N that are alike, on average; docs/bulk.md: what is lost (default: 1, keep all)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Do the job that the arguments name, or what is left of it."""
    bundle = Bundle.open(arguments.bundle, verify=arguments.verify)
    variant = choose_variant(bundle, arguments.variant, arguments.engine)
    job = _job(bundle.manifest, variant, arguments)
    encoders = partial(_encoders(bundle, variant, arguments), job, Limits(arguments.batch_size, arguments.token_budget))
    with ProgressBar(is_shown=not arguments.quiet) as bar:
        summary = run_job(job, arguments.output, encoders, bar, strict=arguments.strict)
    if not arguments.quiet:
        sys.stderr.writelines(f"m3-runtime: {line}\n" for line in _said(summary))


def _encoders(
    bundle: Bundle, variant: Variant, arguments: argparse.Namespace
) -> Callable[[Job, Limits], AbstractContextManager[Encode]]:
    """What encodes: this process, processes of its own, or a cluster."""
    cache_dir, low_memory = arguments.cache_dir, arguments.low_memory
    if arguments.ray or arguments.ray_address:
        on_node = BundleOnNode(
            bundle.folder.resolve(),
            Verify(arguments.verify),
            variant.name,
            cache_dir and Path(cache_dir).resolve(),
            low_memory=low_memory,
            streams=arguments.streams,
        )
        cluster = Cluster(arguments.ray_address, arguments.workers, arguments.threads)
        return partial(encode_on_cluster, on_node, cluster)
    workers = arguments.workers or 1
    threads = arguments.threads or max(1, default_threads() // workers)
    how = {"cache_dir": cache_dir, "low_memory": low_memory, "streams": arguments.streams}
    open_encoder = partial(M3Encoder.from_bundle, bundle, variant, threads, **how)
    if workers > 1:
        return partial(encode_in_processes, open_encoder, workers)
    return partial(encode_here, open_encoder)


def _job(manifest: Manifest, variant: Variant, arguments: argparse.Namespace) -> Job:
    for head in arguments.heads:
        if head not in manifest.heads:
            names = ", ".join(one.value for one in manifest.heads)
            raise HeadError(f"the bundle has no {head.value} head; it has: {names}")
    default_rows = _COLBERT_SHARD_ROWS if Head.COLBERT in arguments.heads else _SHARD_ROWS
    return Job(
        space_id=manifest.space_id,
        variant=variant.name,
        vectors=VectorSettings(
            heads=arguments.heads,
            max_length=checked_max_length(arguments.max_length, manifest.geometry.max_tokens, "--max-length"),
            on_long=arguments.on_truncate,
            dense_dtype=arguments.dense_dtype,
            colbert_dtype=arguments.colbert_dtype,
            colbert_pool=arguments.colbert_pool,
        ),
        shard_rows=arguments.shard_rows or default_rows,
        columns=Columns(arguments.text, arguments.id),
        sources=find_sources(arguments.inputs, arguments.input_format),
    )


def _said(summary: BulkSummary) -> Sequence[str]:
    lines = [f"{summary.rows} rows in {summary.shards} shards, {summary.tokens} tokens"]
    if summary.already_done:
        lines.append(f"{summary.already_done} shards were done already")
    if summary.taken_away:
        lines.append(f"{summary.taken_away} finished shards are no longer in vectors/, and are not made again")
    if summary.truncated:
        lines.append(f"{summary.truncated} texts were longer than --max-length and were cut")
    if summary.rejected:
        lines.append(f"{summary.rejected} rows are in rejected.jsonl, with the reasons")
    return lines


def _heads(text: str) -> tuple[Head, ...]:
    names = {name.strip() for name in text.split(",")}
    if not names <= set(Head):
        raise argparse.ArgumentTypeError(f"expected some of dense,sparse,colbert, got {text!r}")
    return tuple(head for head in Head if head in names)  # in one order, so that a job is known again


def _one_of(kind: type[E]) -> Callable[[str], E]:
    """An argparse type: a member of an enum, by its value."""

    def parse(text: str) -> E:
        try:
            return kind(text)
        except ValueError as error:
            names = " or ".join(member.value for member in kind)
            raise argparse.ArgumentTypeError(f"expected {names}, got {text!r}") from error

    return parse
