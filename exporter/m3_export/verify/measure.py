"""Parity of a written variant, measured with the very runtime that users get."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from m3_export.arrays import Ids
from m3_export.plan.losses import TextLosses, joined
from m3_export.verify.parity import (
    Outputs,
    colbert_parity,
    degenerate_parity,
    dense_parity,
    lowest_cosine,
    sparse_parity,
    text_losses,
)
from m3_runtime.bundle.manifest import CpuFeature, Head, ModelInfo, Parity, Variant
from m3_runtime.cpu import cpu_info, default_threads
from m3_runtime.encode.batching import pad_batch
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encode.options import DEFAULT_BATCH_SIZE, encode_options
from m3_runtime.encode.pipeline import encode_texts, encode_tokens
from m3_runtime.engines import Engine, Opening
from m3_runtime.engines.select import open_graph
from m3_runtime.tokenizer import M3Tokenizer, TokenizedTexts

# Where the processor cannot multiply int8 exactly, OpenVINO computes FakeQuantize and the products of what it gives in
# float: the same integers, exactly added. Dynamic ranges are not taken there, so dynamic projections come out nearer
# to exact.
SIMULATED = {"LP_TRANSFORMS_MODE": "NO"}
SIMULATED_NOTE = (
    "; static INT8 simulated in float, dynamic activations not rounded: this processor has no int8 dot product"
)

MAX_PROBE_TOKENS = 512  # probe texts are cut here, for the reference and the variants alike
TOKEN_BUDGET = 4096  # of what runs at a time
# Batch invariance is measured on texts cut to one of these lengths, so many of each.
INVARIANCE_LENGTHS, INVARIANCE_TEXTS = (8, 24, 64, 100), 6
# Padding without packing, which the runtime never does, is measured on this many texts of at most so many tokens.
PADDED_TEXTS, MAX_PADDED_TOKENS = 8, 128


@dataclass(frozen=True)
class ProbeTexts:
    """N texts, their (L,) ids, and what the reference gives for them."""

    texts: tuple[str, ...]
    ids: tuple[Ids, ...]
    reference: Outputs


@dataclass(frozen=True)
class Probe:
    """What parity is measured on: natural and degenerate texts, the digest of both, and the machine."""

    natural: ProbeTexts
    degenerate: ProbeTexts
    sha256: str
    measured_on: str


@dataclass(frozen=True)
class MeasuredParity:
    """The parity of a variant, and the losses of every text behind it."""

    parity: Parity
    losses: TextLosses


@dataclass(frozen=True)
class ParityCheck:
    """Measures variants of one model on the probe texts.

    Attributes:
        model: what all its variants have in common.
        tokenizer: the model's.
        probe: the texts.
        dense_min: degenerate texts whose dense cosine is below are counted.
    """

    model: ModelInfo
    tokenizer: M3Tokenizer
    probe: Probe
    dense_min: float

    def measure(self, variant: Variant, folder: Path) -> MeasuredParity:
        """Encode the probe texts with a variant and compare; then some of them in batches, and padded.

        Degenerate texts are what INT8 may break on; a float variant is not run on them.

        Args:
            variant: to be measured.
            folder: holds its files.

        Raises:
            EngineError: the engine cannot load or run the variant.
        """
        natural, degenerate = self.probe.natural, self.probe.degenerate
        is_simulated = not cpu_info().has_int8_dot and CpuFeature.INT8_DOT in variant.needs
        run = replace(variant, properties={**variant.properties, **SIMULATED}) if is_simulated else variant
        with closing(open_graph(folder / run.graph, run, default_threads(), Opening(takes_padded=True))) as engine:
            outputs = self._encode(engine, natural.texts)
            batch_invariance = self._batch_invariance(engine, natural.ids)
            padded = self._lowest_cosine_padded(engine, natural)
            of_degenerate = self._encode(engine, degenerate.texts) if variant.precision != "fp32" else None
        losses, degenerate_figures = text_losses(natural.reference, outputs, is_degenerate=False), None
        if of_degenerate is not None:
            losses = joined(losses, text_losses(degenerate.reference, of_degenerate, is_degenerate=True))
            degenerate_figures = degenerate_parity(degenerate.reference, of_degenerate, self.dense_min)
        parity = Parity(
            texts=len(natural.texts),
            tokens=sum(len(row) for row in natural.ids),
            probe_sha256=self.probe.sha256,
            measured_on=self.probe.measured_on + (SIMULATED_NOTE if is_simulated else ""),
            dense=dense_parity(natural.reference, outputs),
            sparse=sparse_parity(natural.reference, outputs),
            colbert=colbert_parity(natural.reference, outputs),
            batch_invariance_min=batch_invariance,
            padded_dense_min=padded,
            is_simulated=is_simulated,
            degenerate=degenerate_figures,
        )
        return MeasuredParity(parity, losses)

    def _encode(self, engine: Engine, texts: Sequence[str]) -> Outputs:
        length = min(MAX_PROBE_TOKENS, self.model.geometry.max_tokens)
        options = encode_options(
            self.model,
            self.model.heads,
            batch_size=DEFAULT_BATCH_SIZE,
            token_budget=TOKEN_BUDGET,
            max_length=length,
        )
        return Outputs.of(encode_texts(texts, options, self.model, self.tokenizer, engine))

    def _batch_invariance(self, engine: Engine, ids: Sequence[Ids]) -> float:
        """Lowest cosine, of dense vectors and ColBERT rows, of a text alone and in the runtime's batches."""
        rows = [
            np.append(row[: length - 1], row[-1])
            for length in INVARIANCE_LENGTHS
            for row in [row for row in ids if len(row) >= length][:INVARIANCE_TEXTS]
        ] or list(ids[:INVARIANCE_TEXTS])
        lowest, together = 1.0, self._encode_ids(engine, rows)
        for index, row in enumerate(rows):
            alone = self._encode_ids(engine, [row])
            assert alone.dense_vecs is not None and together.dense_vecs is not None
            lowest = min(lowest, lowest_cosine(alone.dense_vecs, together.dense_vecs[index : index + 1]))
            if alone.colbert_vecs is not None and together.colbert_vecs is not None:
                lowest = min(lowest, lowest_cosine(alone.colbert_vecs[0], together.colbert_vecs[index]))
        return lowest

    def _encode_ids(self, engine: Engine, ids: Sequence[Ids]) -> Encoding:
        heads = {Head.DENSE, Head.COLBERT}.intersection(self.model.heads)
        options = encode_options(self.model, heads, batch_size=DEFAULT_BATCH_SIZE, token_budget=TOKEN_BUDGET)
        tokens = TokenizedTexts(tuple(ids), np.zeros(len(ids), np.bool_))
        return encode_tokens(tokens, options, self.model, engine)

    def _lowest_cosine_padded(self, engine: Engine, probe: ProbeTexts) -> float:
        """Lowest dense cosine to the reference when texts of many lengths run in one padded batch."""
        chosen = padded_texts([len(row) for row in probe.ids])
        batch = pad_batch([probe.ids[i] for i in chosen], self.model.tokenizer.pad_id)
        dense = engine.run(batch, [Head.DENSE]).dense_vecs
        assert dense is not None
        return lowest_cosine(dense, probe.reference.dense[chosen])


def padded_texts(lengths: Sequence[int]) -> list[int]:
    """Which texts are padded into one batch: of all lengths up to `MAX_PADDED_TOKENS`, or else the shortest ones.

    >>> padded_texts([5, 600, 3]), padded_texts([512, 511, 300])
    ([2, 0], [2, 1, 0])
    """
    by_length = sorted(range(len(lengths)), key=lambda i: lengths[i])
    short = [i for i in by_length if lengths[i] <= MAX_PADDED_TOKENS] or by_length[:PADDED_TEXTS]
    spread = np.linspace(0, len(short) - 1, min(PADDED_TEXTS, len(short))).round().astype(int)
    return [short[i] for i in spread]
