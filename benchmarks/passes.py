"""What each pass, and each choice of the ONNX Runtime session, buys: left out in turn, against all of them together.

    python benchmarks/passes.py CHECKPOINT TABLE [TABLE …] [--layers N] [--shapes 1x16,1x128] [--graphs FOLDER]

TABLE is one of

    fp32, int8                  graphs with one pass left out
    fp32-session, int8-session  the same graph in another session
    attention                   batches with and without padding: the masked branch and the flash branch
    dense                       dense-only calls against all heads
    accuracy                    what INT8 passes buy: the probe texts against PyTorch FP32

A pass is left out by putting one that does nothing in its place, so the graphs are the exporter's own, whatever passes
it has. All projections are dynamic INT8 in the int8 graphs. With --layers the encoder keeps its first N layers: ratios
between passes need no more. Where speed is measured the word table is cut too; it is looked up, never multiplied.

A figure is a contender's time in parts of the first one's (`session_turns`): above 1, what was left out pays.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from unittest import mock

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from m3_export.calibration import statistics as calibration
from m3_export.calibration.texts import Text, calibration_texts, probe_texts
from m3_export.checkpoint.folder import Checkpoint
from m3_export.checkpoint.tokenizer import CheckpointTokenizer
from m3_export.graph import passes
from m3_export.graph.model import M3Model
from m3_export.graph.trace import trace
from m3_export.plan.plan import Precision, PrecisionPlan, Scheme
from m3_export.plan.simulation import QuantizedModel
from m3_export.quantize import variants
from m3_export.quantize.onnx_int8 import QuantizeProjections
from m3_export.recipe import Recipe
from m3_export.verify import parity
from m3_runtime.cpu import cpu_info, default_threads
from m3_runtime.engines import KEPT_TOKENS
from m3_runtime.engines.ort import session_config
from session_turns import ALL_HEADS, SPINNING, Contender, Shape, markdown, speed_table

Ids = np.ndarray

SHAPES = "1x16,1x128,16x128,1x4096"
WORDS = 8192  # rows of the word table where speed is measured
PROBE_TOKENS = 512
FOR_SPEED = ("FuseAttention", "PreventSkipLayerNorm", "KeepLastLayerRows")
FOR_INT8 = ("SplitOutlierNeurons", "CentreActivations", "ShiftBiases")


class Nothing(ir.passes.InPlacePass):
    """The pass that stands in for one that is left out."""

    def __init__(self, *_settings: object) -> None:
        """Takes whatever the other one takes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """See `onnx_ir.passes.InPlacePass`."""
        return ir.passes.PassResult(model, modified=False)


@contextmanager
def left_out(names: Sequence[str]) -> Iterator[None]:
    """While it lasts, the exporter's passes of these names do nothing."""
    with ExitStack() as stack:
        for name in names:
            home = passes if hasattr(passes, name) else variants
            stack.enter_context(mock.patch.object(home, name, Nothing))
        yield


class Exporter:
    """A checkpoint, perhaps with fewer layers, and the graphs that the exporter's passes make of it."""

    def __init__(self, folder: Path, layers: int | None, every: int = 1) -> None:
        """The checkpoint is opened when a graph is asked for; of its texts every so-manieth is used."""
        self._folder, self._layers, self._every = folder, layers, every

    @property
    def layers(self) -> int:
        """How many are left."""
        return len(self.model.layers)

    @property
    def model(self) -> M3Model:
        """The model that is traced."""
        return self._opened[0]

    @cached_property
    def _opened(self) -> tuple[M3Model, CheckpointTokenizer]:
        checkpoint = Checkpoint.open(self._folder, Recipe())
        tokenizer = CheckpointTokenizer.open(self._folder, checkpoint.geometry.vocab_size)
        model = M3Model(checkpoint, tokenizer.info.unused_ids)
        model.layers = model.layers[: self._layers]
        return model, tokenizer

    @cached_property
    def traced(self) -> ir.Model:
        """As PyTorch exports it."""
        return trace(self.model)

    def ids(self, texts: Sequence[Text], tokens: int) -> list[Ids]:
        """(L,) ids of each text, cut to so many tokens."""
        tokenize, chosen = self._opened[1].original, [text.text for text in texts[:: self._every]]
        return [np.array(tokenize(text, truncation=True, max_length=tokens).input_ids) for text in chosen]

    def fp32(self, without: Sequence[str] = (), words: int | None = WORDS) -> ir.Model:
        """The graph of onnx-fp32."""
        with left_out(without):
            return passes.for_onnxruntime(self._portable(words))

    def int8(self, without: Sequence[str] = (), words: int | None = WORDS) -> ir.Model:
        """The graph of onnx-int8 when every projection is dynamic."""
        statistics = self._statistics(
            outliers="SplitOutlierNeurons" not in without, centred="CentreActivations" not in without
        )
        plan = PrecisionPlan.uniform(self.layers, Scheme(Precision.DYNAMIC), group=0)
        projections = QuantizedModel(self.model, statistics).projections(plan)
        with left_out(without):
            easier = variants.Graphs(self._portable(words), Path()).for_int8(statistics, projections)
            quantize = ir.passes.Sequential(QuantizeProjections(projections), RemoveUnusedNodesPass())
            return quantize(passes.for_onnxruntime(easier)).model

    def _portable(self, words: int | None) -> ir.Model:
        model = passes.portable(self.traced.clone())
        table = model.graph.initializers["words"]
        table.const_value = ir.tensor(table.const_value.numpy()[:words], name="words")
        table.shape = table.const_value.shape
        return model

    @cache  # noqa: B019 - lives as long as the command
    def _statistics(self, *, outliers: bool, centred: bool) -> calibration.ActivationStatistics:
        """On the calibration texts; measured again where a pass that changes the activations is left out."""
        with ExitStack() as stack:
            if not outliers:
                stack.enter_context(mock.patch.object(calibration, "MOST_OUTLIERS", 0))
            if not centred:
                stack.enter_context(mock.patch.object(calibration, "norm_before", lambda _projection: None))
            return calibration.measure(self.model, self.ids(calibration_texts(), calibration.MAX_TOKENS), list)


class Bench:
    """The tables; graphs are saved in a folder, each when it is first asked for."""

    def __init__(self, exporter: Exporter, folder: Path, shapes: Sequence[Shape], seconds: float, threads: int) -> None:
        self._exporter, self._folder = exporter, folder
        self._shapes, self._seconds, self._threads = shapes, seconds, threads

    def graph(self, precision: str, without: Sequence[str] = (), words: int | None = WORDS) -> Path:
        """The file of a graph."""
        path = self._folder / f"{'-'.join([precision, *without, str(words)])}.onnx"
        if not path.exists():
            make = self._exporter.int8 if precision == "int8" else self._exporter.fp32
            ir.save(make(without, words), path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
        return path

    def contender(self, name: str, precision: str, without: Sequence[str] = (), **config: str) -> Contender:
        """A graph in the session that our runtime opens, with some of its configuration changed."""
        ours = session_config({}, is_int8=precision == "int8")
        return Contender(name, self.graph(precision, without), ours | {f"session.{k}": v for k, v in config.items()})

    def without_passes(self, precision: str) -> list[str]:
        """Each pass left out."""
        names = [*FOR_SPEED, *(["SplitOutlierNeurons"] if precision == "int8" else [])]
        field_of = [self.contender(f"without {name}", precision, [name]) for name in names]
        return self._speed([self.contender("all passes", precision), *field_of])

    def other_sessions(self, precision: str) -> list[str]:
        """Each choice of the session made otherwise."""
        ours = self.contender("our session", precision)
        field_of = [
            ours,
            replace(ours, name="threads spin", config={**ours.config, SPINNING: "1"}),
            self.contender("no prepacking", precision, disable_prepacking="1"),
            replace(ours, name="optimiser: extended", level="ORT_ENABLE_EXTENDED"),
            replace(ours, name="optimiser: basic", level="ORT_ENABLE_BASIC"),
            replace(ours, name="optimiser: off", level="ORT_DISABLE_ALL"),
        ]
        if precision == "int8":
            other = str(1 - int(ours.config.get("session.x64quantprecision", "0")))
            field_of.append(self.contender(f"x64quantprecision {other}", precision, x64quantprecision=other))
        return self._speed(field_of, memory=True)

    def attention(self) -> list[str]:
        """The flash branch, the masked branch, and attention not fused at all."""
        lines = []
        for precision in ("fp32", "int8"):
            flash = self.contender(f"{precision}, no padding: flash", precision)
            masked = replace(flash, name=f"{precision}, one padded token: masked", padded=True)
            plain = self.contender(f"{precision}, attention not fused", precision, ["FuseAttention"])
            lines += self._speed([flash, masked, plain], memory=True)
        return lines

    def dense(self) -> list[str]:
        """A dense-only call with the last layer for one token, for all tokens, and all heads."""
        lines = []
        for precision in ("fp32", "int8"):
            heads = self.contender(f"{precision}, all heads", precision)
            all_tokens = replace(heads, name=f"{precision}, dense only", outputs=ALL_HEADS[:1])
            first = {KEPT_TOKENS: np.ones(1, np.int64)}
            field_of = [heads, all_tokens]
            if KEPT_TOKENS in {v.name for v in heads.open(self._threads).get_overridable_initializers()}:
                field_of.append(replace(all_tokens, name=f"{precision}, dense only, kept_tokens 1", feed=first))
            lines += self._speed(field_of)
        return lines

    def accuracy(self) -> list[str]:
        """Each INT8 pass left out, and u8 x s8 on a processor where that saturates."""
        ids = self._exporter.ids(probe_texts(), PROBE_TOKENS)
        exact, rows = _of_torch(self._exporter.model, ids), {}
        all_of_them = self._accurate("all passes", ())
        field_of = [all_of_them, *(self._accurate(f"without {name}", [name]) for name in FOR_INT8)]
        field_of.append(self._accurate("without all three", FOR_INT8))
        if all_of_them.config.get("session.x64quantprecision") == "1":
            config = {**all_of_them.config, "session.x64quantprecision": "0"}
            field_of.append(replace(all_of_them, name="x64quantprecision 0", config=config))
        for contender in field_of:
            rows[contender.name] = _figures(exact, _of_session(contender, ids, self._threads))
        return markdown(["against PyTorch FP32", "dense mean", "dense min", "ColBERT p5"], rows)

    def _accurate(self, name: str, without: Sequence[str]) -> Contender:
        return Contender(name, self.graph("int8", without, None), session_config({}, is_int8=True))

    def _speed(self, contenders: Sequence[Contender], *, memory: bool = False) -> list[str]:
        return speed_table(contenders, self._shapes, self._seconds, self._threads, memory=memory)


def _of_torch(model: M3Model, ids: Sequence[Ids]) -> parity.Outputs:
    with torch.inference_mode():
        rows = [torch.from_numpy(row)[None] for row in ids]
        outputs = [model(row, torch.ones_like(row)) for row in rows]
    return _outputs([[part.numpy() for part in found] for found in outputs])


def _of_session(contender: Contender, ids: Sequence[Ids], threads: int) -> parity.Outputs:
    session = contender.open(threads)
    feeds = [{"input_ids": row[None], "attention_mask": np.ones_like(row[None])} for row in ids]
    return _outputs([session.run(list(ALL_HEADS), feed) for feed in feeds])


def _outputs(found: Sequence[Sequence[np.ndarray]]) -> parity.Outputs:
    return parity.Outputs(np.concatenate([dense for dense, _, _ in found]), None, [rows[0] for _, _, rows in found])


def _figures(exact: parity.Outputs, got: parity.Outputs) -> list[str]:
    dense, colbert = parity.dense_parity(exact, got), parity.colbert_parity(exact, got)
    assert colbert is not None
    return [f"{figure:.5f}" for figure in (dense.cosine_mean, dense.cosine_min, colbert.cosine_p5)]


TABLES: Mapping[str, Callable[[Bench], list[str]]] = {
    "fp32": lambda bench: bench.without_passes("fp32"),
    "int8": lambda bench: bench.without_passes("int8"),
    "fp32-session": lambda bench: bench.other_sessions("fp32"),
    "int8-session": lambda bench: bench.other_sessions("int8"),
    "attention": Bench.attention,
    "dense": Bench.dense,
    "accuracy": Bench.accuracy,
}


def shapes_of(text: str) -> list[Shape]:
    """`1x16,16x128` as pairs."""
    pairs = [word.split("x") for word in text.split(",")]
    return [(int(texts), int(tokens)) for texts, tokens in pairs]


def main() -> None:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("tables", nargs="+", choices=list(TABLES), metavar="TABLE")
    parser.add_argument("--layers", type=int, help="keep so many layers (default: all)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="use every Nth calibration and probe text")
    parser.add_argument(
        "--shapes", type=shapes_of, default=SHAPES, help=f"texts x tokens, no longer than the model takes ({SHAPES})"
    )
    parser.add_argument("--graphs", type=Path, metavar="FOLDER", help="keep the graphs here, and use those that are")
    parser.add_argument("--seconds", type=float, default=20, help="time for each shape of a table (default: 20)")
    parser.add_argument("--threads", type=int, default=default_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    exporter = Exporter(args.checkpoint, args.layers, args.every)
    layers = "all" if args.layers is None else f"the first {args.layers}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.graphs or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(exporter, folder, args.shapes, args.seconds, args.threads)
        for table in args.tables:
            about = f"{args.checkpoint.name}, {layers} layers, {cpu_info().name}, {args.threads} threads"
            print(f"### {table}: {about}\n\n" + "\n".join(TABLES[table](bench)), flush=True)


if __name__ == "__main__":
    main()
