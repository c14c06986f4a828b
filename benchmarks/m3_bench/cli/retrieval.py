"""`m3-bench retrieval`."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from m3_bench import documents
from m3_bench.cli.commands import Commands
from m3_bench.cli.exit_codes import EXIT_OK
from m3_bench.cli.shared import checked_output
from m3_bench.documents import Margins, Retrieval
from m3_bench.figures import Place
from m3_bench.report.page import printed
from m3_bench.report.searches import INTERVALS, retrieval_notes, retrieval_table
from m3_bench.retrieval.bundles import choose_bundles
from m3_bench.retrieval.datasets import EXPECTED, Layout, open_dataset
from m3_bench.retrieval.hybrids import PUBLISHED, Hybrid, parse_weights
from m3_bench.retrieval.run import SearchSettings, measure_retrieval
from m3_runtime.cli.arguments import integer
from m3_runtime.cpu import default_threads
from m3_runtime.io.progress import Progress

_DESCRIPTION = """\
Search a labelled dataset with BM25 and with every variant of bundles: dense, sparse, ColBERT, and heads added up with
the published weights. Gives nDCG@10, recall and reciprocal rank, and what each INT8 variant loses against its bundle's
FP32 variant, with a paired bootstrap over the queries.

Bundles may be of different models (a checkpoint before and after fine-tuning, say): they are told apart by their
folders' names, and the table compares each with the first."""

_EPILOG = """\
layouts, each file plain or .gz:
{layouts}

published weights, which are measured unless --weights is given:
{published}

memory: texts, dense vectors (4 H bytes a document) and lexical weights of the whole corpus are held. ColBERT rows take
2 C bytes a token, so of 100 000 documents of 200 tokens 40 GB at C = 1024; those of the first documents are kept, up to
--colbert-memory, and those of other candidates are encoded a second time, a part at a time. Scores do not depend on it.

examples:
  m3-bench retrieval benchmarks/data/multilingual out/mini-m3 -o retrieval.json
  m3-bench retrieval xquad.en.json out/bge-m3 --variants onnx-fp32,onnx-int8
  m3-bench retrieval xquad.en.json out/bge-m3 --queries-from xquad.de.json    German questions, English paragraphs
  m3-bench retrieval miracl-v1.0-sw out/before out/after --limit-documents 20000 --limit-queries 200
  m3-bench retrieval mldr-v1.0-de out/bge-m3 --max-length 8192 --candidates 200 --weights 0.15,0.5,0.35

exit codes: 0 measured; 1 a dataset or bundle cannot be used; 2 usage"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "retrieval",
        help="nDCG, recall and MRR of each variant and head, beside BM25",
        description=_DESCRIPTION,
        epilog=_EPILOG.format(layouts=EXPECTED, published=published()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("dataset", type=Path, metavar="DATASET", help="a file or folder")
    command.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="bundles' folders")
    group = command.add_argument_group("dataset")
    group.add_argument("--layout", type=Layout, choices=list(Layout), default=Layout.AUTO, help="default: auto")
    group.add_argument("--split", metavar="NAME", help="of BEIR, MIRACL, MLDR (default: test, or dev for MIRACL)")
    group.add_argument(
        "--queries-from",
        type=Path,
        metavar="FILE",
        help="a SQuAD file whose questions are asked: DATASET's in another language",
    )
    group.add_argument("--limit-queries", type=integer(1), metavar="N", help="the first N queries")
    group.add_argument(
        "--limit-documents", type=integer(1), metavar="N", help="N documents, the relevant ones among them"
    )
    group = command.add_argument_group("search")
    add_how(group)
    group.add_argument(
        "--candidates", type=integer(1), default=100, metavar="N", help="documents that ColBERT ranks (default: 100)"
    )
    group.add_argument(
        "--colbert-memory", type=integer(0), default=1024, metavar="MB", help="for ColBERT rows (default: 1024)"
    )
    add_output(command, "the values of every query")
    command.set_defaults(run=_run)


def add_how(group: argparse._ArgumentGroup) -> None:
    """What `retrieval` and `margins` have in common."""
    group.add_argument("--variants", metavar="NAME,…", help="only these (default: all that run on this processor)")
    group.add_argument(
        "--weights",
        action="append",
        metavar="D,S[,C]",
        help="weights of dense, sparse and ColBERT, in place of the published ones; may be repeated",
    )
    group.add_argument(
        "--max-length", type=integer(3), metavar="N", help="tokens of a text (default: 512 or the model's limit)"
    )
    group.add_argument(
        "--threads", type=integer(1), default=default_threads(), metavar="N", help="of a run (default: the cores)"
    )


def add_output(command: argparse.ArgumentParser, holds: str) -> None:
    """Where the result goes; `holds` says what the file is."""
    group = command.add_argument_group("output")
    group.add_argument("-o", "--output", type=Path, metavar="FILE", help=f"JSON with {holds}")
    group.add_argument("--force", action="store_true", help="replace FILE")
    group.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _run(args: argparse.Namespace) -> int:
    settings = SearchSettings(
        hybrids=hybrids_in(args.weights),
        candidates=args.candidates,
        max_length=args.max_length,
        threads=args.threads,
        colbert_bytes=args.colbert_memory * 10**6,
    )
    if args.output is not None:
        checked_output(args.output, force=args.force)
    data = open_dataset(
        args.dataset,
        args.layout,
        split=args.split,
        queries_from=args.queries_from,
        queries=args.limit_queries,
        documents=args.limit_documents,
    )
    choice = choose_bundles(args.bundles, names_in(args.variants))
    document = measure_retrieval(data, choice, settings, Progress(quiet=args.quiet))
    found = retrieval_table(document, Place(""))
    return finish(args, document, f"{printed([found])}\n\n{INTERVALS}\n", retrieval_notes(document))


def finish(args: argparse.Namespace, document: Retrieval | Margins, table: str, notes: Iterable[str]) -> int:
    """Write a document where the command line says, and print its table and notes."""
    if args.output is not None:
        documents.write(document, args.output)
    sys.stdout.write("\n".join([table, *(f"* {note}" for note in notes)]) + "\n")
    return EXIT_OK


def names_in(words: str | None) -> tuple[str, ...] | None:
    """Names between commas; None for none given."""
    return None if words is None else tuple(name.strip() for name in words.split(",") if name.strip())


def hybrids_in(weights: Sequence[str] | None) -> tuple[Hybrid, ...]:
    """The hybrids of `--weights`, each once; the published ones for none given.

    Raises:
        InputError: one is not what it must be.
    """
    return tuple(dict.fromkeys(map(parse_weights, weights))) if weights else PUBLISHED


def published() -> str:
    """The published weights, for a help text."""
    return "\n".join(f"  {hybrid.name:22} {hybrid.source}" for hybrid in PUBLISHED)
