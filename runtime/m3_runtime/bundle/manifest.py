"""The manifest: a bundle's index, as frozen values.

The exporter writes these values and the runtime reads them back through the same code, so the two cannot
disagree. The format is described in docs/how-it-works/bundle-format.md.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from m3_runtime.errors import BundleDamagedError, BundleFormatError
from m3_runtime.records import OPTIONAL, from_json, to_json

SCHEMA_VERSION = 4
OLDEST_SCHEMA_VERSION = 2  # 3 added what is measured on degenerate texts, and packing; 4 renamed the weights of graphs
MANIFEST_NAME = "manifest.json"
LEAST_TOKENS = 3
"""A text has both special tokens and one of its own."""

_DIGEST_KEY, _NO_DIGEST, _LAST_WITHOUT_DIGEST = "manifest_sha256", "0" * 64, 3
_MOST, _MOST_WIDE, _MOST_BYTES = 2**31 - 1, 2**17, 2**63 - 1


class Pooling(StrEnum):
    """How token states become the dense vector."""

    CLS = "cls"
    MEAN = "mean"
    LAST_TOKEN = "last_token"


class Head(StrEnum):
    """A head of the model: an encoder's three, or a reranker's one."""

    DENSE = "dense"
    SPARSE = "sparse"
    COLBERT = "colbert"
    SCORE = "score"

    @property
    def output_name(self) -> str:
        """Name of the graph output that this head writes."""
        return _OUTPUT_NAMES[self.value]


_OUTPUT_NAMES = {"dense": "dense_vecs", "sparse": "token_weights", "colbert": "colbert_vecs", "score": "logits"}

ENCODER_HEADS = (Head.DENSE, Head.SPARSE, Head.COLBERT)
"""All heads that an encoder can have, in FlagEmbedding's order."""


class EngineName(StrEnum):
    """What runs a graph."""

    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"


class CpuFeature(StrEnum):
    """What a variant may need of a processor."""

    INT8_DOT = "int8_dot"  # multiplies int8 without saturating on the way: VNNI or AMX on x86, dot product on Arm
    X86 = "x86"  # what OpenVINO's variants need: on Arm their vectors were wrong where they were tried


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle: its path inside the folder ('/' separated), size and digest."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class SourceInfo:
    """Where the weights came from: a name, hub id or folder name, its pinned revision, and digests of what was read."""

    name: str
    revision: str | None
    weights_sha256: str
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class Geometry:
    """Sizes of the encoder. `max_tokens` counts both special tokens; `colbert_dim` is None without a ColBERT head."""

    layers: int
    attention_heads: int
    hidden_size: int
    ffn_size: int
    vocab_size: int
    max_tokens: int
    colbert_dim: int | None


@dataclass(frozen=True)
class TokenizerInfo:
    """The tokenizer pipeline as it was at export.

    `unused_ids` carry no lexical weight. `blank_rule` says what a trailing blank becomes: "dropped" (transformers 5
    pipelines) or "kept" (transformers 4 pipelines add the lone word-start piece). `proof` says how it was shown that
    the runtime gives the same ids.
    """

    path: str
    cls_id: int
    pad_id: int
    eos_id: int
    unk_id: int
    unused_ids: tuple[int, ...]
    blank_rule: str
    written_by: str
    proof: str


@dataclass(frozen=True)
class DenseParity:
    """Cosine between a variant's dense vectors and the reference's, over the probe texts."""

    cosine_mean: float
    cosine_min: float
    max_abs: float


@dataclass(frozen=True)
class SparseParity:
    """Lexical weights against the reference's: weighted Jaccard per text; share of texts with the same five top ids."""

    jaccard_mean: float
    jaccard_min: float
    top5_same: float
    top5_same_near_ties_aside: float
    max_abs: float


@dataclass(frozen=True)
class ColbertParity:
    """Cosine per token row; 5th percentile over all rows of all probe texts."""

    cosine_mean: float
    cosine_p5: float
    cosine_min: float
    max_abs: float


LEAST_SPREAD = 1e-6
"""Of scores, below which nothing tells them apart."""


@dataclass(frozen=True)
class ScoreParity:
    """A reranker's scores against the reference's, before the sigmoid, over the probe pairs.

    The differences are absolute; `spread` is the standard deviation of the reference's scores. The order of each
    query's passages: Kendall's tau, and how many of the best passage and of the best ten are the same.
    `top1_same_near_ties_aside` leaves out queries whose two best passages are too close in FP32 to tell apart.
    """

    difference_mean: float
    difference_p99: float
    difference_max: float
    spread: float
    kendall_tau: float
    top1_same: float
    top1_same_near_ties_aside: float
    top10_overlap: float

    @property
    def in_spreads(self) -> tuple[float, float, float]:
        """The mean, 99th percentile and largest difference in parts of the spread, as budgets have them."""
        spread = max(self.spread, LEAST_SPREAD)
        return self.difference_mean / spread, self.difference_p99 / spread, self.difference_max / spread


@dataclass(frozen=True)
class DegenerateParity:
    """Dense cosines over degenerate texts: one character, a word repeated, digits, code, literal special tokens.

    `below` of them have a cosine below `below_what`. A reranker's are of pairs, and 1 - (difference ÷ spread)² stands
    for the cosine.
    """

    texts: int
    cosine_mean: float
    cosine_min: float
    below: int
    below_what: float

    def in_words(self, *, is_reranker: bool) -> str:
        """What is counted in `below`."""
        if is_reranker:
            return f"{self.texts} degenerate pairs above {self.difference(self.below_what):g} of the spread"
        return f"{self.texts} degenerate texts below {self.below_what:g}"

    @staticmethod
    def difference(similarity: float) -> float:
        """The difference of a reranker's scores, in parts of their spread, that a similarity stands for.

        >>> DegenerateParity.difference(0.9775)
        0.15
        """
        return round(math.sqrt(max(0.0, 1 - similarity)), 6)


@dataclass(frozen=True)
class Parity:
    """What was measured for one variant against PyTorch FP32 on the probe texts, per head.

    Encoders have `dense`, rerankers have `score` and none of the others.

    `batch_invariance_min` is the lowest cosine, of dense vectors and ColBERT rows, between a text alone and among
    others, as the runtime batches. `padded_dense_min` is the lowest dense cosine to the
    reference when texts of many lengths are padded into one batch, which is what others may do with the graph.
    A reranker's two are of pairs, with 1 - (difference ÷ spread)² for a cosine.
    `is_simulated` means that the processor lacks what the variant needs, so that its integers were computed in float.
    """

    texts: int
    tokens: int
    probe_sha256: str
    measured_on: str
    dense: DenseParity | None
    sparse: SparseParity | None
    colbert: ColbertParity | None
    batch_invariance_min: float
    padded_dense_min: float
    is_simulated: bool = False
    degenerate: DegenerateParity | None = field(default=None, metadata=OPTIONAL)
    score: ScoreParity | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class ProjectionPrecision:
    """The precision plan's line for one projection (`layer.3.ffn_out`, say; `words` is the embedding).

    `precision` is "static", "dynamic", "float", or for the embedding how it is stored. `smoothing` is SmoothQuant's
    strength, `clip` the share of the calibrated range that a static range keeps, `columns_apart` how many outlier
    channels are multiplied separately in float.
    """

    projection: str
    precision: str
    smoothing: float = 0.0
    clip: float = 1.0
    columns_apart: int = 0


@dataclass(frozen=True)
class Variant:
    """One precision on one engine: its graph, the compile properties that belong to it, and its precision plan.

    `needs` names what the processor must be able to do (`CpuFeature`), or the variant would compute something else than
    what was measured. Texts of at most `packed_tokens` tokens are packed into rows; 0 where the graph cannot.
    """

    name: str
    engine: EngineName
    precision: str
    graph: str
    files: tuple[str, ...]
    properties: Mapping[str, str]
    plan: tuple[ProjectionPrecision, ...]
    needs: tuple[CpuFeature, ...] = ()
    packed_tokens: int = field(default=0, metadata=OPTIONAL)


@dataclass(frozen=True)
class VocabularyLoss:
    """What leaving out pieces costs the probe texts of one language, in PyTorch FP32.

    `exact` of them have no dropped piece, and the full model's vectors. The others' dense cosines to the full model's
    are 1 where there are none.
    """

    texts: int
    exact: int
    cosine_mean: float
    cosine_min: float


@dataclass(frozen=True)
class Vocabulary:
    """Which pieces have a row in the word embedding, of a bundle in which not all have one. Ids are the full model's.

    `full_space_id` is the full model's vector space, `chosen_by` says how pieces were chosen. The runtime reads pieces
    from `pieces_path` and the rest of the tokenizer from `pipeline_path`. `loss` is keyed by language.
    """

    rows: int
    full_space_id: str
    chosen_by: str
    pieces_path: str
    pipeline_path: str
    loss: Mapping[str, VocabularyLoss]


@dataclass(frozen=True)
class ModelInfo:
    """What all variants of a bundle have in common: the model, its tokenizer and its vector space."""

    space_id: str
    source: SourceInfo
    geometry: Geometry
    heads: tuple[Head, ...]
    pooling: Pooling
    normalize: bool
    tokenizer: TokenizerInfo

    @property
    def is_reranker(self) -> bool:
        """Whether the model scores pairs of texts, and gives no vectors."""
        return Head.SCORE in self.heads


@dataclass(frozen=True)
class Manifest(ModelInfo):
    """Everything a bundle says about itself.

    `parity` is keyed by variant name and has an entry for each. `over_budget` has one only for the variants that were
    kept although their parity is outside the budget: which figures, in words.
    """

    variants: tuple[Variant, ...]
    parity: Mapping[str, Parity]
    over_budget: Mapping[str, tuple[str, ...]]
    files: tuple[FileEntry, ...]
    recipe: Mapping[str, str]
    tools: Mapping[str, str]
    schema_version: int = field(default=SCHEMA_VERSION)
    vocabulary: Vocabulary | None = field(default=None, metadata=OPTIONAL)

    def to_text(self) -> str:
        """The manifest as stable JSON text, with a digest of that text: see `check_digest`."""
        data = {**to_json(self), _DIGEST_KEY: _NO_DIGEST}
        text = json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        return text.replace(_digest_line(_NO_DIGEST), _digest_line(hashlib.sha256(text.encode()).hexdigest()), 1)

    @classmethod
    def from_text(cls, text: str) -> "Manifest":
        """Read a manifest.

        Raises:
            BundleFormatError: not JSON, a newer schema, a key missing, unknown or of the wrong type, or a number that
                cannot be what it says.
        """
        try:
            data = json.loads(text)
            json.dumps(data, ensure_ascii=False).encode()  # JSON may spell lone surrogates, which are no text
        except (ValueError, RecursionError) as error:
            raise BundleFormatError(f"{MANIFEST_NAME} is not JSON ({error}); export the bundle again") from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if not isinstance(version, int) or isinstance(version, bool):
            raise BundleFormatError(f"{MANIFEST_NAME} has no integer schema_version; this is not a bundle of m3-export")
        if not OLDEST_SCHEMA_VERSION <= version <= SCHEMA_VERSION:
            raise BundleFormatError(
                f"the bundle has schema version {version}, this release reads {OLDEST_SCHEMA_VERSION} to "
                f"{SCHEMA_VERSION}; "
                + ("upgrade m3-runtime" if version > SCHEMA_VERSION else "export the checkpoint again")
            )
        data.pop(_DIGEST_KEY, None)
        manifest = from_json(cls, data, MANIFEST_NAME)
        _check_numbers(data, MANIFEST_NAME)
        _check_sizes(manifest)
        _check_heads(manifest)
        return manifest


def check_digest(text: str) -> None:
    """Compare a manifest's text with the digest in it: SHA-256 of the same text with 64 zeros in the digest's place.

    Manifests of older exporters, up to schema 3, may have none.

    Raises:
        BundleDamagedError: the text was changed.
    """
    data = json.loads(text)
    recorded = data.get(_DIGEST_KEY)
    if recorded is None and data["schema_version"] <= _LAST_WITHOUT_DIGEST:
        return
    zeroed = text.replace(_digest_line(recorded), _digest_line(_NO_DIGEST), 1)
    if (digest := hashlib.sha256(zeroed.encode()).hexdigest()) != recorded:
        raise BundleDamagedError(
            f"{MANIFEST_NAME} is damaged: expected SHA-256 {recorded}, got {digest}; copy or export the bundle again"
        )


def _digest_line(digest: object) -> str:
    return f'"{_DIGEST_KEY}": "{digest}"'


def _check_numbers(data: Any, where: str) -> None:
    """Refuse numbers that nothing in a manifest can be: negative integers, infinities, what overflows."""
    if isinstance(data, dict):
        for key, item in data.items():
            _check_numbers(item, f"{where}: {key}")
    elif isinstance(data, list):
        for i, item in enumerate(data):
            _check_numbers(item, f"{where}[{i}]")
    elif isinstance(data, int) and not 0 <= data <= _MOST_BYTES:
        raise BundleFormatError(f"{where}: expected an integer from 0 to {_MOST_BYTES}, got {data}")
    elif isinstance(data, float) and not abs(data) <= _MOST_BYTES:
        raise BundleFormatError(f"{where}: expected a number of at most {_MOST_BYTES}, got {data}")


def _check_heads(manifest: Manifest) -> None:
    """Refuse a mixture of an encoder and a reranker, and parity that is not of the heads that there are."""
    heads = [head.value for head in manifest.heads]
    if manifest.is_reranker and len(heads) > 1:
        raise BundleFormatError(f"{MANIFEST_NAME}: heads: a reranker has the score head alone, got {heads}")
    needed = "score" if manifest.is_reranker else "dense"
    for name, parity in manifest.parity.items():
        if getattr(parity, needed) is None:
            raise BundleFormatError(f"{MANIFEST_NAME}: parity.{name}: {needed} is missing, which {heads} must have")


def _check_sizes(manifest: Manifest) -> None:
    """Refuse sizes that no model has, and token ids outside the vocabulary."""
    geometry, tokenizer = manifest.geometry, manifest.tokenizer
    for name, value in vars(geometry).items():
        least = LEAST_TOKENS if name == "max_tokens" else 1
        most = _MOST if name in ("max_tokens", "vocab_size") else _MOST_WIDE
        if value is not None and not least <= value <= most:
            raise BundleFormatError(
                f"{MANIFEST_NAME}: geometry: {name}: expected an integer from {least} to {most}, got {value}"
            )
    ids = [tokenizer.cls_id, tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id, *tokenizer.unused_ids]
    if outside := [one for one in ids if one >= geometry.vocab_size]:
        raise BundleFormatError(
            f"{MANIFEST_NAME}: tokenizer: the id {outside[0]} is outside the vocabulary of {geometry.vocab_size}"
        )
    vocabulary = manifest.vocabulary
    if vocabulary is not None and not 1 <= vocabulary.rows < geometry.vocab_size:
        raise BundleFormatError(
            f"{MANIFEST_NAME}: vocabulary: rows: expected an integer from 1 to {geometry.vocab_size - 1}, got "
            f"{vocabulary.rows}"
        )
    full_space, has_fewer, _ = manifest.space_id.partition("+")
    if bool(has_fewer) != (vocabulary is not None) or (vocabulary and vocabulary.full_space_id != full_space):
        raise BundleFormatError(
            f"{MANIFEST_NAME}: space_id {manifest.space_id!r} and vocabulary do not fit: expected a '+' and the full "
            "model's space_id before it exactly where pieces were dropped; export the bundle again"
        )
    for variant in manifest.variants:
        if variant.packed_tokens > _MOST:
            raise BundleFormatError(
                f"{MANIFEST_NAME}: {variant.name}: packed_tokens: expected at most {_MOST}, got {variant.packed_tokens}"
            )
