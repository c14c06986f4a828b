"""`m3-bench serve-load`."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from m3_bench.cli.arguments import Commands, add_output, checked_output
from m3_runtime.cli.arguments import MOST_SECONDS, add_integer, add_parser, add_threads, integer, number, refuse_given
from m3_runtime.cli.interrupt import interruptible
from m3_runtime.errors import InputError
from m3_runtime.exit_codes import FAILED, OK
from m3_runtime.io.progress import Progress

if TYPE_CHECKING:
    from m3_bench.documents import Stage
    from m3_bench.load import Loader

WARM_UP_S = 2.0

_DESCRIPTION = """\
Put a running server under load: this project's, or any that speaks OpenAI's /v1/embeddings or TEI's /embed.

A closed loop (--clients N) has N clients, each of which sends its next request when it has the answer to the last. An
open loop (--rate R) sends R requests per second at random times, whether or not earlier ones have been answered, as
the world does; latency counts from when a request was due. --sweep doubles the clients until hardly more is answered:
what the server can do. --times X does that, and then offers X times as much.

Latencies (p50, p95, p99) are of answers only: refusals (429, 503) and errors are counted apart. With --bundle, every
vector is compared with the encoder's in this process: give it the server's --variant. Run it on a machine that does
nothing else."""

_EPILOG = """\
examples:
  m3-bench serve-load http://localhost:8080 --clients 8 --texts 16
  m3-bench serve-load http://localhost:8080 --clients 1 --texts 1 --words 6 -o one.json
  m3-bench serve-load http://localhost:8080 --sweep -o sweep.json
  m3-bench serve-load http://localhost:8080 --times 5 --seconds 60 --bundle my-bundle --api openai,m3 --pid $!
  m3-bench serve-load https://tei.example.org --api tei --rate 20 --key-file key.txt

exit codes: 0 measured; 1 something else than answers and refusals came, or a wrong vector; 2 wrong usage or input; 130
interrupted (the loops until then are in FILE)"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    summary = "a running server under load"
    parser = add_parser(commands, "serve-load", _run, summary=summary, description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("url", metavar="URL", help="http://HOST:PORT of a server")
    how = parser.add_argument_group("load").add_mutually_exclusive_group()
    add_integer(how, "--clients", "a closed loop", default=8)
    positive = number(above=0, most=MOST_SECONDS)
    how.add_argument("--rate", type=positive, metavar="R", help="an open loop: requests per second")
    how.add_argument("--sweep", action="store_true", help="closed loops of 1, 2, 4 … clients until saturation")
    how.add_argument("--times", type=positive, metavar="X", help="a sweep, then an open loop at X times its best")
    parser.add_argument("--seconds", type=positive, default=10.0, help="of each loop (default: %(default)s)")
    what = parser.add_argument_group("requests")
    text = "openai, tei or m3 (all heads); several take turns, one that comes twice has two"
    what.add_argument("--api", type=_apis, default=["openai"], metavar="NAME,…", help=text)
    what.add_argument("--model", default="", help="the name that OpenAI's API is asked for (default: its first)")
    what.add_argument("--key-file", type=Path, metavar="FILE", help="holds an API key")
    add_integer(what, "--texts", "of a request, on average", default=8)
    add_integer(what, "--words", "of a text, on average", default=40)
    more = parser.add_argument_group("what else is looked at")
    more.add_argument("--bundle", type=Path, metavar="DIR", help="the server's bundle: compare every vector")
    more.add_argument("--variant", default="auto", help="the server's (default: auto)")
    add_threads(more, "of the encoder here (default: the cores)")
    text = "a process of the server: watch its memory"
    more.add_argument("--pid", type=integer(1), action="append", default=[], help=text)
    add_output(parser, "json")


def _apis(words: str) -> list[str]:
    return [word.strip() for word in words.split(",")]


def _run(args: argparse.Namespace) -> int:
    from m3_bench import documents
    from m3_bench.documents import Load
    from m3_bench.load import APIS, SAME, Loader, Server, made_requests
    from m3_bench.machine import this_machine
    from m3_bench.report.page import printed
    from m3_bench.report.tables import load_table
    from m3_runtime import M3Encoder

    if not args.api or not set(args.api) <= APIS.keys():
        raise InputError(f"--api {','.join(args.api)}: expected some of {', '.join(APIS)}")
    if args.bundle is None:
        refuse_given(args, args.command_parser, ("variant", "threads"), "is for --bundle DIR, which is not given")
    if "openai" not in args.api:
        refuse_given(args, args.command_parser, ["model"], "is for OpenAI's API, which --api does not name")
    inputs = [path for path in (args.bundle, args.key_file) if path]
    checked_output(args.output, force=args.force, inputs=inputs)
    server = Server.parse(args.url, _key(args.key_file))
    model = args.model or (server.first_model() if "openai" in args.api else "")
    opening = partial(M3Encoder.open, args.bundle, variant=args.variant, threads=args.threads)
    opened: AbstractContextManager[M3Encoder | None] = interruptible(opening) if args.bundle else nullcontext()
    with opened as encoder:
        requests = list(made_requests(args.api, model, args.texts, args.words, encoder))
    load = Load(this_machine(), args.url, tuple(args.api), args.texts, args.words, ())
    for stage in _stages(Loader(server, requests, args.seconds, args.pid), args):
        load = replace(load, stages=(*load.stages, stage))
        if args.output is not None:
            documents.write(load, args.output)
    sys.stdout.write(printed([load_table(load)]) + "\n")
    is_good = all(not one.errors and (one.cosine_min is None or one.cosine_min >= SAME) for one in load.stages)
    return OK if is_good else FAILED


def _stages(loader: "Loader", args: argparse.Namespace) -> "Iterator[Stage]":
    """The loops of the command line."""
    from m3_bench.load import answered_per_s

    progress = Progress(quiet=args.quiet)
    loader.closed(min(args.clients, 8), min(WARM_UP_S, args.seconds))
    if args.rate is not None:
        yield loader.open(args.rate)
    elif not args.sweep and args.times is None:
        yield loader.closed(args.clients)
    else:
        best = 0.0
        for stage in loader.sweep():
            best = max(best, answered_per_s(stage))
            progress.say(f"{stage.clients} clients: {answered_per_s(stage):.1f} requests/s")
            yield stage
        progress.say(f"saturated at {best:.1f} requests/s")
        if args.times is not None and best > 0:
            yield loader.open(args.times * best)


def _key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--key-file {str(path)!r}: {error}") from error
    if not key:
        raise InputError(f"--key-file {str(path)!r} is empty; expected an API key")
    return key
