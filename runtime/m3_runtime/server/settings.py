"""A server's settings, checked and frozen. Picklable: worker processes get them whole."""

from dataclasses import dataclass, field
from pathlib import Path

from m3_runtime.bundle.reader import Bundle, Verify
from m3_runtime.encoder import M3Encoder
from m3_runtime.engines.select import AUTO
from m3_runtime.errors import InputError
from m3_runtime.reranker import M3Reranker
from m3_runtime.server.logs import LogSettings
from m3_runtime.server.queue import QueueLimits
from m3_runtime.tokenizer import OnTruncate

MIB = 2**20


@dataclass(frozen=True)
class ServedBundle:
    """Which bundle each worker opens, and how: the arguments of `M3Encoder.open` and `M3Reranker.open`."""

    path: Path
    threads: int
    variant: str = AUTO
    engine: str = AUTO
    verify: Verify = Verify.SIZE
    cache_dir: Path | None = None
    low_memory: bool = False
    streams: int | str = 1

    def open(self) -> M3Encoder | M3Reranker:
        """Open the bundle, whichever kind it is.

        Raises:
            M3Error: as `M3Encoder.open`.
        """
        return M3Reranker.open(**vars(self)) if self.is_reranker() else M3Encoder.open(**vars(self))

    def is_reranker(self) -> bool:
        """Whether it is a reranker's bundle.

        Raises:
            BundleError: as `M3Encoder.open`.
        """
        return Bundle.open(self.path).manifest.is_reranker


@dataclass(frozen=True)
class RequestLimits:
    """How large a request may be, and how much the server holds at a time; most have an option of their name.

    Defaults take what OpenAI takes: 2048 texts, 300 000 tokens, and clients that wait 600 s.

    Attributes:
        queue: what may wait and what runs together.
        max_body_bytes: 300 000 tokens of nearly any script fit, escaped as JSON allows.
        max_held_bytes: bodies of all requests under way together, half of it for one client; beyond it requests are
            refused with 429. A body counts as it arrives.
        max_result_bytes: vectors and answers of all requests under way together, half of it for one client; a request
            counts for what its answer may take.
        max_kept_bytes: finished vectors of requests that got no answer.
        kept_s: how long these wait for the same request to come again.
        max_requests: requests under way of one client, and a quarter more of all. A request counts once its body is
            there.
        max_colbert_json_tokens: most tokens of a request whose ColBERT vectors are answered as JSON, where a token of
            BGE-M3 takes 11 kB.
        deadline_s: time for a request from its last byte to its answer; a request may ask for less.
        body_timeout_s: time for a request's body to arrive; a long one has more, see `admission`.
    """

    queue: QueueLimits = field(default_factory=QueueLimits)
    max_texts: int = 2048
    max_body_bytes: int = 8 * MIB
    max_held_bytes: int = 128 * MIB
    max_result_bytes: int = 1024 * MIB
    max_kept_bytes: int = 128 * MIB
    kept_s: float = 120.0
    max_requests: int = 512
    max_colbert_json_tokens: int = 16384
    deadline_s: float = 600.0
    body_timeout_s: float = 10.0


@dataclass(frozen=True)
class ServerSettings:
    """A server: what it serves, where, and within which limits. `m3-runtime serve --help` says what each one means.

    The first of `model_names` is what answers call the model; `max_length` None is the model's limit. With neither
    `api_key` nor `api_key_file` everyone is let in. `metrics_port` 0 takes a free one, None opens none.
    """

    bundle: ServedBundle
    reranker: ServedBundle | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    model_names: tuple[str, ...] = ()
    is_any_model_served: bool = False
    max_length: int | None = None
    on_truncate: OnTruncate = OnTruncate.ERROR
    takes_token_ids: bool = False
    cuts_dimensions: bool = False
    limits: RequestLimits = field(default_factory=RequestLimits)
    api_key_file: Path | None = None
    api_key: str | None = field(default=None, repr=False)
    has_ui: bool = True
    open_metrics: bool = False
    metrics_port: int | None = None
    drain_delay_s: float = 0.0
    drain_s: float = 20.0
    root_path: str = ""
    cors_allow_origins: tuple[str, ...] = ()
    otlp_endpoint: str | None = None
    logs: LogSettings = field(default_factory=LogSettings)

    def open_reranker(self) -> M3Reranker | None:
        """Open the reranker beside the bundle, if there is to be one.

        Raises:
            M3Error: as `M3Reranker.open`, and InputError where the bundle itself is a reranker's.
        """
        self.check_kinds()
        return None if self.reranker is None else M3Reranker.open(**vars(self.reranker))

    def check_kinds(self) -> None:
        """See that a reranker stands beside an encoder.

        Raises:
            InputError: one of the two bundles is of the other kind, or a setting is for an encoder, and there is none.
            BundleError: as `M3Encoder.open`.
        """
        if self.reranker is None:
            if self.bundle.is_reranker() and (self.takes_token_ids or self.cuts_dimensions):
                option = "--accept-token-ids" if self.takes_token_ids else "--allow-dimensions"
                path = str(self.bundle.path)
                raise InputError(f"{option} is for an encoder's bundle, and {path!r} is a reranker's; leave it out")
            return
        if self.bundle.is_reranker():
            path = str(self.bundle.path)
            raise InputError(f"{path!r} is a reranker's bundle; serve it alone, or name an encoder's beside --reranker")
        if not self.reranker.is_reranker():
            path = str(self.reranker.path)
            raise InputError(
                f"--reranker {path!r} is an encoder's bundle, expected a reranker's; make one with m3-export "
                "BAAI/bge-reranker-v2-m3 OUT, or leave --reranker out: the encoder's heads score then"
            )
