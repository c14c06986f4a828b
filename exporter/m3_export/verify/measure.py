"""Parity of a written variant, measured with the very runtime that users get."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from m3_export.arrays import Float32Array, Ids
from m3_export.plan.losses import LossesByText
from m3_export.verify.budget import AnyBudget
from m3_export.verify.comparison import ModelOutputs, rounded
from m3_export.verify.parity import cosines, degenerate_figures
from m3_export.verify.scores import NO_CORRECTION, ScoreCorrection, Scores
from m3_runtime.bundle.manifest import CpuFeature, Head, ModelInfo, Parity, Variant
from m3_runtime.cpu import cpu_info, default_threads
from m3_runtime.encode.batching import pad_batch
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encode.options import DEFAULT_BATCH_SIZE, encode_options
from m3_runtime.encode.pipeline import encode_tokens
from m3_runtime.engines import POOLED_HEADS, Engine, Opening
from m3_runtime.engines.select import open_graph
from m3_runtime.tokenizer import TokenizedTexts

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
    """N texts, or pairs, as (L,) ids, and what the reference gives for them."""

    ids: tuple[Ids, ...]
    reference: ModelOutputs


@dataclass(frozen=True)
class Probe:
    """What parity is measured on: natural and degenerate texts, or pairs, the digest of both, and the machine.

    Degenerate texts are what INT8 may break on; without an INT8 variant there are none.
    """

    natural: ProbeTexts
    degenerate: ProbeTexts | None
    sha256: str
    measured_on: str


@dataclass(frozen=True)
class MeasuredParity:
    """The parity of a variant, and the losses of every text behind it."""

    parity: Parity
    losses: LossesByText


@dataclass(frozen=True)
class ParityCheck:
    """Measures variants of one model on the probe texts."""

    model: ModelInfo
    probe: Probe
    budget: AnyBudget  # degenerate texts whose similarity is below its least are counted

    def measure(self, variant: Variant, folder: Path, correction: ScoreCorrection = NO_CORRECTION) -> MeasuredParity:
        """Encode the probe texts with a variant, whose files `folder` holds; then some of them in batches, and padded.

        A float variant is not run on degenerate texts. A reranker's scores are compared after a correction.

        Raises:
            EngineError: the engine cannot load or run the variant.
        """
        natural, degenerate = self.probe.natural, None if variant.precision == "fp32" else self.probe.degenerate
        is_simulated = _is_simulated(variant)
        with _opened(variant, folder) as engine:
            outputs = self._outputs(engine, natural, correction)
            batch_invariance = self._batch_invariance(engine, natural.ids)
            padded = self._lowest_padded(engine, natural)
            of_degenerate = None if degenerate is None else self._outputs(engine, degenerate, correction)
        losses, degenerate_parity = natural.reference.losses(outputs, is_degenerate=False), None
        if degenerate is not None and of_degenerate is not None:
            losses = losses.joined(degenerate.reference.losses(of_degenerate, is_degenerate=True))
            similar = degenerate.reference.similarities(of_degenerate)
            degenerate_parity = degenerate_figures(similar, self.budget.least_similarity)
        parity = Parity(
            texts=len(natural.ids),
            tokens=sum(len(row) for row in natural.ids),
            probe_sha256=self.probe.sha256,
            measured_on=self.probe.measured_on + (SIMULATED_NOTE if is_simulated else ""),
            batch_invariance_min=batch_invariance,
            padded_dense_min=padded,
            is_simulated=is_simulated,
            degenerate=degenerate_parity,
            **natural.reference.parity(outputs),
        )
        return MeasuredParity(parity, losses)

    def correction(self, variant: Variant, folder: Path, ids: Sequence[Ids], expected: Float32Array) -> ScoreCorrection:
        """What brings the scores that a variant gives for N pairs, (L,) ids each, nearest to the (N,) expected ones.

        Raises:
            EngineError: the engine cannot load or run the variant.
        """
        with _opened(variant, folder) as engine:
            found = self._encode(engine, ids, self.model.heads).scores
        assert found is not None
        return ScoreCorrection.between(expected, found)

    def _outputs(self, engine: Engine, probe: ProbeTexts, correction: ScoreCorrection) -> ModelOutputs:
        outputs = probe.reference.like(self._encode(engine, probe.ids, self.model.heads))
        return outputs.corrected(correction) if isinstance(outputs, Scores) else outputs

    def _encode(self, engine: Engine, ids: Sequence[Ids], heads: Collection[Head]) -> Encoding:
        options = encode_options(self.model, heads, batch_size=DEFAULT_BATCH_SIZE, token_budget=TOKEN_BUDGET)
        tokens = TokenizedTexts(tuple(ids), np.zeros(len(ids), np.bool_))
        return encode_tokens(tokens, options, self.model, engine)

    def _batch_invariance(self, engine: Engine, ids: Sequence[Ids]) -> float:
        """Lowest similarity, and cosine of ColBERT rows, of a text alone and in the runtime's batches."""
        rows = [
            np.append(row[: length - 1], row[-1])
            for length in INVARIANCE_LENGTHS
            for row in [row for row in ids if len(row) >= length][:INVARIANCE_TEXTS]
        ] or list(ids[:INVARIANCE_TEXTS])
        heads = POOLED_HEADS.union((Head.COLBERT,)).intersection(self.model.heads)
        together = self._encode(engine, rows, heads)
        alone = [self._encode(engine, [row], heads) for row in rows]
        lowest = self._lowest(np.concatenate([_pooled(one) for one in alone]), _pooled(together))
        if together.colbert_vecs is not None:
            theirs = [one.colbert_vecs[0] for one in alone if one.colbert_vecs is not None]
            found = cosines(np.concatenate(theirs), np.concatenate(list(together.colbert_vecs)))
            lowest = min(lowest, rounded(found.min()))
        return lowest

    def _lowest_padded(self, engine: Engine, probe: ProbeTexts) -> float:
        """Lowest similarity to the reference when texts of many lengths run in one padded batch."""
        chosen = padded_texts([len(row) for row in probe.ids])
        batch = pad_batch([probe.ids[i] for i in chosen], self.model.tokenizer.pad_id)
        raw = engine.run(batch, list(POOLED_HEADS.intersection(self.model.heads)))
        got = raw.dense_vecs if raw.logits is None else raw.logits[:, 0]
        assert got is not None
        return self._lowest(probe.reference.pooled[chosen], got)

    def _lowest(self, expected: Float32Array, got: Float32Array) -> float:
        return rounded(self.probe.natural.reference.pooled_similarities(expected, got).min())


def _is_simulated(variant: Variant) -> bool:
    return not cpu_info().has_int8_dot and CpuFeature.INT8_DOT in variant.needs


@contextmanager
def _opened(variant: Variant, folder: Path) -> Iterator[Engine]:
    """The engine of a variant, whose files `folder` holds; where the processor cannot run it, a simulation."""
    run = replace(variant, properties={**variant.properties, **SIMULATED}) if _is_simulated(variant) else variant
    with closing(open_graph(folder / run.graph, run, default_threads(), Opening(takes_padded=True))) as engine:
        yield engine


def _pooled(encoding: Encoding) -> Float32Array:
    """What is read of one token of a text: dense vectors, or scores, of all texts."""
    found = encoding.dense_vecs if encoding.scores is None else encoding.scores
    assert found is not None
    return found


def padded_texts(lengths: Sequence[int]) -> list[int]:
    """Which texts are padded into one batch: of all lengths up to `MAX_PADDED_TOKENS`, or else the shortest ones.

    >>> padded_texts([5, 600, 3]), padded_texts([512, 511, 300])
    ([2, 0], [2, 1, 0])
    """
    by_length = sorted(range(len(lengths)), key=lambda i: lengths[i])
    short = [i for i in by_length if lengths[i] <= MAX_PADDED_TOKENS] or by_length[:PADDED_TEXTS]
    spread = np.linspace(0, len(short) - 1, min(PADDED_TEXTS, len(short))).round().astype(int)
    return [short[i] for i in spread]
