"""Arguments that several commands share."""

import argparse
from collections.abc import Callable

from m3_runtime.encode.batching import DEFAULT_TOKEN_BUDGET
from m3_runtime.encode.options import DEFAULT_BATCH_SIZE
from m3_runtime.encoder import M3Encoder
from m3_runtime.engines.select import AUTO


def integer(least: int) -> Callable[[str], int]:
    """An argparse type: an integer of at least `least`."""

    def parse(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {number}")
        return number

    parse.__name__ = "integer"  # argparse shows it: "invalid integer value"
    return parse


def _streams(text: str) -> int | str:
    """An argparse type: how many streams, or "auto"."""
    return text if text == AUTO else integer(1)(text)


def add_bundle(command: argparse.ArgumentParser) -> None:
    """The bundle, and how to open it."""
    command.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder")
    group = command.add_argument_group("opening the bundle")
    group.add_argument("--variant", default="auto", help="a variant's name (default: the fastest that runs here)")
    group.add_argument("--engine", default="auto", choices=("auto", "onnxruntime", "openvino"), help="default: auto")
    group.add_argument(
        "--threads", type=integer(1), help="threads of all runs together (default: the cores this process may use)"
    )
    group.add_argument(
        "--streams",
        type=_streams,
        default=1,
        metavar="N|auto",
        help="how many batches run at a time and share the threads; for many cores and many texts (default: 1)",
    )
    group.add_argument(
        "--verify",
        default="size",
        choices=("size", "full"),
        help="full compares every SHA-256, size those of small files (default: size)",
    )
    group.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="where OpenVINO keeps what it compiled, without the weights, to start faster next time (default: "
        "nowhere; onnxruntime keeps nothing)",
    )
    group.add_argument(
        "--low-memory", action="store_true", help="hold less in memory and take longer; the vectors are the same"
    )


def add_batching(command: argparse.ArgumentParser) -> None:
    """How much runs together."""
    group = command.add_argument_group("batching")
    group.add_argument(
        "--batch-size",
        type=integer(1),
        default=DEFAULT_BATCH_SIZE,
        metavar="N",
        help="most texts that run together (default: %(default)s)",
    )
    group.add_argument(
        "--token-budget",
        type=integer(1),
        default=DEFAULT_TOKEN_BUDGET,
        metavar="N",
        help="most tokens that run together; working memory follows it (default: %(default)s)",
    )


def add_on_truncate(command: argparse.ArgumentParser) -> None:
    """What becomes of texts that are too long."""
    command.add_argument(
        "--on-truncate",
        choices=("truncate", "error"),
        default="truncate",
        help="what to do with longer texts (default: %(default)s, and say how many)",
    )


def open_encoder(arguments: argparse.Namespace) -> M3Encoder:
    """Open the bundle as the arguments say."""
    return M3Encoder.open(
        arguments.bundle,
        variant=arguments.variant,
        engine=arguments.engine,
        threads=arguments.threads,
        verify=arguments.verify,
        cache_dir=arguments.cache_dir,
        low_memory=arguments.low_memory,
        streams=arguments.streams,
    )
