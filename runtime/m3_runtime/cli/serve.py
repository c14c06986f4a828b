"""m3-runtime serve: a bundle behind HTTP."""

import argparse
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from m3_runtime.cli.arguments import (
    MOST_SECONDS,
    MOST_THREADS,
    add_bundle,
    add_choice,
    add_integer,
    add_parser,
    number,
    opening,
)
from m3_runtime.cpu import default_threads
from m3_runtime.engines.select import AUTO
from m3_runtime.errors import ExtraNotInstalledError, InputError
from m3_runtime.server.auth import A_KEY, is_key
from m3_runtime.server.logs import LogFormat, LogLevel, LogSettings
from m3_runtime.server.queue import QueueLimits
from m3_runtime.server.settings import MIB, RequestLimits, ServedBundle, ServerSettings
from m3_runtime.server.stopping import ending_at_once
from m3_runtime.tokenizer import OnTruncate

_MOST_PORT = 65535

_DESCRIPTION = """\
Serve a bundle over HTTP: OpenAI's /v1/embeddings, the routes of text-embeddings-inference, and /m3/encode for all
three heads at once. A reranker's bundle, alone or beside it, scores for the rerank routes. Texts of many requests are
batched together; short queries do not wait behind long passages.
Needs the extra "serve": pip install "m3-runtime[serve]"
"""

_EPILOG = """\
examples:
  m3-runtime serve my-bundle
  m3-runtime serve my-bundle --host 0.0.0.0 --port 8080 --api-key-file keys.txt
  m3-runtime serve my-bundle --max-length 512 --auto-truncate --deadline-s 10
  m3-runtime serve my-bundle --reranker my-reranker

  curl localhost:8080/v1/embeddings -H "content-type: application/json" -d '{"input": "Hello"}'
  curl localhost:8080/rerank -H "content-type: application/json" -d '{"query": "M3?", "texts": ["A model.", "A road."]}'

The model's name is the checkpoint's (GET /v1/models), and what --served-model-name says. GET /docs lists all routes.
On SIGTERM the server finishes the requests it has accepted, for --drain-s seconds, then exits. Logs are lines on
standard error; they never contain texts. Every option may also stand in the environment: M3_PORT=8080; flags win.
"""


def add_command(commands: Any) -> None:
    """Add `serve` to the command line."""
    summary = "a bundle behind HTTP (extra serve)"
    command = add_parser(commands, "serve", run, summary=summary, description=_DESCRIPTION, epilog=_EPILOG)
    add_bundle(command)
    _add_reranker(command)
    _add_service(command)
    _add_limits(command)
    _add_surroundings(command)
    command.take_environment()


def _add_reranker(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("reranking")
    group.add_argument(
        "--reranker",
        type=Path,
        metavar="BUNDLE",
        help="a reranker's bundle, which scores for /rerank, /v1/rerank and /v2/rerank instead of the encoder's heads; "
        "opened as the first bundle is (default: none)",
    )
    group.add_argument(
        "--reranker-variant", default=AUTO, metavar="VARIANT", help="its variant (default: the fastest that runs here)"
    )


def _add_service(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("serving")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    add_integer(group, "--port", "port to listen on; 0 takes a free one", least=0, most=_MOST_PORT, default=8080)
    text = "processes that serve, each with its own queue and, without --threads, its share of the cores"
    add_integer(group, "--workers", f"{text}; 1 is fastest unless answers are large", most=MOST_THREADS, default=1)
    _add_names(group)
    group.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="require an API key from FILE (one per line: KEY or NAME KEY, a key of 16 characters or more); "
        "reloaded when FILE changes (default: none)",
    )
    group.add_argument(
        "--api-key",
        type=_api_key,
        metavar="KEY",
        help="require this API key, or one of FILE if both are given; a command line can be read by others, so "
        "put it into M3_API_KEY or a file (default: none)",
    )
    group.add_argument("--open-metrics", action="store_true", help="answer /metrics without a key")
    add_integer(
        group, "--metrics-port", "answer /metrics, without a key, at another port too", least=0, most=_MOST_PORT
    )
    group.add_argument("--no-ui", action="store_true", help="do not serve the playground at /")
    add_integer(group, "--max-length", "tokens per text (default: as many as the model takes)", least=3)
    text = "cut longer texts on /v1/embeddings and /m3/encode too, where a request does not say what to do with them"
    group.add_argument("--auto-truncate", action="store_true", help=text)
    text = "take lists of integers without <s> and </s>: they may be ids of another tokenizer, and nobody would notice"
    group.add_argument("--accept-token-ids", dest="takes_token_ids", action="store_true", help=text)
    text = "cut dense vectors to the dimensions asked for, though the model was not trained for it; GET /info: the loss"
    group.add_argument("--allow-dimensions", dest="cuts_dimensions", action="store_true", help=text)
    text = "after SIGTERM, serve for S more seconds while /ready answers 503"
    _add_seconds(group, "--drain-delay-s", text, ServerSettings.drain_delay_s)
    text = "after that, S seconds for the requests under way, then 503; with --drain-delay-s less than Kubernetes' 30 s"
    _add_seconds(group, "--drain-s", text, ServerSettings.drain_s)


def _add_names(group: Any) -> None:
    group.add_argument(
        "--served-model-name",
        "--model-name",
        dest="model_names",
        type=_matching(r"\s*[^\s,][^,]*(,\s*[^\s,][^,]*)*", "one name or several with commas between"),
        action="append",
        metavar="NAME[,NAME]",
        help="what clients may call the model, beside the checkpoint's name; answers give the first; may be repeated",
    )
    text = "answer requests for whatever model they name, for tools in which a name is fixed"
    group.add_argument("--any-model-name", dest="is_any_model_served", action="store_true", help=text)


def _add_limits(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("limits")
    text = "most tokens that wait (429 beyond it), and most of one request (413); OpenAI's longest has 300000"
    add_integer(group, "--max-queue-tokens", text, default=QueueLimits.max_tokens)
    text = "most tokens that run together, except one long text; more gain little, and keep short queries waiting"
    add_integer(group, "--batch-tokens", text, default=QueueLimits.batch_tokens)
    add_integer(
        group, "--max-texts", "most texts of a request, as many as OpenAI takes", default=RequestLimits.max_texts
    )
    text = "longest request body in KiB; 300000 tokens of nearly any script fit into the default"
    add_integer(group, "--max-body-kib", text, default=RequestLimits.max_body_bytes // 1024)
    text = "most requests at a time of a client, and a quarter more of all (429 beyond it)"
    add_integer(group, "--max-requests", text, default=RequestLimits.max_requests)
    text = "most MiB of vectors and answers in memory, half of it for a client (429 beyond it)"
    add_integer(group, "--max-result-mib", text, default=RequestLimits.max_result_bytes // MIB)
    text = "seconds for a request, as long as OpenAI's clients wait; a client may ask for less: X-M3-Deadline-Ms"
    _add_seconds(group, "--deadline-s", text, RequestLimits.deadline_s, above=0)
    text = "seconds for a request's body to arrive, and one more for each 64 KiB"
    _add_seconds(group, "--body-timeout-s", text, RequestLimits.body_timeout_s, above=0)


def _add_surroundings(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("logs, traces and proxies")
    add_choice(group, "--log-level", "least that is logged; requests are info", LogLevel.INFO)
    add_choice(group, "--log-format", "lines for programs or for people", LogFormat.JSON)
    group.add_argument(
        "--root-path",
        type=_matching(r"/?|(/[A-Za-z0-9._~-]+)+/?", "a path such as /m3"),
        default="",
        metavar="PATH",
        help="path prefix under which a proxy shows the server, such as /m3; the proxy may take it off or leave it",
    )
    group.add_argument(
        "--cors-allow-origin",
        type=_matching(
            r"\*|[a-z][a-z0-9+.-]*://[^\s/?#,]+", "SCHEME://HOST or SCHEME://HOST:PORT without a path, or *"
        ),
        action="append",
        metavar="ORIGIN",
        help="let pages of ORIGIN ask from a browser, such as https://example.org, or *; repeatable (default: none)",
    )
    text = "send traces by HTTP to this OpenTelemetry collector, such as http://localhost:4318 (extra otel; default: "
    text += "OTEL_EXPORTER_OTLP_ENDPOINT, or none)"
    url = _matching(r"https?://[^\s/?#]+[^\s?#]*", "a URL such as http://localhost:4318")
    group.add_argument("--otlp-endpoint", type=url, metavar="URL", help=text)


def _add_seconds(group: Any, name: str, text: str, default: float, *, above: float | None = None) -> None:
    kind = number(least=0, most=MOST_SECONDS, above=above)
    group.add_argument(name, type=kind, default=default, metavar="S", help=f"{text} (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Serve as the arguments say."""
    try:
        with ending_at_once():
            from m3_runtime.server.serving import serve
            from m3_runtime.server.tracing import check_traces
    except ImportError as error:
        raise ExtraNotInstalledError(
            f'the server cannot be loaded ({error}); install what it needs: pip install "m3-runtime[serve]"'
        ) from error
    check_traces(arguments.otlp_endpoint)
    serve(settings(arguments))


def settings(arguments: argparse.Namespace) -> ServerSettings:
    """The arguments as settings: those that are called as a setting is are one.

    Raises:
        InputError: a variant is chosen of a reranker that is not given.
    """

    def named(kind: type[RequestLimits | ServerSettings]) -> dict[str, Any]:
        given = vars(arguments)
        return {field.name: given[field.name] for field in fields(kind) if field.name in given}

    how = opening(arguments)
    how["threads"] = arguments.threads or max(1, default_threads() // arguments.workers)
    reranker = None
    if arguments.reranker is not None:
        reranker = ServedBundle(arguments.reranker, **how | {"variant": arguments.reranker_variant})
    elif arguments.reranker_variant != AUTO:
        raise InputError("--reranker-variant is for --reranker, which is not given; name its bundle, or leave it out")
    body_bytes = 1024 * arguments.max_body_kib
    limits: dict[str, Any] = {
        "queue": QueueLimits(max_tokens=arguments.max_queue_tokens, batch_tokens=arguments.batch_tokens),
        "max_body_bytes": body_bytes,
        "max_held_bytes": max(RequestLimits.max_held_bytes, 4 * body_bytes),
        "max_result_bytes": MIB * arguments.max_result_mib,
    }
    others: dict[str, Any] = {
        "bundle": ServedBundle(Path(arguments.bundle), **how),
        "reranker": reranker,
        "model_names": tuple(name.strip() for names in arguments.model_names or () for name in names.split(",")),
        "on_truncate": OnTruncate.TRUNCATE if arguments.auto_truncate else OnTruncate.ERROR,
        "limits": RequestLimits(**named(RequestLimits) | limits),
        "root_path": arguments.root_path.rstrip("/"),
        "has_ui": not arguments.no_ui,
        "logs": LogSettings(arguments.log_level, arguments.log_format),
        "cors_allow_origins": tuple(arguments.cors_allow_origin or ()),
    }
    return ServerSettings(**named(ServerSettings) | others)


def _matching(pattern: str, expected: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        return text

    return parse


def _api_key(text: str) -> str:
    if not is_key(text):
        raise argparse.ArgumentTypeError(f"expected {A_KEY}")
    return text
