"""What is measured, as data: workloads, rows of contenders, and the bar each row is held to."""

import random
from dataclasses import dataclass
from enum import StrEnum

from m3_export.plan.costs import Objective
from m3_runtime.cpu import CpuInfo

ALL_HEADS = ("dense", "sparse", "colbert")


class Contender(StrEnum):
    """Who runs. `BEST` is what `variant="auto"` takes of the bundle."""

    BEST = "ours"
    ONNX_INT8 = "onnx-int8"
    ONNX_FP32 = "onnx-fp32"
    LITE_INT8 = "bge-m3-lite int8"
    LITE_FP32 = "bge-m3-lite fp32"
    FLAGEMBEDDING = "FlagEmbedding fp32"
    LLAMA_CPP = "llama.cpp Q8_0"
    GEMM_ONNXRUNTIME = "int8 GEMM on ONNX Runtime"
    GEMM_OPENVINO = "int8 GEMM on OpenVINO"


@dataclass(frozen=True)
class Planned:
    """A variant of a bundle: a contender of the regret rows."""

    bundle: str
    variant: str

    def __str__(self) -> str:
        return f"{self.bundle} {self.variant}"


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


def by_length(lengths: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Batches of one length each.

    >>> by_length((7, 5, 7))
    ((5,), (7, 7))
    """
    return tuple((length,) * lengths.count(length) for length in sorted(set(lengths)))


_MIXED = mixed_lengths(48, 5, 600)
_MEAN = round(sum(_MIXED) / len(_MIXED))
_QUERIES = mixed_lengths(8, 5, 25)

BATCH = Workload("16 texts of 128 tokens", ((128,) * 16,))
QUERY = Workload("a query of 16 tokens, 20 times", ((16,),) * 20)
LONG = Workload("a text of 8192 tokens", ((8192,),))
MIXED = Workload(f"{len(_MIXED)} texts of 5 to 600 tokens", (_MIXED,))
EQUAL = Workload(f"{len(_MIXED)} texts of {_MEAN} tokens", ((_MEAN,) * len(_MIXED),))
ONE = Workload("a text of 128 tokens, 8 times", ((128,),) * 8)
TOGETHER = Workload("8 queries of 5 to 25 tokens, in one call", (_QUERIES,) * 5)
BY_LENGTH = Workload("8 queries of 5 to 25 tokens, a call for each length", by_length(_QUERIES) * 5)
SHAPES = Workload("a text of 16 and one of 128 tokens, 16 of 128", ((16,), (128,), (128,) * 16))
SHAPE_WEIGHTS = tuple(Objective.BALANCED.weights[shape] for shape in ("query", "passage", "batch"))
FIRST = Workload("a process until its first vectors, 16 tokens", ((16,),))
DENSE_QUERY = Workload(QUERY.name + ", dense only", QUERY.lengths, ("dense",))
DENSE_ONE = Workload(ONE.name + ", dense only", ONE.lengths, ("dense",))
PRODUCTS = Workload("a product of 2048 x 1024 x 4096, 10 times", ((),) * 10)


class Measure(StrEnum):
    """What a bar is about. All but memory compare the first side with the others."""

    SPEED = "ratio of speeds, of the median batch"
    THROUGHPUT = "ratio of throughputs, of all batches"
    CEILING_SHARE = "share of the GEMM ceiling"
    REGRET = "regret"
    PEAK_BYTES = "peak resident memory"
    RESIDENT_BYTES = "resident memory after the first query"

    @property
    def is_memory(self) -> bool:
        """The figure is bytes."""
        return self in (Measure.PEAK_BYTES, Measure.RESIDENT_BYTES)

    @property
    def is_at_most(self) -> bool:
        """Less is better."""
        return self.is_memory or self is Measure.REGRET


@dataclass(frozen=True)
class Bar:
    """A figure to reach: at least `limit`, or at most (regret, and memory in bytes)."""

    what: str
    measure: Measure
    limit: float

    def is_met_by(self, figure: float) -> bool:
        """Whether a figure reaches the bar.

        >>> Bar("", Measure.SPEED, 2.0).is_met_by(1.9), Bar("", Measure.PEAK_BYTES, 1e9).is_met_by(1e9)
        (False, True)
        """
        return figure <= self.limit if self.measure.is_at_most else figure >= self.limit


class Unit(StrEnum):
    """How a row's raw values read best."""

    TOKENS_PER_S = "tokens/s"
    MILLISECONDS = "ms"
    SECONDS = "s"


@dataclass(frozen=True)
class Side:
    """A contender at a workload.

    Attributes:
        contender: who.
        workload: what.
        is_optional: where the processor cannot run it, the row does without.
        processes: so many at a time, each with the whole workload.
        threads: of each process; None for those of the command line.
    """

    contender: Contender | Planned
    workload: Workload
    is_optional: bool = False
    processes: int = 1
    threads: int | None = None


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


class Column(StrEnum):
    """Processors that the bars tell apart."""

    AVX2 = "no int8 dot product"
    VNNI = "int8 dot product"
    WIDE_VNNI = "int8 dot product, 512 bits at once"


def column_of(cpu: CpuInfo) -> Column:
    """A processor's column. AVX512-VNNI came with AVX-VNNI only where 512 bits are one operation (Zen 5, not Zen 4)."""
    if {"avx512_vnni", "avx_vnni"} <= cpu.flags:
        return Column.WIDE_VNNI
    return Column.VNNI if cpu.has_int8_dot else Column.AVX2


def rows_for(column: Column, *, is_small_model: bool = False) -> tuple[Row, ...]:
    """The rows, with the bars of a column.

    Args:
        column: of the processor.
        is_small_model: short queries gain more from packing where a call costs more than its products.
    """
    return (*_peers(column), *_ceilings(column), *_own(column, is_small_model=is_small_model))


def _limit(column: Column, avx2: float, vnni: float) -> float:
    return avx2 if column is Column.AVX2 else vnni


def _pair(name: str, ours: Contender, theirs: Contender, workload: Workload, at_least: float) -> Row:
    what = f"{ours} ÷ {theirs}, {workload.name}"
    unit = Unit.MILLISECONDS if workload.lengths == QUERY.lengths else Unit.TOKENS_PER_S
    return Row(name, (Side(ours, workload), Side(theirs, workload)), (Bar(what, Measure.SPEED, at_least),), unit)


def _peers(column: Column) -> tuple[Row, ...]:
    best, lite, llama = Contender.BEST, Contender.LITE_INT8, Contender.LLAMA_CPP
    fp32, lite_fp32 = Contender.ONNX_FP32, Contender.LITE_FP32
    torch = 7.0 if column is Column.WIDE_VNNI else _limit(column, 1.5, 4.0)
    return (
        _pair("lite", best, lite, BATCH, _limit(column, 1.25, 3.0)),
        _pair("lite-one", best, lite, ONE, _limit(column, 1.3, 2.6)),
        _pair("lite-query", best, lite, QUERY, _limit(column, 1.3, 2.8)),
        Row(
            "lite-long",
            (Side(best, LONG), Side(lite, LONG)),
            (
                Bar(f"{best} ÷ {lite}, {LONG.name}", Measure.SPEED, _limit(column, 1.2, 2.2)),
                Bar(f"{LONG.name}: our peak resident memory", Measure.PEAK_BYTES, 1.3e9),
            ),
            Unit.SECONDS,
            warmup=FIRST,
            rounds=2,
        ),
        Row(
            "lite-start",
            (Side(best, FIRST), Side(lite, FIRST)),
            (
                Bar(f"{best} ÷ {lite}, {FIRST.name}", Measure.SPEED, 1.0),
                Bar("our resident memory after the first query", Measure.RESIDENT_BYTES, 700e6),
            ),
            Unit.SECONDS,
            is_start=True,
        ),
        _pair("torch", best, Contender.FLAGEMBEDDING, BATCH, torch),
        _pair("llama", best, llama, DENSE_ONE, _limit(column, 1.5, 3.5)),
        _pair("llama-query", best, llama, DENSE_QUERY, _limit(column, 1.5, 3.0)),
        _pair("onnx-fp32", fp32, lite_fp32, BATCH, _limit(column, 1.1, 1.2)),
        _pair("onnx-fp32-query", fp32, lite_fp32, QUERY, 1.3),
    )


def _ceilings(column: Column) -> tuple[Row, ...]:
    gemm = Side(Contender.GEMM_ONNXRUNTIME, PRODUCTS)
    return (
        Row(
            "ceiling",
            (Side(Contender.BEST, BATCH), gemm, Side(Contender.GEMM_OPENVINO, PRODUCTS, is_optional=True)),
            (Bar("ours, share of the int8 GEMM ceiling", Measure.CEILING_SHARE, 0.85),),
        ),
        Row(
            "onnx-ceiling",
            (Side(Contender.ONNX_INT8, BATCH), gemm),
            (Bar("onnx-int8, share of its engine's ceiling", Measure.CEILING_SHARE, _limit(column, 0.85, 0.70)),),
        ),
    )


def _own(column: Column, *, is_small_model: bool) -> tuple[Row, ...]:
    best, packed = Contender.BEST, (1.3, 1.5) if is_small_model else (1.0, 1.2)
    return (
        Row(
            "mixed",
            (Side(best, MIXED), Side(best, EQUAL)),
            (Bar("mixed corpus ÷ equal lengths", Measure.SPEED, 0.95),),
            warmup=ONE,
            rounds=3,
        ),
        Row(
            "packed",
            (Side(best, TOGETHER), Side(best, BY_LENGTH)),
            (Bar("8 queries in one call ÷ a call for each length", Measure.THROUGHPUT, _limit(column, *packed)),),
        ),
        Row(
            "processes",
            (Side(best, ONE, processes=2, threads=1), Side(best, ONE, threads=1)),
            (Bar("two processes of one thread ÷ one", Measure.THROUGHPUT, 1.9),),
        ),
    )


def regret_row(chosen: Planned, known: tuple[Planned, ...]) -> Row:
    """The row of an engine: what the planner chose beside plans that are known."""
    sides = tuple(Side(one, SHAPES) for one in (chosen, *known))
    what = f"{chosen} ÷ the fastest that holds its budget, time"
    return Row(f"regret-{chosen.variant}", sides, (Bar(what, Measure.REGRET, 1.03),))
