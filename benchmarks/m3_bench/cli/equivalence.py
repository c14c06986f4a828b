"""`m3-bench equivalence`."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from m3_bench import documents
from m3_bench.cli.arguments import Commands, add_output, checked_output
from m3_bench.documents import Equivalence, Rankings
from m3_bench.equivalence import (
    FEW_QUERIES,
    Agreement,
    Side,
    agreements,
    check_comparable,
    check_found,
    check_whole,
    lacking,
)
from m3_bench.recording import Recording, read_recording
from m3_bench.retrieval.indexes import RECORDED, Queries, check_checkpoint
from m3_bench.retrieval.places import Stores, open_index, path_of
from m3_bench.retrieval.search import DEPTH
from m3_runtime import M3Encoder
from m3_runtime.bundle.manifest import MANIFEST_NAME
from m3_runtime.cli.arguments import add_integer, add_parser, add_threads, number, refuse_given
from m3_runtime.cli.interrupt import interruptible
from m3_runtime.cpu import default_threads
from m3_runtime.encode.options import checked_max_length
from m3_runtime.errors import InputError
from m3_runtime.exit_codes import OK, OVER_LIMIT
from m3_runtime.io.progress import Progress
from m3_runtime.io.readers import read_texts
from m3_runtime.pairs import is_blank

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

RANKINGS = ".json"
"""How the name of a file of rankings ends."""
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
        raise InputError("there is nothing to compare one index with: give another, or -o FILE.json for its rankings")
    if len(addresses) == 1 and args.output.suffix != RANKINGS:
        raise InputError(f"-o {args.output}: rankings are known by their name, which must end in {RANKINGS}")
    progress = Progress(quiet=args.quiet)
    kept = {
        place: Side(place, documents.read_as(Rankings, Path(place))) for place in addresses if place.endswith(RANKINGS)
    }
    for side in kept.values():
        check_whole(side)
    if len(addresses) == 1 and not kept:
        reason = "is for comparing, and there is one index; leave it out"
        refuse_given(args, args.command_parser, ("min_overlap",), reason)
    if len(kept) < len(set(addresses)):
        sides = _searched(args, addresses, kept, progress)
    else:
        reason = "is for searching, and what is given are rankings; leave it out"
        refuse_given(args, args.command_parser, ("queries", "bundle", "variant", "depth"), reason)
        if args.second is None:
            raise InputError(f"{args.first!r} has rankings already: give what to compare them with")
        sides = [kept[place] for place in addresses]
        check_comparable(sides[0], sides[1])
    if len(sides) == 1:
        documents.write(sides[0].rankings, args.output)
        return OK
    check_found(sides[0], sides[1])
    found = Equivalence(sides[0].rankings, sides[1].rankings)
    if args.output is not None:
        documents.write(found, args.output)
    names = [_named(side) for side in sides]
    compared = agreements(found)
    lines = [*_table(found.first, compared, names, args.min_overlap), *_notes(found, compared, names)]
    sys.stdout.write("\n".join(lines) + "\n")
    holds = all(one.overlap.mean >= args.min_overlap for one in compared)
    return OK if holds else OVER_LIMIT


def _searched(
    args: argparse.Namespace, addresses: Sequence[str], kept: Mapping[str, Side], progress: Progress
) -> list[Side]:
    """Open every index, refuse what does not compare, and search; `kept` are rankings from files."""
    own = next((Path(p) for p in addresses if (Path(p) / MANIFEST_NAME).is_file()), None)
    if own and args.bundle and own.resolve() != args.bundle.resolve():
        raise InputError(f"{str(own)!r} is a bundle, and encodes the queries itself; leave --bundle {args.bundle} out")
    bundle = args.bundle or own
    if args.queries is None or bundle is None:
        raise InputError(f"{'--queries FILE' if args.queries is None else '--bundle BUNDLE'} is missing")
    texts, recorded = _queries(args.queries, progress)
    opening = partial(M3Encoder.open, bundle, variant=args.variant, threads=args.threads)
    with interruptible(opening) as encoder, Stores() as stores:
        if recorded is not None:
            check_checkpoint(str(args.queries), recorded.run.model.space_id, encoder)
        queries = Queries(texts, encoder, recorded, progress)
        tokenized = encoder.tokenizer.encode_batch(texts, checked_max_length(None, encoder.max_tokens, "max_length"))
        if respelled := tokenized.out_of_vocabulary:
            progress.say(f"queries with pieces that the bundle dropped: {respelled} of {len(texts)}")
        sides = []
        for place in addresses:
            if place in kept:
                sides.append(kept[place])
                continue
            other = next((p for p in addresses if p != place), None)
            with progress.step(f"Opening {place}"):
                sides.append(Side.of(place, open_index(place, encoder, other, stores, progress), queries, args.depth))
            check_whole(sides[-1])
        if len(sides) == 2:
            check_comparable(sides[0], sides[1])
        for at, side in enumerate(sides):
            if side.place in kept:
                continue
            with progress.step(f"Searching {side.place} with {_counted(len(texts))}"):
                sides[at] = side.searched(queries)
            check_whole(sides[at])
    return sides


def _queries(path: Path, progress: Progress) -> tuple[tuple[str, ...], Recording | None]:
    if path.name.endswith(RECORDED):
        recording = read_recording(path)
        return recording.texts, recording
    rows = [row.text for row in read_texts(str(path))]
    texts = tuple(text for text in rows if not is_blank(text))
    if not texts:
        raise InputError(f"{str(path)!r} has no queries: {'all are blank' if rows else 'it is empty'}")
    if len(texts) < len(rows):
        progress.say(f"{path}: blank queries, which are left out: {len(rows) - len(texts)} of {len(rows)}")
    if repeated := len(texts) - len(set(texts)):
        progress.say(f"{path}: queries that an earlier one repeats, and that count again: {repeated} of {len(texts)}")
    return texts, None


def _counted(queries: int) -> str:
    return "1 query" if queries == 1 else f"{queries} queries"


def _named(side: Side) -> str:
    """A side as the user named it, with the name of its index where that says more."""
    name = side.rankings.index
    return side.place if name in (side.place, Path(side.place).name) else f"{side.place} ({name})"


def _table(a: Rankings, compared: Sequence[Agreement], names: Sequence[str], least: float) -> Iterator[str]:
    counts = f"{a.documents} documents, {_counted(a.queries)}, the best {a.depth} of each"
    yield f"# {' and '.join(names)}: {counts}\n"
    yield "| method | overlap [95 %] | same documents | order (tau) | score drift, mean / max | |"
    yield "|---|---|---|---|---|---|"
    for one in compared:
        span = one.overlap
        order = "" if one.order is None else f"{one.order:.3f}"
        drift = "" if one.drift_mean is None else f"{one.drift_mean:.5f} / {one.drift_max:.5f}"
        verdict = "" if span.mean >= least else f"**below {least:g}**"
        cells = (one.method, f"{span.mean:.4f} [{span.low:.4f}, {span.high:.4f}]", f"{one.unchanged:.0%}", order, drift)
        yield f"| {' | '.join(cells)} | {verdict} |"


def _notes(found: Equivalence, compared: Sequence[Agreement], names: Sequence[str]) -> list[str]:
    """What the table does not show, and what speaks against it."""
    a, b = found.first, found.second
    notes = []
    for name, one, other in ((names[0], a, b), (names[1], b, a)):
        if methods := lacking(one, other):
            notes.append(f"not compared, for {name} lacks it: {', '.join(methods)}")
    if a.space_id != b.space_id:
        notes.append(
            f"the vocabularies differ: {names[0]} is of {a.space_id}, {names[1]} of {b.space_id}. One checkpoint, but "
            "texts with pieces that only one of them has got other vectors there, which lowers the overlap"
        )
    notes += [
        f"{one.method}: neither finds anything for {one.unfound} of {a.queries} queries, which count as the same"
        for one in compared
        if one.unfound
    ]
    if a.queries < FEW_QUERIES:
        notes.append(f"{_counted(a.queries)} {'is' if a.queries == 1 else 'are'} few; use {FEW_QUERIES} or more")
    return ["", *(f"* {note}" for note in notes)] if notes else []
