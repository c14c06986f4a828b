"""What naive INT8 schemes do to a checkpoint: fake-quantized in torch against FP32, and the outliers that explain it.

    python benchmarks/naive_int8.py CHECKPOINT [CHECKPOINT …]

Weights are int8 with a scale per column in every scheme; activations are uint8 with a zero point; attention and heads
stay float. Texts are the exporter's: calibration texts for ranges and outliers, probe texts for cosines.

A channel's size is its highest |activation| over all calibration tokens. An outlier is told by its size in sizes of the
median channel, so that 1 is an ordinary channel however long the texts are.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from m3_export.checkpoint import Checkpoint
from m3_export.model import Layer, M3Model, Projection
from m3_export.recipe import Recipe
from m3_export.texts import Text, calibration_texts, probe_texts
from m3_export.tokenizer import CheckpointTokenizer

Vectors = tuple[torch.Tensor, list[torch.Tensor]]  # dense (S, H), ColBERT rows (L-1, C) of each text
Quantize = Callable[["Input", torch.Tensor], torch.Tensor]

INPUTS = ("Q/K/V", "attention output", "FFN-in", "FFN-out")
FAR = 10  # a channel this many times the size of the median channel is counted as an outlier
SMOOTHING = 0.5  # alpha of SmoothQuant (Xiao et al. 2023)


@dataclass
class Input:
    """What one or three projections of a layer read, and what the calibration texts said about it."""

    kind: str
    readers: tuple[Projection, ...]
    lowest: float = 0.0
    highest: float = 0.0
    loudest: torch.Tensor | None = None  # (in,) highest |x| of each channel

    def listen(self, x: torch.Tensor) -> torch.Tensor:
        """Widen the ranges by x (1, L, in); gives x back."""
        self.lowest, self.highest = min(self.lowest, x.min().item()), max(self.highest, x.max().item())
        loudest = x.abs().amax(dim=(0, 1))
        self.loudest = loudest if self.loudest is None else torch.maximum(self.loudest, loudest)
        return x

    @property
    def ratios(self) -> torch.Tensor:
        """Size of each channel in sizes of the median channel: (in,)."""
        assert self.loudest is not None
        return self.loudest / self.loudest.median()

    @property
    def smoothing(self) -> torch.Tensor:
        """What SmoothQuant divides each channel by: (in,)."""
        assert self.loudest is not None
        weights = torch.stack([reader.weight.abs().amax(dim=1) for reader in self.readers]).amax(dim=0)
        return (self.loudest.clamp(min=1e-5) ** SMOOTHING / weights.clamp(min=1e-5) ** (1 - SMOOTHING)).clamp(min=1e-5)


def uint8(x: torch.Tensor, lowest: torch.Tensor, highest: torch.Tensor) -> torch.Tensor:
    """X rounded to 256 steps between two bounds, clipped to them; zero is one of the steps."""
    step = ((highest.clamp(min=0) - lowest.clamp(max=0)) / 255).clamp(min=1e-12)
    zero = torch.round(-lowest.clamp(max=0) / step)
    return (torch.clamp(torch.round(x / step) + zero, 0, 255) - zero) * step


def int8_columns(weight: torch.Tensor) -> torch.Tensor:
    """A weight (in, out) rounded to int8 with a scale per column."""
    step = weight.abs().amax(dim=0, keepdim=True).clamp(min=1e-12) / 127
    return torch.round(weight / step) * step


def static_minmax(place: Input, x: torch.Tensor) -> torch.Tensor:
    """One range per tensor, fixed by the calibration texts."""
    return uint8(x, torch.tensor(place.lowest), torch.tensor(place.highest))


def per_tensor(_place: Input, x: torch.Tensor) -> torch.Tensor:
    """One range per tensor, of this text."""
    return uint8(x, x.min(), x.max())


def per_row(_place: Input, x: torch.Tensor) -> torch.Tensor:
    """A range per token."""
    return uint8(x, x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True))


SCHEMES: tuple[tuple[str, Quantize, bool], ...] = (
    ("static MinMax, per tensor", static_minmax, False),
    ("dynamic, per tensor", per_tensor, False),
    ("dynamic, per row", per_row, False),
    ("dynamic, per row, SmoothQuant 0.5", per_row, True),
)


def inputs_of(model: M3Model) -> list[Input]:
    """The four inputs of every layer."""
    layers = [module for module in model.modules() if isinstance(module, Layer)]
    groups = [((x.query, x.key, x.value), (x.attention_out,), (x.ffn_in,), (x.ffn_out,)) for x in layers]
    return [Input(kind, readers) for group in groups for kind, readers in zip(INPUTS, group, strict=True)]


@contextmanager
def heard_by(places: Sequence[Input], change: Quantize) -> Iterator[None]:
    """While it lasts, every projection reads what `change` makes of its input; Q, K and V are heard once."""
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
def quantized(places: Sequence[Input], quantize: Quantize, *, smooth: bool) -> Iterator[None]:
    """While it lasts, projections compute what their INT8 forms would."""
    scales = {id(place): place.smoothing if smooth else torch.ones(1) for place in places}
    originals = [(reader, reader.weight.data) for place in places for reader in place.readers]
    for place in places:
        scale = scales[id(place)]
        for reader in place.readers:
            reader.weight.data = int8_columns(reader.weight.data * scale[:, None]) / scale[:, None]
    with heard_by(places, lambda place, x: quantize(place, x / scales[id(place)]) * scales[id(place)]):
        yield
    for reader, weight in originals:
        reader.weight.data = weight


def run(model: M3Model, rows: Sequence[torch.Tensor]) -> Vectors:
    """Run each text alone: rows are ids (1, L)."""
    with torch.inference_mode():
        outputs = [model(ids, torch.ones_like(ids)) for ids in rows]
    return torch.cat([dense for dense, _, _ in outputs]), [colbert[0] for _, _, colbert in outputs]


def report(folder: Path, texts: int, tokens: int) -> str:
    """Both tables of one checkpoint, in Markdown."""
    checkpoint = Checkpoint.open(folder, Recipe())
    encode = ids_of(folder, checkpoint, min(tokens, checkpoint.geometry.max_tokens))
    model = M3Model(checkpoint, ())
    places = inputs_of(model)
    probes = encode(probe_texts(), texts)
    with heard_by(places, lambda place, x: place.listen(x)):
        run(model, encode(calibration_texts(), len(calibration_texts())))
    reference = run(model, probes)
    lines = [f"## {folder.name}", "", "| scheme | dense mean | dense min | ColBERT p5 |", "|---|---|---|---|"]
    for name, quantize, smooth in SCHEMES:
        with quantized(places, quantize, smooth=smooth):
            lines.append(f"| {name} | {figures(reference, run(model, probes))} |")
    return "\n".join([*lines, "", *ratio_table(places), ""])


def figures(reference: Vectors, got: Vectors) -> str:
    """Dense cosine mean and minimum over texts, 5th percentile of ColBERT cosines over tokens."""
    dense = torch.cosine_similarity(reference[0], got[0])
    colbert = torch.cosine_similarity(torch.cat(reference[1]), torch.cat(got[1]))
    return f"{dense.mean():.4f} | {dense.min():.4f} | {colbert.quantile(0.05):.4f}"


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


def ids_of(folder: Path, checkpoint: Checkpoint, tokens: int) -> Callable[[Sequence[Text], int], list[torch.Tensor]]:
    """A function that gives ids (1, L) of so many texts, evenly chosen, cut to `tokens`."""
    tokenizer = CheckpointTokenizer.open(folder, checkpoint.geometry.vocab_size).original

    def encode(texts: Sequence[Text], count: int) -> list[torch.Tensor]:
        chosen = [texts[int(i)] for i in np.linspace(0, len(texts) - 1, min(count, len(texts)))]
        return [
            tokenizer(text.text, truncation=True, max_length=tokens, return_tensors="pt").input_ids for text in chosen
        ]

    return encode


def main() -> None:
    """Print a report for each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--texts", type=int, default=24, help="probe texts, evenly chosen (default: 24)")
    parser.add_argument("--tokens", type=int, default=128, help="longest text (default: 128)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for folder in args.checkpoints:
        print(report(folder, args.texts, args.tokens), flush=True)


if __name__ == "__main__":
    main()
