"""What naive INT8 schemes do to a checkpoint: fake-quantized in torch against FP32, and the outliers that explain it.

    python tests/models/naive_int8.py CHECKPOINT [CHECKPOINT …]

Weights are int8 with a scale per column in every scheme; activations are uint8 with a zero point; attention and heads
stay float. Texts are the exporter's: calibration texts for ranges and outliers, probe texts for parity. `DEGENERATE`
texts are measured apart: no calibration text is like them.

A channel's size is its highest |activation| over all calibration tokens. An outlier is known by its size in sizes of
the median channel, so that 1 is an ordinary channel however long the texts are.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from m3_export.calibration.texts import Text, calibration_texts, probe_texts
from m3_export.checkpoint.folder import Checkpoint
from m3_export.checkpoint.tokenizer import CheckpointTokenizer
from m3_export.graph.model import Layer, Linear, M3Model
from m3_export.verify.parity import weighted_jaccard

Change = Callable[["Input", torch.Tensor], torch.Tensor]

INPUTS = ("Q/K/V", "attention output", "FFN-in", "FFN-out")
FAR = 10  # a channel this many times the size of the median channel is counted as an outlier
SMOOTHING = 0.5  # alpha of SmoothQuant (Xiao et al. 2023)
DEGENERATE = (
    "", "a", "7", ".", "字", "ocean", "red apple", "www la www", "apple " * 40, "a a a a a a a a", "</s>",
    "<s></s><pad></s><s>", "!!! ??? ... ,,,", "0123456789 31415926535 8979323846 264",
    "SGVsbG8gd29ybGQhIFRoaXMgaXMgYmFzZTY0IGVuY29kZWQ=", "for (int i=0;i<n;i++){x[i]+=y[i]*2;}", "😀🚀🔥😀",
    "abc абв 字 ا ก",
)  # fmt: skip


@dataclass(frozen=True)
class Vectors:
    """What a model gives for S texts: dense (S, H), ColBERT rows (L-1, C) and lexical weights by id of each."""

    dense: torch.Tensor
    colbert: list[torch.Tensor]
    lexical: list[dict[int, float]]


@dataclass(eq=False)
class Input:
    """What one or three projections of a layer read, and what the calibration texts said about it."""

    kind: str
    readers: tuple[Linear, ...]
    lowest: torch.Tensor | None = None  # (in,) of each channel
    highest: torch.Tensor | None = None  # (in,)

    def observe(self, x: torch.Tensor) -> torch.Tensor:
        """Widen the ranges by x (1, L, in); gives x back."""
        lowest, highest = x.amin(dim=(0, 1)), x.amax(dim=(0, 1))
        self.lowest = lowest if self.lowest is None else torch.minimum(self.lowest, lowest)
        self.highest = highest if self.highest is None else torch.maximum(self.highest, highest)
        return x

    @property
    def sizes(self) -> torch.Tensor:
        """Highest |activation| of each channel: (in,)."""
        assert self.lowest is not None and self.highest is not None
        return torch.maximum(-self.lowest, self.highest)

    @property
    def ratios(self) -> torch.Tensor:
        """Size of each channel in sizes of the median channel: (in,)."""
        return self.sizes / self.sizes.median()

    @property
    def smoothing(self) -> torch.Tensor:
        """What SmoothQuant divides each channel by: (in,)."""
        weights = torch.stack([reader.weight.abs().amax(dim=1) for reader in self.readers]).amax(dim=0)
        return (self.sizes.clamp(min=1e-5) ** SMOOTHING / weights.clamp(min=1e-5) ** (1 - SMOOTHING)).clamp(min=1e-5)

    def range(self, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Lowest and highest activation of the calibration texts, channels divided by scale (in,)."""
        assert self.lowest is not None and self.highest is not None
        return (self.lowest / scale).min(), (self.highest / scale).max()


@dataclass(frozen=True)
class Scheme:
    """How activations get their ranges: from calibration, from the text at hand, or from the token at hand."""

    name: str
    bounds: Callable[[Input, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]  # of x / scale
    smooth: bool = False


def uint8(x: torch.Tensor, lowest: torch.Tensor, highest: torch.Tensor) -> torch.Tensor:
    """X rounded to 256 steps between two bounds, clipped to them; zero is one of the steps."""
    step = ((highest.clamp(min=0) - lowest.clamp(max=0)) / 255).clamp(min=1e-12)
    zero = torch.round(-lowest.clamp(max=0) / step)
    return (torch.clamp(torch.round(x / step) + zero, 0, 255) - zero) * step


def int8_columns(weight: torch.Tensor) -> torch.Tensor:
    """A weight (in, out) rounded to int8 with a scale per column."""
    step = weight.abs().amax(dim=0, keepdim=True).clamp(min=1e-12) / 127
    return torch.round(weight / step) * step


def static_minmax(place: Input, scale: torch.Tensor, _x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One range per tensor, fixed by the calibration texts."""
    return place.range(scale)


def per_tensor(_place: Input, _scale: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One range per tensor, of this text."""
    return x.min(), x.max()


def per_token(_place: Input, _scale: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A range per token."""
    return x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True)


SCHEMES = (
    Scheme("static MinMax, per tensor", static_minmax),
    Scheme("static MinMax, per tensor, SmoothQuant 0.5", static_minmax, smooth=True),
    Scheme("dynamic, per tensor", per_tensor),
    Scheme("dynamic, per token", per_token),
    Scheme("dynamic, per token, SmoothQuant 0.5", per_token, smooth=True),
)


def inputs_of(model: M3Model) -> list[Input]:
    """The four inputs of every layer."""
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    groups = [((x.query, x.key, x.value), (x.attention_out,), (x.ffn_in,), (x.ffn_out,)) for x in layers]
    return [Input(kind, readers) for group in groups for kind, readers in zip(INPUTS, group, strict=True)]


@contextmanager
def changed(places: Sequence[Input], change: Change) -> Iterator[None]:
    """While it lasts, every projection reads what `change` makes of its input."""
    hooks = [
        reader.register_forward_pre_hook(lambda _module, args, place=place: change(place, args[0]))
        for place in places
        for reader in place.readers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def quantized(places: Sequence[Input], scheme: Scheme) -> Iterator[None]:
    """While it lasts, projections compute what their INT8 forms would."""
    scales = {id(place): place.smoothing if scheme.smooth else torch.ones(1) for place in places}
    originals = [(reader, reader.weight.data) for place in places for reader in place.readers]
    for place in places:
        scale = scales[id(place)]
        for reader in place.readers:
            reader.weight.data = int8_columns(reader.weight.data * scale[:, None]) / scale[:, None]

    def quantize(place: Input, x: torch.Tensor) -> torch.Tensor:
        scale = scales[id(place)]
        scaled = x / scale
        return uint8(scaled, *scheme.bounds(place, scale, scaled)) * scale

    with changed(places, quantize):
        yield
    for reader, weight in originals:
        reader.weight.data = weight


def run(model: M3Model, rows: Sequence[torch.Tensor]) -> Vectors:
    """Run each text alone: rows are ids (1, L)."""
    with torch.inference_mode():
        outputs = [model(ids, torch.ones_like(ids)) for ids in rows]
    lexical = []
    for ids, (_, weights, _) in zip(rows, outputs, strict=True):
        heaviest: dict[int, float] = {}
        for token, weight in zip(ids[0].tolist(), weights[0].tolist(), strict=True):
            if weight > 0:
                heaviest[token] = max(weight, heaviest.get(token, 0.0))
        lexical.append(heaviest)
    return Vectors(torch.cat([dense for dense, _, _ in outputs]), [rows[0] for _, _, rows in outputs], lexical)


def report(folder: Path, texts: int, tokens: int, calibration: int) -> str:
    """Both tables of one checkpoint, in Markdown."""
    checkpoint = Checkpoint.open(folder)
    tokenizer = CheckpointTokenizer.open(folder, checkpoint.geometry.vocab_size).original
    model = M3Model(checkpoint, tuple(tokenizer.all_special_ids))
    longest = min(tokens, checkpoint.geometry.max_tokens)

    def encode(chosen: Sequence[str]) -> list[torch.Tensor]:
        return [tokenizer(text, truncation=True, max_length=longest, return_tensors="pt").input_ids for text in chosen]

    places = inputs_of(model)
    natural, degenerate = encode(evenly(probe_texts(), texts)), encode(DEGENERATE)
    with changed(places, lambda place, x: place.observe(x)):
        run(model, encode(evenly(calibration_texts(), calibration)))
    exact, exact_degenerate = run(model, natural), run(model, degenerate)
    lines = [
        f"## {folder.name}",
        "",
        "| scheme | dense mean | dense min | ColBERT p5 | sparse Jaccard | degenerate: dense mean | min |",
        "|---|---|---|---|---|---|---|",
    ]
    for scheme in SCHEMES:
        with quantized(places, scheme):
            got, got_degenerate = run(model, natural), run(model, degenerate)
        dense = torch.cosine_similarity(exact_degenerate.dense, got_degenerate.dense)
        lines.append(f"| {scheme.name} | {figures(exact, got)} | {dense.mean():.4f} | {dense.min():.4f} |")
    return "\n".join([*lines, "", *ratio_table(places), ""])


def figures(exact: Vectors, got: Vectors) -> str:
    """Dense cosine mean and minimum over texts, 5th percentile of ColBERT cosines over tokens, mean Jaccard."""
    dense = torch.cosine_similarity(exact.dense, got.dense)
    colbert = torch.cosine_similarity(torch.cat(exact.colbert), torch.cat(got.colbert))
    jaccard = np.mean([weighted_jaccard(a, b) for a, b in zip(exact.lexical, got.lexical, strict=True)])
    return f"{dense.mean():.4f} | {dense.min():.4f} | {colbert.quantile(0.05):.4f} | {jaccard:.4f}"


def ratio_table(places: Sequence[Input]) -> list[str]:
    """How far the largest channel is from the median one, and how many are far, over layers."""
    lines = [
        f"| input of | largest channel ÷ median channel: lowest, median, highest layer | over {FAR} times, a layer |",
        "|---|---|---|",
    ]
    for kind in INPUTS:
        layers = [place for place in places if place.kind == kind]
        top = np.array([place.ratios.max().item() for place in layers])
        far = [int((place.ratios > FAR).sum()) for place in layers]
        lines.append(f"| {kind} | {top.min():.1f}, {np.median(top):.1f}, {top.max():.1f} | {min(far)} to {max(far)} |")
    return lines


def evenly(texts: Sequence[Text], count: int) -> list[str]:
    """So many of the texts, evenly chosen."""
    return [texts[int(i)].text for i in np.linspace(0, len(texts) - 1, min(count, len(texts)))]


def main() -> None:
    """Print a report for each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--texts", type=int, default=24, help="probe texts, evenly chosen (default: 24)")
    parser.add_argument("--calibration", type=int, default=1000, help="calibration texts, evenly chosen (default: all)")
    parser.add_argument("--tokens", type=int, default=128, help="longest text (default: 128)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for folder in args.checkpoints:
        print(report(folder, args.texts, args.tokens, args.calibration), flush=True)


if __name__ == "__main__":
    main()
