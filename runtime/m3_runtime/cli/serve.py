"""m3-runtime serve: a bundle behind HTTP."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m3_runtime.bundle.reader import Verify
from m3_runtime.cli.arguments import add_bundle, integer
from m3_runtime.cpu import default_threads
from m3_runtime.errors import InputError
from m3_runtime.tokenizer import OnTruncate

if TYPE_CHECKING:
    from m3_runtime.server.settings import ServerSettings

_DESCRIPTION = """\
Serve a bundle over HTTP: OpenAI's /v1/embeddings, the routes of text-embeddings-inference, and /m3/encode for all
three heads at once. Texts of many requests run together; short queries do not wait for long passages. Needs the extra
"serve": pip install "m3-runtime[serve]"
"""

_EPILOG = """\
examples:
  m3-runtime serve my-bundle
  m3-runtime serve my-bundle --host 0.0.0.0 --port 8080 --api-key-file keys.txt
  m3-runtime serve my-bundle --max-length 512 --auto-truncate --deadline-s 10

  curl localhost:8080/v1/embeddings -H "content-type: application/json" -d '{"model": "BAAI/bge-m3", "input": "Hello"}'
  curl localhost:8080/rerank -H "content-type: application/json" -d '{"query": "M3?", "texts": ["A model.", "A road."]}'

The model's name is the checkpoint's (GET /v1/models), or --model-name. What is at which path: GET /docs.
SIGTERM ends the server when it has answered what it has taken. Logs are lines of JSON on standard error, without texts.
"""


def add_command(commands: Any) -> None:
    """Add `serve` to the command line."""
    command = commands.add_parser(
        "serve",
        help="a bundle behind HTTP",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_bundle(command)
    _add_service(command)
    _add_limits(command)
    command.set_defaults(run=run)


def _add_service(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("serving")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    group.add_argument("--port", type=integer(0), default=8080, help="0 takes a free one (default: %(default)s)")
    group.add_argument(
        "--workers",
        type=integer(1),
        default=1,
        metavar="N",
        help="processes that serve, each with its own queue and (but for --threads) its part of the cores "
        "(default: 1, which is fastest unless answers are large)",
    )
    group.add_argument("--model-name", metavar="NAME", help="what clients call the model (default: the checkpoint's)")
    group.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="let in only who shows a key of FILE; each line is a key, or a name, a blank and a key; read again when "
        "it changes (default: everyone is let in)",
    )
    group.add_argument("--no-ui", action="store_true", help="no page to play with at /")
    group.add_argument(
        "--max-length", type=integer(3), metavar="N", help="tokens per text (default: what the model takes)"
    )
    group.add_argument(
        "--auto-truncate", action="store_true", help="cut longer texts where a request does not say what to do"
    )
    group.add_argument(
        "--drain-delay-s",
        type=_seconds,
        default=0.0,
        metavar="S",
        help="after SIGTERM, take requests for S seconds more while /ready says no (default: 0)",
    )


def _add_limits(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("limits")
    group.add_argument(
        "--max-queue-tokens",
        type=integer(1),
        default=65536,
        metavar="N",
        help="most tokens that wait, and most of a request; beyond it 429, or 413 (default: %(default)s)",
    )
    group.add_argument(
        "--batch-tokens",
        type=integer(1),
        default=1024,
        metavar="N",
        help="most tokens that run together, but for one long text (default: %(default)s)",
    )
    group.add_argument(
        "--max-texts", type=integer(1), default=1024, metavar="N", help="most texts of a request (default: %(default)s)"
    )
    group.add_argument(
        "--max-body-kib", type=integer(1), default=4096, metavar="N", help="longest body (default: %(default)s KiB)"
    )
    group.add_argument(
        "--max-requests",
        type=integer(1),
        default=512,
        metavar="N",
        help="most requests under way; beyond it 429 (default: %(default)s)",
    )
    group.add_argument(
        "--deadline-s",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="time for a request; one may ask for less with the header X-M3-Deadline-Ms (default: %(default)s)",
    )
    group.add_argument(
        "--body-timeout-s",
        type=_seconds,
        default=10.0,
        metavar="S",
        help="time for a request's body to arrive (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Serve as the arguments say."""
    try:
        from m3_runtime.server.serving import serve
    except ImportError as error:
        raise InputError(
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
        drain_delay_s=arguments.drain_delay_s,
    )


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number < 1e6:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, got {text}")
    return number
