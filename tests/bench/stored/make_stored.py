"""Writes the stored documents beside it: invented machines and numbers, seeded, in the shape of real ones.

    python tests/bench/stored/make_stored.py

Statistics and reports are tested on the files, so that no test times anything.
"""

import random
from pathlib import Path

from m3_bench import documents
from m3_bench.documents import (
    BadLine,
    Ceiling,
    Contender,
    DatasetFacts,
    Margins,
    MethodRun,
    Model,
    PairScoresOf,
    Retrieval,
    Roofline,
    Round,
    Run,
    Scenario,
    ScenarioRun,
)
from m3_bench.machine import Machine

HERE = Path(__file__).parent
ALL = ("dense", "sparse", "colbert")
ROUNDS = 5
MODEL = Model("example-m3", "5f" * 32, "a1" * 32, 603979776.0)
FLAGS = ("avx2", "avx512_vnni", "avx512f")
CPU = Machine("Example CPU 8-Core", "x86_64", FLAGS, 16, 64 * 2**30, "Linux 6.1", "3.11.9", 0.1)
GPU_HOST = Machine(
    "Example Host CPU", "x86_64", FLAGS, 32, 128 * 2**30, "Linux 6.1", "3.11.9", 0.4, "Example GPU, 24 GiB, CUDA 12.4"
)


def one(tokens: int, calls: int) -> Scenario:
    return Scenario(f"length-{tokens}", f"one text of {tokens} tokens", (tokens,), ALL, calls)


def many(texts: int, calls: int) -> Scenario:
    return Scenario(f"batch-{texts}", f"{texts} texts of 128 tokens", (128,) * texts, ALL, calls)


def callers(clients: int) -> Scenario:
    return Scenario(f"clients-{clients}", f"{clients} callers, texts of 16 tokens", (16,), ALL, 4 * clients, clients)


SCENARIOS = (
    one(16, 20),
    one(128, 6),
    one(512, 2),
    one(2048, 1),
    one(8192, 1),
    Scenario("query-dense", "one text of 16 tokens, dense only", (16,), ("dense",), 20),
    many(4, 2),
    many(16, 1),
    many(32, 1),
    callers(2),
    callers(4),
    callers(8),
)


class Speed:
    """Seconds of a call: a start, a time for each token, and attention; and what more callers do to it."""

    def __init__(self, start_s: float, token_s: float, pair_s: float, gain: float, memory_mb: float) -> None:
        self.start_s, self.token_s, self.pair_s = start_s, token_s, pair_s
        self.gain, self.memory_mb = gain, memory_mb

    def call_s(self, scenario: Scenario) -> float:
        heads = 1.0 if len(scenario.heads) == 3 else 0.93
        return heads * (
            self.start_s + sum(self.token_s * length + self.pair_s * length * length for length in scenario.lengths)
        )

    def bytes(self, scenario: Scenario) -> int:
        return round(1e6 * (self.memory_mb + 0.04 * scenario.tokens + 2.5e-6 * max(scenario.lengths) ** 2))


def rounds_of(scenario: Scenario, speed: Speed, noise: float, draws: random.Random, cores: float) -> tuple[Round, ...]:
    return tuple(_round(scenario, speed, draws.lognormvariate(0, noise), draws, cores) for _ in range(ROUNDS))


def _round(scenario: Scenario, speed: Speed, slow: float, draws: random.Random, cores: float) -> Round:
    crowd = scenario.clients / min(scenario.clients, speed.gain)
    seconds = [slow * crowd * speed.call_s(scenario) * draws.lognormvariate(0, 0.02) for _ in range(scenario.calls)]
    wall_s = sum(seconds) / scenario.clients
    peak = speed.bytes(scenario)
    return Round(
        seconds=tuple(round(s, 6) for s in seconds),
        wall_s=round(wall_s, 6),
        cpu_s=round(wall_s * (cores or 1.0), 6),
        resident_bytes=round(peak * 0.96),
        peak_bytes=peak,
    )


def contender(
    name: str, engine: str, precision: str, speed: Speed, seed: int, size_mb: float, *, ours: bool = True
) -> Contender:
    draws = random.Random(seed)
    scenarios = []
    for scenario in SCENARIOS:
        if name == "PyTorch fp32" and scenario.name == "length-8192":
            scenarios.append(ScenarioRun(scenario.name, 0.0, 0.0, (), "the worker was killed: out of memory?"))
            continue
        noise = 0.18 if (name, scenario.name) == ("onnx-int8", "batch-32") else 0.012
        found = rounds_of(scenario, speed, noise, draws, 0.0 if engine == "torch" else 7.2)
        load_s = round(2 + size_mb / 900 * draws.uniform(0.95, 1.05), 3)
        scenarios.append(ScenarioRun(scenario.name, load_s, round(1.7 * speed.call_s(scenario), 6), found))
    return Contender(
        name, ours, engine, precision, {engine: "1.2.3", "numpy": "2.1.0"}, ALL, round(size_mb * 1e6), None,
        tuple(scenarios),
    )  # fmt: skip


def cpu_run() -> Run:
    whos = (
        contender("openvino-int8", "openvino", "int8", Speed(0.0071, 0.00060, 1.1e-8, 1.5, 900), 1, 596),
        contender("onnx-int8", "onnxruntime", "int8", Speed(0.0079, 0.00092, 1.6e-8, 1.4, 980), 2, 610),
        contender("onnx-fp32", "onnxruntime", "fp32", Speed(0.0140, 0.00240, 2.2e-8, 1.2, 2600), 3, 2267),
        contender("peer int8", "onnxruntime", "int8", Speed(0.0120, 0.00148, 3.9e-8, 1.2, 1700), 4, 604, ours=False),
        contender("PyTorch fp32", "torch", "fp32", Speed(0.0310, 0.00305, 4.0e-8, 1.1, 3100), 5, 2271, ours=False),
    )
    return Run(CPU, MODEL, 8, tuple(range(8)), "7e" * 32, SCENARIOS, whos)


def gpu_run() -> Run:
    speed = Speed(0.0088, 0.0000195, 3e-10, 1.3, 1400)
    who = contender("PyTorch fp16 on Example GPU", "torch", "fp16", speed, 6, 1136, ours=False)
    return Run(GPU_HOST, MODEL, 0, tuple(range(32)), "7e" * 32, SCENARIOS, (who,))


def roofline() -> Roofline:
    draws = random.Random(7)

    def products(flop_per_s: float) -> tuple[float, ...]:
        return tuple(round(flop_per_s * draws.uniform(0.97, 1.02), -6) for _ in range(10))

    return Roofline(
        CPU,
        8,
        (
            Ceiling("openvino", "int8", products(1.62e12)),
            Ceiling("onnxruntime", "int8", products(1.21e12)),
            Ceiling("openvino", "fp32", products(5.1e11)),
            Ceiling("openvino", "bf16", (), "this processor has no bf16"),
        ),
    )


def retrieval() -> Retrieval:
    draws = random.Random(8)
    queries = 60
    hard = [draws.random() for _ in range(queries)]
    methods = []
    for variant, loss in (("onnx-fp32", 0.0), ("openvino-int8", 0.01)):
        for method, level in (("dense", 0.78), ("sparse", 0.66), ("colbert", 0.83), ("dense+sparse 1/0.3", 0.80)):
            found = tuple(round(min(1.0, max(0.0, level + 0.3 * (h - 0.5) - loss * draws.random())), 4) for h in hard)
            recall = tuple(1.0 if value > 0.6 else 0.0 for value in found)
            metrics = {"nDCG@10": found, "R@10": recall, "R@100": (1.0,) * queries, "RR@10": found}
            methods.append(MethodRun("example", variant, method, metrics))
    bm25 = tuple(round(max(0.0, 0.55 + 0.4 * (h - 0.5)), 4) for h in hard)
    methods.append(MethodRun("", "", "BM25 words", {"nDCG@10": bm25, "R@10": bm25, "R@100": bm25, "RR@10": bm25}))
    facts = DatasetFacts("example-set", "beir", "bb" * 32, queries, 60, queries)
    ids = tuple(f"q{n}" for n in range(queries))
    notes = ("onnx-int8 was left out: this processor lacks what it needs",)
    return Retrieval(CPU, {"example": MODEL}, 8, facts, ids, {"rerank": "100"}, tuple(methods), notes)


def margins() -> Margins:
    draws = random.Random(9)
    scores = []
    for bundle, level in (("before", 0.05), ("after", 0.15)):
        for variant in ("onnx-fp32", "openvino-int8"):
            positives = tuple((round(0.5 + level + draws.gauss(0, 0.05), 4),) for _ in range(20))
            negatives = tuple(tuple(round(0.5 + draws.gauss(0, 0.05), 4) for _ in range(3)) for _ in range(20))
            scores.append(PairScoresOf(bundle, MODEL, variant, "dense", positives, negatives))
    bad = (BadLine(7, "no key 'neg'"),)
    return Margins(CPU, "train.jsonl", "cc" * 32, 21, bad, tuple(range(1, 21)), tuple(scores), ())


def main() -> None:
    for name, document in (
        ("run", cpu_run()),
        ("gpu", gpu_run()),
        ("roofline", roofline()),
        ("retrieval", retrieval()),
        ("margins", margins()),
    ):
        documents.write(document, HERE / f"{name}.json")


if __name__ == "__main__":
    main()
