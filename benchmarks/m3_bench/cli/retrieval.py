"""`m3-bench retrieval` and `m3-bench margins`."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from m3_bench import documents
from m3_bench.cli.arguments import Commands, add_output, checked_output, names
from m3_bench.documents import Margins, Retrieval
from m3_bench.report.page import Table, printed
from m3_bench.report.searches import (
    MARGINS,
    intervals_in_words,
    margins_notes,
    margins_table,
    retrieval_notes,
    retrieval_table,
)
from m3_bench.retrieval import LAYOUTS
from m3_bench.retrieval.hybrids import PUBLISHED, Hybrid, parse_weights
from m3_runtime.cli.arguments import add_integer, add_parser, add_threads, refuse_given
from m3_runtime.cpu import default_threads
from m3_runtime.errors import InputError
from m3_runtime.io.progress import Progress
from m3_runtime.pairs import LEAST_PAIR_TOKENS

_RETRIEVAL = """\
Search a labelled dataset with BM25 and with every variant of bundles: dense, sparse, ColBERT, and heads added up with
the published weights, and reranked by a reranker's bundle. Gives nDCG@10, recall and reciprocal rank, and what each
INT8 variant loses against its bundle's FP32 variant, with a paired bootstrap over the queries.

Bundles may be of different models (a checkpoint before and after fine-tuning, say): they are named after
their folders, and the table compares each with the first."""

_RETRIEVAL_EPILOG = """\
layouts, each file plain, .gz, .bz2, .xz, .zst or .lz4:
{layouts}

published weights, which are measured unless --weights is given:
{published}

The result is written when all is measured; a run that is interrupted leaves none. Split what takes hours: some of the
--variants at a time, or one bundle. m3-bench report takes several results.

memory: texts, dense vectors (4 H bytes a document) and lexical weights of the whole corpus are held, and ColBERT rows
of the queries. Documents that are candidates are encoded a second time for theirs, some at a time.

examples:
  m3-bench retrieval benchmarks/data/multilingual out/mini-m3 -o retrieval.json
  m3-bench retrieval xquad.en.json out/bge-m3 --variants onnx-fp32,onnx-int8
  m3-bench retrieval xquad.en.json out/bge-m3 --reranker out/bge-reranker-v2-m3 --weights 1,0.3,1 --reranked 50
  m3-bench retrieval miracl-v1.0-sw out/before out/after --limit-documents 20000 --limit-queries 200
  m3-bench retrieval mldr-v1.0-de out/bge-m3 --max-length 8192 --candidates 200 --weights 0.15,0.5,0.35

exit codes: 0 measured; 1 failed; 2 wrong usage, or a dataset or bundle cannot be used"""


_MARGINS = """\
Score the lines of a fine-tuning file with every variant of bundles: how far do positives score above negatives, before
and after fine-tuning, in FP32 and in INT8? By each head, and by heads added up with the published weights (divided by
the weights' sum, as FlagEmbedding's compute_score does).

Every line is checked first. A bad one is left out, named with its number and reason on stderr and in the result:
a missing key, a `pos` or `neg` that is no list or an empty one, an item that is no text, scores that do not fit.
`"neg": [""]` is good and means no negatives."""

_MARGINS_EPILOG = """\
a line:
  {{"query": "deepest lake", "pos": ["Lake Baikal is …"], "neg": ["Lake Ladoga is …", "The Rhine …"]}}

published weights, which are measured unless --weights is given:
{published}

The result is written when all is measured; a run that is interrupted leaves none.

The first bundle is what others are compared with; bundles are called by their folders' names. Margins of two models lie
on two scales (fine-tuning spreads scores out), so compare their pair accuracies first.

examples:
  m3-bench margins benchmarks/data/finetune_sample.jsonl out/mini-m3
  m3-bench margins held_out.jsonl out/before out/after -o margins.json
  m3-bench margins held_out.jsonl out/after --variants onnx-fp32,onnx-int8 --weights 1,0.3,1

exit codes: 0 measured, bad lines or not; 1 failed; 2 wrong usage, or no line or no bundle can be used"""


def add_to(commands: Commands) -> None:
    """Add both commands."""
    published = "\n".join(f"  {hybrid.name:22} {hybrid.source}" for hybrid in PUBLISHED)
    epilog = _RETRIEVAL_EPILOG.format(layouts=LAYOUTS, published=published)
    summary = "nDCG, recall and MRR of each variant and head, beside BM25"
    retrieval = add_parser(commands, "retrieval", _retrieval, summary=summary, description=_RETRIEVAL, epilog=epilog)
    retrieval.add_argument("dataset", type=Path, metavar="DATASET", help="a file or folder")
    retrieval.add_argument("--split", metavar="NAME", help="of BEIR, MIRACL, MLDR (default: test, or dev for MIRACL)")
    add_integer(retrieval, "--limit-documents", "N documents, the relevant ones among them")
    _add_common(retrieval)
    add_integer(retrieval, "--candidates", "documents that ColBERT ranks", default=100)
    text = "variant that encodes all documents (default: the queries' own): FP32 passages, INT8 queries"
    retrieval.add_argument("--documents-by", metavar="NAME", default="", help=text)
    text = "a reranker's bundle: rankings of BM25, heads and hybrids are also measured as its variants reorder them"
    retrieval.add_argument("--reranker", type=Path, metavar="BUNDLE", help=text)
    add_integer(retrieval, "--reranked", "documents of a ranking that the reranker orders", default=20)

    epilog = _MARGINS_EPILOG.format(published=published)
    summary = "how far positives score above negatives on fine-tuning lines"
    margins = add_parser(commands, "margins", _margins, summary=summary, description=_MARGINS, epilog=epilog)
    margins.add_argument("source", type=Path, metavar="TRAIN.jsonl", help="fine-tuning lines, plain or compressed")
    _add_common(margins)


def _add_common(command: argparse.ArgumentParser) -> None:
    """What `retrieval` and `margins` have in common."""
    command.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="bundles' folders")
    text = "only these (default: all that run on this processor)"
    command.add_argument("--variants", type=names, metavar="NAME,…", help=text)
    text = "weights of dense, sparse and ColBERT, in place of the published ones; may be repeated"
    command.add_argument("--weights", action="append", metavar="D,S[,C]", help=text)
    add_integer(command, "--limit-queries", "the first N queries, or good lines")
    add_integer(command, "--max-length", "tokens of a text (default: 512 or the model's limit)", least=3)
    add_threads(command, "of a run", default=default_threads())
    add_output(command, "json")


def _retrieval(args: argparse.Namespace) -> int:
    from m3_bench.retrieval.bundles import choose_bundles
    from m3_bench.retrieval.datasets import open_dataset
    from m3_bench.retrieval.run import SearchSettings, measure_retrieval

    settings = SearchSettings(
        hybrids=_hybrids(args, args.dataset, *args.bundles),
        candidates=args.candidates,
        max_length=args.max_length,
        threads=args.threads,
        documents_by=args.documents_by,
        reranked=args.reranked,
    )
    if args.reranker is None:
        refuse_given(args, args.command_parser, ["reranked"], "is for --reranker BUNDLE, which is not given")
    elif args.max_length is not None and args.max_length < LEAST_PAIR_TOKENS:
        least = f"--max-length must be at least {LEAST_PAIR_TOKENS} for a reranker's pairs"
        raise InputError(f"{least}, got {args.max_length}")
    data = open_dataset(args.dataset, split=args.split, queries=args.limit_queries, documents=args.limit_documents)
    choice, progress = choose_bundles(args.bundles, args.variants, args.reranker), Progress(quiet=args.quiet)
    document = measure_retrieval(data, choice, settings, progress)
    return _finish(args, document, retrieval_table(document), "", retrieval_notes(document))


def _margins(args: argparse.Namespace) -> int:
    from m3_bench.retrieval.bundles import choose_bundles
    from m3_bench.retrieval.finetune import read_finetune
    from m3_bench.retrieval.margins import measure_margins

    hybrids, file = _hybrids(args, args.source, *args.bundles), read_finetune(args.source)
    document = measure_margins(
        file,
        choose_bundles(args.bundles, args.variants),
        hybrids,
        Progress(quiet=args.quiet),
        queries=args.limit_queries,
        max_length=args.max_length,
        threads=args.threads,
    )
    return _finish(args, document, margins_table(document), MARGINS, margins_notes(document))


def _hybrids(args: argparse.Namespace, *inputs: Path) -> tuple[Hybrid, ...]:
    """The hybrids of `--weights`, each once; the published ones for none given. Looks at the output first.

    Raises:
        InputError: one is not what it must be, or the output cannot be written.
    """
    found = tuple(dict.fromkeys(map(parse_weights, args.weights))) if args.weights else PUBLISHED
    checked_output(args.output, force=args.force, inputs=inputs)
    return found


def _finish(
    args: argparse.Namespace, document: Retrieval | Margins, table: Table, words: str, notes: Iterable[str]
) -> int:
    if args.output is not None:
        documents.write(document, args.output)
    said = " ".join(filter(None, (words, intervals_in_words([table]))))
    paragraphs = [printed([table]), said, "\n".join(f"* {note}" for note in notes)]
    sys.stdout.write("\n\n".join(filter(None, paragraphs)) + "\n")
    return 0
