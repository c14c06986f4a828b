"""m3-runtime bulk: large files to shards of vectors."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from m3_runtime.bulk.check import JobCheck, check_job
from m3_runtime.bulk.cluster import DEFAULT_ACTOR_THREADS, encode_on_cluster
from m3_runtime.bulk.job import BulkJob, OnLong, ShardDenseDtype, VectorSettings
from m3_runtime.bulk.run import BulkSummary, EncodeShards, encode_here, run_job
from m3_runtime.bulk.shards import BulkLimits
from m3_runtime.bulk.sources import FoundSources, check_apart, find_sources
from m3_runtime.bulk.workers import encode_in_processes
from m3_runtime.bundle.manifest import Head, Variant
from m3_runtime.bundle.reader import Bundle
from m3_runtime.cli.arguments import (
    add_batching,
    add_bundle,
    add_choice,
    add_colbert,
    add_columns,
    add_heads,
    add_input_format,
    add_integer,
    add_max_length,
    add_parser,
    checked_columns,
    colbert_settings,
    integer,
    number,
    refuse_without_head,
)
from m3_runtime.cli.interrupt import interruptible
from m3_runtime.cores import cpus_of_workers, usable_cores
from m3_runtime.cpu import default_threads
from m3_runtime.encode.colbert import ColbertDtype
from m3_runtime.encode.options import checked_heads, checked_max_length
from m3_runtime.encoder import M3Encoder
from m3_runtime.engines.select import choose_variant
from m3_runtime.exit_codes import OK, TOO_MANY_REJECTED
from m3_runtime.io.formats import SourceFormat
from m3_runtime.io.output import check_no_input
from m3_runtime.io.progress import Progress
from m3_runtime.opened_model import check_kind

_MOST_REASONS = 5
_SHARD_ROWS, _COLBERT_SHARD_ROWS = 10_000, 1_000

_DESCRIPTION = """\
Encode large files into Parquet shards, in constant memory.

Inputs are JSONL, JSON, CSV or TSV with a header, Parquet or text files (every line is a text), or folders of them as
Spark and Hive write them; the name's ending says which, another is refused unless --input-format says it, and .gz,
.bz2, .xz, .zst and .lz4 are unpacked. OUT/vectors holds the shards, OUT/rejected.jsonl the rows that could not be
encoded and why, and OUT/journal.jsonl which shards are done. Whatever stops a job, the same command resumes it; no row
is lost or doubled.
"""

_EPILOG = """\
examples:
  m3-runtime bulk my-bundle docs.jsonl -o docs-vectors
  m3-runtime bulk my-bundle part-*.parquet -o out --text body --id doc_id --heads dense,sparse
  m3-runtime bulk my-bundle corpus/ -o out --heads dense,sparse,colbert --colbert-dtype int8 --colbert-pool 2
  m3-runtime bulk my-bundle corpus/ -o out --check              # read everything, encode nothing, tell what to expect
  m3-runtime bulk my-bundle corpus/ -o out --workers 4          # on a machine of many cores
  m3-runtime bulk my-bundle corpus/ -o out --ray                # on the nodes of a Ray cluster

columns of a shard:
  id string, tokens int32, dense_vecs list of H floats, lexical_weights list of {id int32, weight float32},
  colbert_vecs list of lists of C float16, or as --colbert-dtype says: float32; int8, or uint8 of 2 or 8 values, with
  colbert_scales
  the schema's metadata has m3.space_id and m3.variant
  read them with pyarrow.dataset.dataset("OUT/vectors"), DuckDB, Polars or Spark; docs/operate/bulk.md shows how

Every option may also stand in the environment: M3_HEADS=dense,sparse. Flags win.
A row without an id gets its place as its id, "FILE:number".
Exit code 4: all was done, but too many rows were rejected; see --max-rejected.
"""


def add_command(commands: Any) -> None:
    """Add `bulk` to the command line."""
    summary = "large files to Parquet shards, resumable (extra bulk)"
    command = add_parser(commands, "bulk", run, summary=summary, description=_DESCRIPTION, epilog=_EPILOG)
    add_bundle(command)
    command.add_argument("inputs", metavar="INPUT", nargs="+", help="a file or folder")
    command.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="the job's folder")
    group = command.add_argument_group("reading")
    add_input_format(group, list(SourceFormat))
    add_columns(group)
    _add_vectors(command)
    text = f"rows of a shard (default: {_SHARD_ROWS}, with ColBERT {_COLBERT_SHARD_ROWS})"
    add_integer(command, "--shard-rows", text)
    text = "processes that encode, each with its own model and its share of the cores"
    add_integer(command, "--workers", f"{text} (default: 1; with --ray as many as the nodes have room for)")
    _add_cluster(command)
    command.add_argument(
        "--max-rejected",
        type=_share,
        default="10%",
        metavar="N|P%",
        help="rows, or per cent of them, that may be rejected; more of them, or not one good row: exit code 4 "
        "(default: 10%%)",
    )
    text = "read everything and encode nothing but a sample; tell what is there and what to expect"
    command.add_argument("--check", action="store_true", help=text)
    text = "stop at a bad row instead of writing it to rejected.jsonl"
    command.add_argument("--strict", action="store_true", help=text)
    command.add_argument("--quiet", action="store_true", help="no progress, no summary")
    add_batching(command)
    command.take_environment()


def _add_cluster(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("a Ray cluster (extra ray)")
    text = "encode on the nodes of a Ray cluster; each worker takes as many of Ray's CPUs as it has --threads "
    text += (
        f"(default: {DEFAULT_ACTOR_THREADS}). BUNDLE and OUT must be at the same path on every node; inputs need not"
    )
    group.add_argument("--ray", action="store_true", help=text)
    text = "implies --ray (default: RAY_ADDRESS, the cluster that runs on this machine, or a new one)"
    group.add_argument("--ray-address", metavar="ADDRESS", help=text)


def _add_vectors(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("vectors")
    add_heads(group)
    add_max_length(group)
    text = "truncate longer texts and count them, or reject them as bad rows"
    add_choice(group, "--on-truncate", text, OnLong.TRUNCATE)
    add_choice(group, "--dense-dtype", "how dense vectors are written", ShardDenseDtype.FLOAT32, is_noted=True)
    add_colbert(group, ColbertDtype.FLOAT16)


def _most_rejected(text: str, rows: int) -> float:
    """How many of so many rows may be rejected: a number, or per cent of them."""
    is_percent = text.endswith("%")
    kind: Callable[[str], float] = number(least=0, most=100) if is_percent else integer(0)
    try:
        amount = kind(text.removesuffix("%"))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"expected a number of rows, or per cent as in 10%, got {text!r}") from error
    return amount * rows / 100 if is_percent else amount


def _share(text: str) -> str:
    _most_rejected(text, 0)
    return text


def run(arguments: argparse.Namespace) -> int:
    """Run a job, or the rest of it, or check it; return 4 where too many rows were rejected."""
    found = find_sources(arguments.inputs, arguments.input_format)
    check_apart(arguments.output, arguments.inputs)
    check_no_input(arguments.output, [arguments.bundle])
    bundle = Bundle.open(arguments.bundle, verify=arguments.verify)
    check_kind(bundle, is_reranker=False)
    variant = choose_variant(bundle, arguments.variant, arguments.engine)
    job = _job(bundle, variant, found, arguments)
    if not arguments.quiet:
        _say(found.left_out)
    limits = BulkLimits(arguments.batch_size, arguments.token_budget)
    if arguments.check:
        return _check(bundle, variant, job, limits, arguments)
    open_encode = partial(_open_encode(bundle, variant, arguments), job, limits)
    summary = run_job(job, arguments.output, open_encode, Progress(quiet=arguments.quiet), strict=arguments.strict)
    if not arguments.quiet:
        _say(_summary_lines(summary))
    rows, rejected = (sum(getattr(one, name) for one in summary.shards) for name in ("rows", "rejected"))
    return _ended(rows, rejected, arguments)


def _check(bundle: Bundle, variant: Variant, job: BulkJob, limits: BulkLimits, arguments: argparse.Namespace) -> int:
    threads = arguments.threads or default_threads()
    opening = partial(M3Encoder.from_bundle, bundle, variant, threads, low_memory=arguments.low_memory)
    with interruptible(opening) as encoder:
        found = check_job(job, limits, encoder, Progress(quiet=arguments.quiet))
    sys.stdout.writelines(f"{line}\n" for line in _check_lines(found, len(job.sources)))
    return _ended(len(found.lengths), found.rejected, arguments)


def _ended(rows: int, rejected: int, arguments: argparse.Namespace) -> int:
    if rows and rejected <= _most_rejected(arguments.max_rejected, rows + rejected):
        return OK
    if rows + rejected == 0:
        _say(["there is not one row in the input"])
    else:
        _say([f"{rejected} of {rows + rejected} rows were rejected, more than --max-rejected {arguments.max_rejected}"])
    return TOO_MANY_REJECTED


def _say(lines: Iterable[str]) -> None:
    sys.stderr.writelines(f"m3-runtime: {line}\n" for line in lines)


def _open_encode(
    bundle: Bundle, variant: Variant, arguments: argparse.Namespace
) -> Callable[[BulkJob, BulkLimits], AbstractContextManager[EncodeShards]]:
    """What encodes: this process, processes of its own, or a cluster."""
    opening = {"low_memory": arguments.low_memory, "streams": arguments.streams}
    if arguments.ray or arguments.ray_address:
        # Nodes open the bundle anew, each at the path that it has here.
        if arguments.cache_dir:
            opening["cache_dir"] = Path(arguments.cache_dir).resolve()
        folder = bundle.folder.resolve()
        open_on_node = partial(M3Encoder.open, folder, variant=variant.name, verify=arguments.verify, **opening)
        return partial(encode_on_cluster, open_on_node, arguments.ray_address, arguments.workers, arguments.threads)
    workers = arguments.workers or 1
    threads = arguments.threads or max(1, default_threads() // workers)
    opening["cache_dir"] = arguments.cache_dir
    open_encoder = partial(M3Encoder.from_bundle, bundle, variant, threads, **opening)
    if workers > 1:
        return partial(encode_in_processes, open_encoder, cpus_of_workers(workers, threads, usable_cores()))
    return partial(encode_here, partial(interruptible, open_encoder))


def _job(bundle: Bundle, variant: Variant, found: FoundSources, arguments: argparse.Namespace) -> BulkJob:
    manifest, dim = bundle.manifest, arguments.colbert_dim
    checked_heads(manifest, arguments.heads)
    refuse_without_head(arguments, Head.DENSE, ["dense_dtype"])
    colbert = colbert_settings(arguments, ColbertDtype.FLOAT16)
    if dim is not None:
        bundle.colbert_axes(dim)  # fails here, before anything is written
    default_rows = _COLBERT_SHARD_ROWS if Head.COLBERT in arguments.heads else _SHARD_ROWS
    return BulkJob(
        space_id=manifest.space_id,
        variant=variant.name,
        vectors=VectorSettings(
            heads=arguments.heads,
            max_length=checked_max_length(arguments.max_length, manifest.geometry.max_tokens, "--max-length"),
            on_long=arguments.on_truncate,
            dense_dtype=arguments.dense_dtype or ShardDenseDtype.FLOAT32,
            **colbert,
            colbert_pca=bundle.colbert_pca.sha256 if dim and bundle.colbert_pca else "",
        ),
        shard_rows=arguments.shard_rows or default_rows,
        columns=checked_columns(arguments, [source.format for source in found.files]),
        sources=found.files,
    )


def _summary_lines(summary: BulkSummary) -> Iterator[str]:
    shards, complete = summary.shards, summary.complete
    names = ("rows", "tokens", "truncated", "out_of_vocabulary", "rejected")
    rows, tokens, truncated, respelled, rejected = (sum(getattr(one, name) for one in shards) for name in names)
    yield f"{_counted(rows, 'row')} in {_counted(len(shards), 'shard')}, {_counted(tokens, 'token')}"
    if 0 < summary.already_done == len(shards):
        yield "the job was finished already; nothing was left to do"
    elif summary.already_done:
        yield f"{_counted(summary.already_done, 'shard was', 'shards were')} done already"
    if summary.taken_away:
        yield f"{summary.taken_away} finished shards are no longer in vectors/, and are not made again"
    if truncated:
        yield f"{_counted(truncated, 'text was', 'texts were')} longer than --max-length and cut"
    if respelled:
        yield f"{_counted(respelled, 'text has', 'texts have')} pieces that the bundle dropped"
    if rejected:
        yield f"{_counted(rejected, 'row is', 'rows are')} in rejected.jsonl, with the reasons"
    if complete.repeated_ids:
        many = _counted(complete.repeated_ids, "row has", "rows have")
        yield f"{many} an id that a row before has, {complete.repeated_id!r} for one"


def _check_lines(found: JobCheck, files: int) -> Iterator[str]:
    rows, tokens = len(found.lengths), int(found.lengths.sum())
    yield f"{_counted(rows, 'row')} of {_counted(files, 'file')} would be encoded, {found.rejected} rejected"
    frequent = sorted(found.reasons.items(), key=lambda item: -item[1][0])
    for reason, (count, place) in frequent[:_MOST_REASONS]:
        yield f"  {count} x {reason}, first {place}"
    shares = np.quantile(found.lengths if rows else [0], [0.5, 0.95, 1], method="inverted_cdf").astype(int)
    yield (
        f"{_counted(tokens, 'token')}; a text has {shares[0]} in the median, {shares[1]} at the 95th percentile, "
        f"{shares[2]} at most"
    )
    if found.truncated:
        yield f"{_counted(found.truncated, 'text is', 'texts are')} longer than --max-length and would be cut"
    if found.out_of_vocabulary:
        yield f"{_counted(found.out_of_vocabulary, 'text has', 'texts have')} pieces that the bundle dropped"
    if found.repeated_ids:
        yield f"{_counted(found.repeated_ids, 'row has', 'rows have')} an id that a row before has"
    if found.tokens_per_s:
        yield (
            f"to expect: {_duration(tokens / found.tokens_per_s)} in one process here, at {found.tokens_per_s:.0f} "
            f"tokens/s of a sample; about {found.size_bytes / 1e6:.1f} MB of vectors in "
            f"{_counted(found.shards, 'shard')}"
        )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _counted(number: int, one: str, several: str | None = None) -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"
