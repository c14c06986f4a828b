"""What is measured, as data: workloads, rows of contenders, and the bar each row is held to."""

import random
from dataclasses import dataclass
from enum import StrEnum

ALL_HEADS = ("dense", "sparse", "colbert")


class Contender(StrEnum):
    """Who runs."""

    BALANCED = "openvino-int8 balanced"
    STRICT = "openvino-int8 strict"
    ONNX_INT8 = "onnx-int8"
    ONNX_FP32 = "onnx-fp32"
    OPENVINO_BF16 = "openvino bf16"
    LITE_INT8 = "bge-m3-lite int8"
    LITE_FP32 = "bge-m3-lite fp32"
    FLAGEMBEDDING = "FlagEmbedding fp32"
    GEMM_ONNXRUNTIME = "int8 GEMM on ONNX Runtime"
    GEMM_OPENVINO = "int8 GEMM on OpenVINO"


@dataclass(frozen=True)
class Workload:
    """Texts: `lengths` are the tokens of each text of each batch; a batch is timed as a whole."""

    name: str
    lengths: tuple[tuple[int, ...], ...]
    heads: tuple[str, ...] = ALL_HEADS

    def within(self, max_tokens: int) -> "Workload":
        """The same, no text longer than a small model takes.

        >>> Workload("long", ((8192,),)).within(512).lengths
        ((512,),)
        """
        lengths = tuple(tuple(min(tokens, max_tokens) for tokens in batch) for batch in self.lengths)
        return Workload(self.name, lengths, self.heads)


def mixed_lengths(texts: int, shortest: int, longest: int, seed: int = 0) -> tuple[int, ...]:
    """Seeded lengths, every one from shortest to longest as likely."""
    rng = random.Random(seed)  # noqa: S311 - noise, no secret
    return tuple(rng.randint(shortest, longest) for _ in range(texts))


_MIXED = mixed_lengths(48, 5, 600)
_MEAN = round(sum(_MIXED) / len(_MIXED))

BATCH = Workload("16 texts of 128 tokens", ((128,) * 16,))
QUERY = Workload("a query of 16 tokens, 20 times", ((16,),) * 20)
LONG = Workload("a text of 8192 tokens", ((8192,),))
MIXED = Workload(f"{len(_MIXED)} texts of 5 to 600 tokens", (_MIXED,))
EQUAL = Workload(f"{len(_MIXED)} texts of {_MEAN} tokens", ((_MEAN,) * len(_MIXED),))
ONE = Workload("a text of 128 tokens, 8 times", ((128,),) * 8)
ONE_DENSE = Workload("a text of 128 tokens, 8 times, dense only", ONE.lengths, ("dense",))
FIRST = Workload("a process until its first vectors, 16 tokens", ((16,),))
PRODUCTS = Workload("a product of 2048 x 1024 x 4096, 10 times", ((),) * 10)


class Measure(StrEnum):
    """What a bar is about; `SPEED` and `CEILING_SHARE` compare the first side with the others, memory is its own."""

    SPEED = "speed ratio"
    CEILING_SHARE = "share of the GEMM ceiling"
    PEAK_BYTES = "peak resident memory"
    RESIDENT_BYTES = "resident memory after the first query"

    @property
    def is_memory(self) -> bool:
        """Less is better, and the figure is bytes."""
        return self in (Measure.PEAK_BYTES, Measure.RESIDENT_BYTES)


@dataclass(frozen=True)
class Bar:
    """A figure to reach: at least `limit`, or for memory at most so many bytes."""

    what: str
    measure: Measure
    limit: float

    def is_met_by(self, figure: float) -> bool:
        """Whether a figure reaches the bar.

        >>> Bar("", Measure.SPEED, 2.0).is_met_by(1.9), Bar("", Measure.PEAK_BYTES, 1e9).is_met_by(1e9)
        (False, True)
        """
        return figure <= self.limit if self.measure.is_memory else figure >= self.limit


class Unit(StrEnum):
    """How a row's raw values read best."""

    TOKENS_PER_S = "tokens/s"
    MILLISECONDS = "ms"
    SECONDS = "s"


@dataclass(frozen=True)
class Side:
    """A contender at a workload. Where the processor cannot run an `optional` one, the row does without."""

    contender: Contender
    workload: Workload
    optional: bool = False


@dataclass(frozen=True)
class Row:
    """Contenders that take turns, and what is to come of it.

    Attributes:
        name: for `--rows`.
        sides: whose figures are compared; the first is ours.
        bars: to reach.
        unit: of the raw values.
        warmup: done once by each side, not counted; None takes the side's own workload.
        rounds: most rounds; long workloads need fewer.
        is_start: each turn is a process of its own, timed from its start to its first vectors.
    """

    name: str
    sides: tuple[Side, ...]
    bars: tuple[Bar, ...]
    unit: Unit = Unit.TOKENS_PER_S
    warmup: Workload | None = None
    rounds: int = 100
    is_start: bool = False


def _pair(name: str, ours: Contender, theirs: Contender, what: str, at_least: float) -> Row:
    return Row(name, (Side(ours, BATCH), Side(theirs, BATCH)), (Bar(what, Measure.SPEED, at_least),))


ROWS = (
    _pair("lite", Contender.BALANCED, Contender.LITE_INT8, "openvino-int8 balanced ÷ bge-m3-lite int8", 3.2),
    _pair("torch", Contender.BALANCED, Contender.FLAGEMBEDDING, "openvino-int8 balanced ÷ FlagEmbedding FP32", 7.0),
    Row(
        "ceiling",
        (
            Side(Contender.BALANCED, BATCH),
            Side(Contender.GEMM_ONNXRUNTIME, PRODUCTS),
            Side(Contender.GEMM_OPENVINO, PRODUCTS, optional=True),
        ),
        (Bar("openvino-int8 balanced, share of the int8 GEMM ceiling", Measure.CEILING_SHARE, 0.85),),
    ),
    _pair("strict", Contender.STRICT, Contender.OPENVINO_BF16, "openvino-int8 strict ÷ openvino bf16", 1.1),
    _pair("onnx-int8", Contender.ONNX_INT8, Contender.LITE_INT8, "onnx-int8 ÷ bge-m3-lite int8", 2.0),
    _pair("onnx-fp32", Contender.ONNX_FP32, Contender.LITE_FP32, "onnx-fp32 ÷ bge-m3-lite fp32", 1.2),
    Row(
        "query",
        (Side(Contender.BALANCED, QUERY), Side(Contender.LITE_INT8, QUERY)),
        (Bar("16-token query, p50: bge-m3-lite int8 ÷ openvino-int8", Measure.SPEED, 2.3),),
        Unit.MILLISECONDS,
    ),
    Row(
        "long",
        (Side(Contender.BALANCED, LONG), Side(Contender.LITE_INT8, LONG)),
        (
            Bar("8192-token text, time: bge-m3-lite int8 ÷ openvino-int8", Measure.SPEED, 2.2),
            Bar("8192-token text: our peak resident memory", Measure.PEAK_BYTES, 1.3e9),
        ),
        Unit.SECONDS,
        warmup=FIRST,
        rounds=2,
    ),
    Row(
        "mixed",
        (Side(Contender.BALANCED, MIXED), Side(Contender.BALANCED, EQUAL)),
        (Bar("mixed corpus ÷ equal lengths, openvino-int8", Measure.SPEED, 0.95),),
        warmup=ONE,
        rounds=3,
    ),
    Row(
        "dense",
        (Side(Contender.BALANCED, ONE_DENSE), Side(Contender.BALANCED, ONE)),
        (Bar("dense only ÷ all heads, 1×128, openvino-int8", Measure.SPEED, 1.03),),
    ),
    Row(
        "start",
        (Side(Contender.BALANCED, FIRST), Side(Contender.LITE_INT8, FIRST)),
        (
            Bar("start to first vectors: bge-m3-lite int8 ÷ openvino-int8", Measure.SPEED, 1.0),
            Bar("our resident memory after the first query", Measure.RESIDENT_BYTES, 700e6),
        ),
        Unit.SECONDS,
        is_start=True,
    ),
)
