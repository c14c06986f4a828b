"""`m3-bench equivalence`."""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from m3_bench import documents
from m3_bench.cli.arguments import Commands, add_output, checked_output
from m3_bench.documents import Equivalence, Rankings
from m3_bench.equivalence import FEW_QUERIES, agreements, check_comparable, check_whole, rankings_of
from m3_bench.recording import Recording, read_recording
from m3_bench.retrieval.indexes import RECORDED, Queries, open_index, path_of
from m3_bench.retrieval.search import DEPTH
from m3_runtime import M3Encoder
from m3_runtime.bundle.manifest import MANIFEST_NAME
from m3_runtime.bundle.space import full_space_of
from m3_runtime.cli.arguments import add_integer, add_parser, add_threads, number, refuse_given
from m3_runtime.cli.interrupt import interruptible
from m3_runtime.cpu import default_threads
from m3_runtime.encode.options import checked_max_length
from m3_runtime.errors import InputError
from m3_runtime.exit_codes import OK, OVER_LIMIT
from m3_runtime.io.progress import Progress
from m3_runtime.io.readers import read_texts

_DESCRIPTION = """\
Is one index as good as another? Both are searched with the same queries, which need no labels, and what they find is
compared: for each head and hybrid the share of the best documents that both find, the order of these, and how far their
scores have moved. An index is
  a folder of m3-runtime bulk     its vectors, searched exactly
  FILE.safetensors                of m3-bench record: texts with PyTorch's vectors, from a GPU for instance
  a bundle                        beside a recording, whose texts it encodes
  qdrant:URL/COLLECTION           of QdrantIndex, searched by Qdrant; or a folder in place of the URL
  milvus:URL/COLLECTION           of MilvusIndex; or a file in place of the URL
  RANKINGS.json                   what this command wrote of one index: no vector, a few KB, from another machine"""

_EPILOG = """\
Queries are encoded by the bundle. If they are a recording, an index that is a recording gets their recorded vectors, so
that GPU against GPU stands beside CPU against CPU. Use at least fifty queries as users ask them.

examples:
  m3-bench equivalence docs-vectors gpu-vectors --queries queries.txt --bundle out/bge-m3
  m3-bench equivalence out/bge-m3 gpu.safetensors --queries gpu-queries.safetensors
  m3-bench equivalence qdrant:http://gpu-host:6333/docs --queries q.txt --bundle out/bge-m3 -o gpu.json   there
  m3-bench equivalence gpu.json qdrant:http://cpu-host:6333/docs --queries q.txt --bundle out/bge-m3      here

exit codes: 0 equivalent; 3 a method's overlap is below --min-overlap; 1 failed; 2 wrong usage or input"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = add_parser(
        commands,
        "equivalence",
        _run,
        summary="whether two indexes give the same answers",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("first", metavar="INDEX")
    parser.add_argument("second", metavar="INDEX", nargs="?", help="without one, rankings of the first go to -o FILE")
    parser.add_argument("--queries", type=Path, metavar="FILE", help="texts, or a recording of them")
    parser.add_argument("--bundle", type=Path, metavar="BUNDLE", help="encodes queries (default: an INDEX that is one)")
    parser.add_argument("--variant", metavar="NAME", default="auto", help="of the bundle (default: the fastest here)")
    add_integer(parser, "--depth", f"best documents of each query to compare, at most {DEPTH}", most=DEPTH, default=10)
    parser.add_argument(
        "--min-overlap", type=number(least=0, most=1), default=0.95, metavar="X", help="(default: 0.95)"
    )
    add_threads(parser, "of a run", default=default_threads())
    add_output(parser, "json")


def _run(args: argparse.Namespace) -> int:
    addresses = [args.first, *([args.second] if args.second else [])]
    inputs = [*map(path_of, addresses), *filter(None, (args.queries, args.bundle))]
    checked_output(args.output, force=args.force, inputs=inputs)
    if args.output is None and len(addresses) == 1:
        raise InputError("there is nothing to compare one index with: give another, or -o FILE for its rankings")
    rankings = _rankings(args, addresses)
    if len(rankings) == 1:
        check_whole(rankings[0])
        documents.write(rankings[0], args.output)
        return OK
    found = Equivalence(rankings[0], rankings[1])
    check_comparable(found)
    if args.output is not None:
        documents.write(found, args.output)
    sys.stdout.write("\n".join(_table(found, args.min_overlap)) + "\n")
    holds = all(one.overlap.mean >= args.min_overlap for one in agreements(found))
    return OK if holds else OVER_LIMIT


def _rankings(args: argparse.Namespace, addresses: list[str]) -> list[Rankings]:
    kept = {p: documents.read_as(Rankings, Path(p)) for p in addresses if p.endswith(".json")}
    if all(address in kept for address in addresses):
        reason = "is for searching, and what is given are rankings; leave it out"
        refuse_given(args, args.command_parser, ("queries", "bundle", "variant", "depth"), reason)
        if args.second is None:
            raise InputError(f"{args.first!r} has rankings already: give what to compare them with")
        return [kept[address] for address in addresses]
    bundle = args.bundle or next((Path(p) for p in addresses if (Path(p) / MANIFEST_NAME).is_file()), None)
    if args.queries is None or bundle is None:
        raise InputError(f"{'--queries FILE' if args.queries is None else '--bundle BUNDLE'} is missing")
    progress = Progress(quiet=args.quiet)
    texts, recorded = _queries(args.queries)
    opening = partial(M3Encoder.open, bundle, variant=args.variant, threads=args.threads)
    with interruptible(opening) as encoder:
        space = full_space_of(encoder.space_id)  # what fewer pieces cost is to be measured, not refused
        if recorded is not None and full_space_of(recorded.run.model.space_id) != space:
            raise InputError(
                f"{str(args.queries)!r} has vectors of the space {recorded.run.model.space_id}, the bundle gives "
                f"{encoder.space_id}: they come from different weights and cannot be compared"
            )
        queries = Queries(texts, encoder, recorded, progress)
        tokenized = encoder.tokenizer.encode_batch(texts, checked_max_length(None, encoder.max_tokens, "max_length"))
        if lacking := tokenized.out_of_vocabulary:
            progress.say(f"{lacking} of {len(texts)} queries have pieces that the bundle dropped")
        found = []
        for address in addresses:
            if address in kept:
                found.append(kept[address])
                continue
            other = next((p for p in addresses if p != address), None)
            with progress.step(f"Searching {address} with {len(texts)} queries"):
                index = open_index(address, encoder, other, progress)
                if full_space_of(index.space_id) != space:
                    raise InputError(
                        f"{address!r} has vectors of the space {index.space_id}, the bundle gives {encoder.space_id}: "
                        "they come from different weights and cannot be compared"
                    )
                found.append(rankings_of(index, queries, args.depth))
    return found


def _queries(path: Path) -> tuple[tuple[str, ...], Recording | None]:
    if path.name.endswith(RECORDED):
        recording = read_recording(path)
        return recording.texts, recording
    texts = tuple(row.text for row in read_texts(str(path)))
    if not texts:
        raise InputError(f"{str(path)!r} has no queries")
    return texts, None


def _table(found: Equivalence, least: float) -> Iterator[str]:
    a, b = found.first, found.second
    yield f"# {a.index} and {b.index}: {a.documents} documents, {a.queries} queries, the best {a.depth} of each\n"
    yield "| method | overlap [95 %] | same documents | order (tau) | score drift, mean / max | |"
    yield "|---|---|---|---|---|---|"
    for one in agreements(found):
        span = one.overlap
        order = "" if one.order is None else f"{one.order:.3f}"
        drift = "" if one.drift_mean is None else f"{one.drift_mean:.5f} / {one.drift_max:.5f}"
        verdict = "" if span.mean >= least else f"**below {least:g}**"
        cells = (one.method, f"{span.mean:.4f} [{span.low:.4f}, {span.high:.4f}]", f"{one.unchanged:.0%}", order, drift)
        yield f"| {' | '.join(cells)} | {verdict} |"
    if a.queries < FEW_QUERIES:
        yield f"\n* {a.queries} queries are few; use {FEW_QUERIES} or more"
