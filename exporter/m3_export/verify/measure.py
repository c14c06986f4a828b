"""Parity of a written variant, measured with the very runtime that users get."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

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
from m3_runtime import M3Encoder
from m3_runtime.bundle.manifest import CpuFeature, Head, Manifest, Parity, Variant
from m3_runtime.bundle.reader import Bundle
from m3_runtime.cpu import cpu_info
from m3_runtime.encode.batching import DEFAULT_TOKEN_BUDGET, pad_batch
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encode.options import ColbertDtype, EncodeOptions
from m3_runtime.encode.pipeline import encode_tokens
from m3_runtime.engines import Engine, Opening, TokenBatch
from m3_runtime.engines.select import open_engine
from m3_runtime.tokenizer import M3Tokenizer, OnTruncate, TokenizedTexts

Ids = NDArray[np.int32]

# Where the processor cannot multiply int8 exactly, OpenVINO computes FakeQuantize and the products of what it gives in
# float: the same integers, exactly added. Dynamic ranges are not taken there, so dynamic projections come out nearer
# to exact.
SIMULATED = {"LP_TRANSFORMS_MODE": "NO"}
SIMULATED_NOTE = (
    "; static INT8 simulated in float, dynamic activations not rounded: this processor has no int8 dot product"
)

MAX_PROBE_TOKENS = 512  # probe texts are cut here, for the reference and the variants alike
# Batch invariance is measured on probe texts cut to one of these lengths, so many of them together.
COMPANY_LENGTHS, COMPANY = (8, 24, 64, 100), 6
# Padding without packing, which the runtime never does, is measured on this many texts of at most so many tokens.
PADDED, MAX_PADDED_TOKENS = 8, 128


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
class Measured:
    """The parity of a variant, and the losses of every text behind it."""

    parity: Parity
    losses: TextLosses


def measure(
    bundle: Bundle, variant: Variant, tokenizer: M3Tokenizer, probe: Probe, dense_min: float, threads: int
) -> Measured:
    """Encode the probe texts with a variant and compare; then some of them in company, and padded.

    Degenerate texts are what INT8 may break on; a float variant is not run on them.

    Args:
        bundle: holds the variant.
        variant: to be measured.
        tokenizer: the model's.
        probe: the texts.
        dense_min: degenerate texts whose dense cosine is below are counted.
        threads: of the engine.

    Raises:
        EngineError: the engine cannot load or run the variant.
    """
    is_simulated = not cpu_info().has_int8_dot and CpuFeature.INT8_DOT in variant.needs
    run = replace(variant, properties={**variant.properties, **SIMULATED}) if is_simulated else variant
    engine = open_engine(bundle, run, threads, Opening(takes_padded=True))
    natural, degenerate = probe.natural, probe.degenerate if variant.precision != "fp32" else None
    with M3Encoder(bundle, variant, tokenizer, engine) as encoder:
        outputs = _encode(encoder, natural.texts)
        of_degenerate = _encode(encoder, degenerate.texts) if degenerate else None
        company = lowest_cosine_in_company(engine, bundle.manifest, natural.ids)
        padded = lowest_cosine_padded(engine, bundle.manifest, natural)
    losses, of_share = text_losses(natural.reference, outputs, is_degenerate=False), None
    if degenerate and of_degenerate:
        losses = joined(losses, text_losses(degenerate.reference, of_degenerate, is_degenerate=True))
        of_share = degenerate_parity(degenerate.reference, of_degenerate, dense_min)
    parity = Parity(
        texts=len(natural.texts),
        tokens=sum(len(row) for row in natural.ids),
        probe_sha256=probe.sha256,
        measured_on=probe.measured_on + (SIMULATED_NOTE if is_simulated else ""),
        dense=dense_parity(natural.reference, outputs),
        sparse=sparse_parity(natural.reference, outputs),
        colbert=colbert_parity(natural.reference, outputs),
        batch_invariance_min=company,
        padded_dense_min=padded,
        is_simulated=is_simulated,
        degenerate=of_share,
    )
    return Measured(parity, losses)


def lowest_cosine_in_company(engine: Engine, manifest: Manifest, ids: Sequence[Ids]) -> float:
    """Lowest cosine, of dense vectors and ColBERT rows, of a text alone and among others, as the runtime batches."""
    rows = [
        np.append(row[: length - 1], row[-1])
        for length in COMPANY_LENGTHS
        for row in [row for row in ids if len(row) >= length][:COMPANY]
    ]
    lowest, together = 1.0, _encode_ids(engine, manifest, rows)
    for place, row in enumerate(rows):
        alone = _encode_ids(engine, manifest, [row])
        assert alone.dense_vecs is not None and together.dense_vecs is not None
        lowest = min(lowest, lowest_cosine(alone.dense_vecs, together.dense_vecs[place : place + 1]))
        if alone.colbert_vecs is not None and together.colbert_vecs is not None:
            lowest = min(lowest, lowest_cosine(alone.colbert_vecs[0], together.colbert_vecs[place]))
    return lowest


def _encode_ids(engine: Engine, manifest: Manifest, ids: Sequence[Ids]) -> Encoding:
    heads = frozenset({Head.DENSE, Head.COLBERT}).intersection(manifest.heads)
    options = EncodeOptions(
        heads, manifest.geometry.max_tokens, len(ids), DEFAULT_TOKEN_BUDGET, OnTruncate.ERROR, ColbertDtype.FLOAT32
    )
    return encode_tokens(TokenizedTexts(tuple(ids), np.zeros(len(ids), np.bool_)), options, manifest, engine)


def lowest_cosine_padded(engine: Engine, manifest: Manifest, probe: ProbeTexts) -> float:
    """Lowest dense cosine to the reference when texts of many lengths run in one padded batch."""
    short = sorted(
        (i for i, row in enumerate(probe.ids) if len(row) <= MAX_PADDED_TOKENS), key=lambda i: len(probe.ids[i])
    )
    chosen = short[:: max(1, len(short) // PADDED)]
    batch = pad_batch([probe.ids[i] for i in chosen], manifest.tokenizer.pad_id)
    dense = _vectors(engine, manifest, batch)["dense_vecs"]
    return lowest_cosine(dense, probe.reference.dense[chosen])


def _vectors(engine: Engine, manifest: Manifest, batch: TokenBatch) -> dict[str, NDArray[np.float32]]:
    heads = [head for head in (Head.DENSE, Head.COLBERT) if head in manifest.heads]
    raw = engine.run(batch, heads)
    found = {"dense_vecs": raw.dense_vecs, "colbert_vecs": raw.colbert_vecs}
    return {name: vectors for name, vectors in found.items() if vectors is not None}


def _encode(encoder: M3Encoder, texts: Sequence[str]) -> Outputs:
    heads = encoder.bundle.manifest.heads
    return Outputs.of(
        encoder.encode(
            list(texts),
            max_length=min(MAX_PROBE_TOKENS, encoder.max_tokens),
            return_dense=True,
            return_sparse=Head.SPARSE in heads,
            return_colbert_vecs=Head.COLBERT in heads,
            token_budget=4096,
        )
    )
