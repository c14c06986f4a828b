"""Parity of a written variant, measured with the very runtime that users get."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from m3_export.parity import Outputs, colbert_parity, dense_parity, lowest_cosine, sparse_parity
from m3_runtime import M3Encoder
from m3_runtime.bundle import Bundle
from m3_runtime.engines.select import open_engine
from m3_runtime.manifest import Head, Parity, Variant
from m3_runtime.tokenizer import M3Tokenizer

MAX_PROBE_TOKENS = 512  # probe texts are cut here, for the reference and the variants alike
ALONE_EVERY = 4  # every 4th probe text is run alone and in company: batch invariance at a fraction of the time
COMPANY = 3


@dataclass(frozen=True)
class Probe:
    """What parity is measured on: texts, what the reference gives for them, and facts for the manifest."""

    texts: tuple[str, ...]
    tokens: int
    sha256: str
    reference: Outputs
    measured_on: str


def measure(bundle: Bundle, variant: Variant, probe: Probe, threads: int) -> Parity:
    """Encode the probe texts with a variant, some of them alone and in company too, and compare.

    Raises:
        EngineError: the engine cannot load or run the variant.
    """
    with _open(bundle, variant, threads) as encoder:
        outputs = _encode(encoder, probe.texts)
        some = probe.texts[::ALONE_EVERY]
        alone = np.concatenate([_encode(encoder, [text]).dense for text in some])
        in_company = np.concatenate([_encode(encoder, [text] * COMPANY).dense[-1:] for text in some])
    return Parity(
        texts=len(probe.texts),
        tokens=probe.tokens,
        probe_sha256=probe.sha256,
        measured_on=probe.measured_on,
        dense=dense_parity(probe.reference, outputs),
        sparse=sparse_parity(probe.reference, outputs),
        colbert=colbert_parity(probe.reference, outputs),
        batch_invariance_min=lowest_cosine(alone, in_company),
    )


def _open(bundle: Bundle, variant: Variant, threads: int) -> M3Encoder:
    """`M3Encoder.open`, for a bundle that has no parity to show yet."""
    info = bundle.manifest.tokenizer
    tokenizer = M3Tokenizer.open(bundle.file(info.path), info)
    return M3Encoder(bundle, variant, tokenizer, open_engine(bundle, variant, threads))


def _encode(encoder: M3Encoder, texts: Sequence[str] | Iterable[str]) -> Outputs:
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
