"""m3-runtime serve: a bundle behind HTTP."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3_runtime.bundle.reader import Verify
from m3_runtime.cli.arguments import add_bundle, add_integer, add_parser
from m3_runtime.cpu import default_threads
from m3_runtime.errors import ExtraNotInstalledError
from m3_runtime.server.stopping import ending_at_once
from m3_runtime.tokenizer import OnTruncate

if TYPE_CHECKING:
    from m3_runtime.server.settings import ServerSettings

_DESCRIPTION = """\
Serve a bundle over HTTP: OpenAI's /v1/embeddings, the routes of text-embeddings-inference, and /m3/encode for all
three heads at once. Texts of many requests are batched together; short queries do not wait behind long passages.
Needs the extra "serve": pip install "m3-runtime[serve]"
"""

_EPILOG = """\
examples:
  m3-runtime serve my-bundle
  m3-runtime serve my-bundle --host 0.0.0.0 --port 8080 --api-key-file keys.txt
  m3-runtime serve my-bundle --max-length 512 --auto-truncate --deadline-s 10

  curl localhost:8080/v1/embeddings -H "content-type: application/json" -d '{"model": "BAAI/bge-m3", "input": "Hello"}'
  curl localhost:8080/rerank -H "content-type: application/json" -d '{"query": "M3?", "texts": ["A model.", "A road."]}'

The model's name is the checkpoint's (GET /v1/models), or --model-name. GET /docs lists all routes.
On SIGTERM the server finishes the requests it has accepted, for --drain-s seconds, then exits. Logs are JSON lines on
standard error; they never contain texts.
"""


def add_command(commands: Any) -> None:
    """Add `serve` to the command line."""
    summary = "a bundle behind HTTP (extra serve)"
    command = add_parser(commands, "serve", run, summary=summary, description=_DESCRIPTION, epilog=_EPILOG)
    add_bundle(command)
    _add_service(command)
    _add_limits(command)


def _add_service(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("serving")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    add_integer(group, "--port", "port to listen on; 0 takes a free one", least=0, default=8080)
    text = "processes that serve, each with its own queue and, without --threads, its share of the cores"
    add_integer(group, "--workers", f"{text}; 1 is fastest unless answers are large", default=1)
    group.add_argument("--model-name", metavar="NAME", help="what clients call the model (default: the checkpoint's)")
    group.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="require an API key from FILE (one per line: KEY or NAME KEY); reloaded when FILE changes (default: none)",
    )
    group.add_argument("--open-metrics", action="store_true", help="answer /metrics without a key")
    add_integer(group, "--metrics-port", "answer /metrics, without a key, at another port too", least=0)
    group.add_argument("--no-ui", action="store_true", help="do not serve the playground at /")
    add_integer(group, "--max-length", "tokens per text (default: as many as the model takes)", least=3)
    text = "truncate longer texts where a request does not say what to do"
    group.add_argument("--auto-truncate", action="store_true", help=text)
    text = "after SIGTERM, serve for S more seconds while /ready answers 503"
    _add_seconds(group, "--drain-delay-s", text, 0.0)
    text = "after that, S seconds for the requests under way, then 503; with --drain-delay-s less than Kubernetes' 30 s"
    _add_seconds(group, "--drain-s", text, 20.0)


def _add_limits(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("limits")
    text = "most tokens that wait (429 beyond it), and most of one request (413); OpenAI's longest has 300000"
    add_integer(group, "--max-queue-tokens", text, default=2**20)
    text = "most tokens that run together, except one long text; more gain little, and keep short queries waiting"
    add_integer(group, "--batch-tokens", text, default=1024)
    add_integer(group, "--max-texts", "most texts of a request, as many as OpenAI takes", default=2048)
    text = "longest request body in KiB; 300000 tokens of nearly any script fit into the default"
    add_integer(group, "--max-body-kib", text, default=8192)
    text = "most requests at a time of a client, and a quarter more of all (429 beyond it)"
    add_integer(group, "--max-requests", text, default=512)
    text = "most MiB of vectors and answers in memory, half of it for a client (429 beyond it)"
    add_integer(group, "--max-result-mib", text, default=1024)
    text = "seconds for a request, as long as OpenAI's clients wait; a client may ask for less: X-M3-Deadline-Ms"
    _add_seconds(group, "--deadline-s", text, 600.0)
    text = "seconds for a request's body to arrive, and one more for each 64 KiB"
    _add_seconds(group, "--body-timeout-s", text, 10.0)


def _add_seconds(group: Any, name: str, text: str, default: float) -> None:
    group.add_argument(name, type=_seconds, default=default, metavar="S", help=f"{text} (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Serve as the arguments say."""
    try:
        with ending_at_once():
            from m3_runtime.server.serving import serve
    except ImportError as error:
        raise ExtraNotInstalledError(
            f'the server cannot be loaded ({error}); install what it needs: pip install "m3-runtime[serve]"'
        ) from error
    serve(settings(arguments))


def settings(arguments: argparse.Namespace) -> "ServerSettings":
    """The arguments as settings."""
    from m3_runtime.server.queue import QueueLimits
    from m3_runtime.server.settings import RequestLimits, ServedBundle, ServerSettings

    body_bytes = 1024 * arguments.max_body_kib
    limits = RequestLimits(
        queue=QueueLimits(max_tokens=arguments.max_queue_tokens, batch_tokens=arguments.batch_tokens),
        max_texts=arguments.max_texts,
        max_body_bytes=body_bytes,
        max_held_bytes=max(RequestLimits.max_held_bytes, 4 * body_bytes),
        max_result_bytes=1024**2 * arguments.max_result_mib,
        max_requests=arguments.max_requests,
        deadline_s=arguments.deadline_s,
        body_timeout_s=arguments.body_timeout_s,
    )
    bundle = ServedBundle(
        path=Path(arguments.bundle),
        threads=arguments.threads or max(1, default_threads() // arguments.workers),
        variant=arguments.variant,
        engine=arguments.engine,
        verify=Verify(arguments.verify),
        cache_dir=None if arguments.cache_dir is None else Path(arguments.cache_dir),
        low_memory=arguments.low_memory,
        streams=arguments.streams,
    )
    return ServerSettings(
        bundle=bundle,
        host=arguments.host,
        port=arguments.port,
        workers=arguments.workers,
        model_name=arguments.model_name,
        max_length=arguments.max_length,
        on_truncate=OnTruncate.TRUNCATE if arguments.auto_truncate else OnTruncate.ERROR,
        limits=limits,
        api_key_file=arguments.api_key_file,
        has_ui=not arguments.no_ui,
        open_metrics=arguments.open_metrics,
        metrics_port=arguments.metrics_port,
        drain_delay_s=arguments.drain_delay_s,
        drain_s=arguments.drain_s,
    )


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < 1e6:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, got {text}")
    return number
