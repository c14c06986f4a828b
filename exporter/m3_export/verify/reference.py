"""The reference: transformers' own XLM-R in PyTorch FP32, and the heads as FlagEmbedding applies them.

It shares the checkpoint's tensors with M3Model but none of its code, so that parity also proves M3Model. Only texts of
one length run together: padding cannot hide a mistake on both sides.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification, XLMRobertaModel

from m3_export.arrays import Float32Array, Ids
from m3_export.checkpoint.folder import Checkpoint
from m3_export.checkpoint.heads import HeadWeights
from m3_export.verify.parity import Outputs
from m3_runtime.bundle.manifest import LEAST_SPREAD, Head, Pooling

# A head is silent if fewer texts than this share have a weight, if the weights spread by less than this share of their
# mean, or if rows differ from their mean by less than this share of their squared length.
LEAST_SPEAKING, ALIKE_WEIGHTS, ALIKE_ROWS = 0.05, 0.05, 1e-5
FEWEST_WEIGHTS = 8  # of a single word nothing is known


def reference_outputs(
    checkpoint: Checkpoint,
    ids: Sequence[Ids],
    unused_ids: Iterable[int],
    track: Callable[[Sequence[list[int]]], Iterable[list[int]]],
) -> Outputs:
    """Run N texts, (L,) ids each with both special tokens; `unused_ids` get no lexical weight."""
    encoder, unused = encoder_of(checkpoint), set(unused_ids)
    dense: list[np.ndarray] = [np.zeros(0)] * len(ids)
    lexical: list[Mapping[int, float]] = [{}] * len(ids)
    colbert: list[np.ndarray] = [np.zeros(0)] * len(ids)
    with torch.inference_mode():
        for batch in track(batches_of_one_length(ids)):
            inputs = torch.from_numpy(np.stack([ids[i] for i in batch]).astype(np.int64))
            states = encoder(input_ids=inputs, attention_mask=torch.ones_like(inputs)).last_hidden_state
            for i, hidden in zip(batch, states, strict=True):
                dense[i] = _normalized(_pooled(hidden, checkpoint.pooling.pooling), checkpoint).numpy()
                if checkpoint.sparse and checkpoint.colbert:
                    weights = torch.relu(_linear(hidden, checkpoint.sparse))[:, 0]
                    lexical[i] = _max_per_id(ids[i].tolist(), weights.tolist(), unused)
                    colbert[i] = _normalized(_linear(hidden[1:], checkpoint.colbert), checkpoint).numpy()
    has_heads = checkpoint.sparse is not None
    return Outputs(np.stack(dense), lexical if has_heads else None, colbert if has_heads else None)


def reference_scores(
    checkpoint: Checkpoint,
    ids: Sequence[Ids],
    track: Callable[[Sequence[list[int]]], Iterable[list[int]]],
) -> Float32Array:
    """Run N pairs, (L,) ids each, through a reranker: (N,) scores before the sigmoid; `track` shows progress."""
    assert checkpoint.classifier is not None
    with torch.device("meta"):
        model = XLMRobertaForSequenceClassification(_config(checkpoint, num_labels=1))
    tensors = {f"roberta.{name}": tensor for name, tensor in checkpoint.encoder.items()}
    _take(model, tensors | checkpoint.classifier.tensors())
    _fill_buffers(model.roberta)
    scores = np.zeros(len(ids), np.float32)
    with torch.inference_mode():
        for batch in track(batches_of_one_length(ids)):
            inputs = torch.from_numpy(np.stack([ids[i] for i in batch]).astype(np.int64))
            scores[batch] = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits[:, 0].numpy()
    return scores


def silent_scores(scores: Float32Array) -> dict[Head, str]:
    """A reranker that tells no pair from another, as `silent_heads` says it of an encoder; (N,) scores."""
    is_alike = float(scores.astype(np.float64).std()) <= LEAST_SPREAD
    return {Head.SCORE: "every probe pair has the same score"} if is_alike else {}


def silent_heads(outputs: Outputs, ids: Sequence[Ids], unused_ids: Iterable[int]) -> dict[Head, str]:
    """Heads that tell no text or token from another, and what they give instead. Parity of such a head says nothing.

    `outputs` are the reference's of N texts with (L,) ids each; `unused_ids` have no lexical weight.
    """
    silent = {}
    if outputs.lexical is not None:
        unused = set(unused_ids)
        words = [set(row.tolist()) - unused for row in ids]
        if said := _silent_weights(outputs.lexical, words):
            silent[Head.SPARSE] = said
    if outputs.colbert is not None and _is_alike(np.concatenate(outputs.colbert)):
        silent[Head.COLBERT] = "the ColBERT head gives the same row for every token of the probe texts"
    if _is_alike(outputs.dense):
        silent[Head.DENSE] = "every probe text has the same dense vector"
    return silent


def _silent_weights(lexical: Sequence[Mapping[int, float]], words: Sequence[set[int]]) -> str | None:
    """What is wrong with the lexical weights of N texts that have these ids each; None if they say something."""
    with_words = [row for row, ids in zip(lexical, words, strict=True) if ids]
    empty = sum(not row for row in with_words)
    if empty > len(with_words) * (1 - LEAST_SPEAKING):
        return f"the sparse head gives no weight to {empty} of {len(with_words)} probe texts"
    weights = np.array([weight for row in lexical for weight in row.values()])
    is_all = weights.size == sum(len(ids) for ids in words)
    if is_all and weights.size >= FEWEST_WEIGHTS and weights.std() < ALIKE_WEIGHTS * weights.mean():
        return f"the sparse head gives every token about the same weight, {weights.mean():.3g}"
    return None


def _is_alike(rows: np.ndarray) -> bool:
    """Whether N rows are all one, or all 0; (N, width)."""
    exact = rows.astype(np.float64)
    size = np.square(exact).sum(axis=1).mean()
    return len(rows) > 1 and bool(np.square(exact - exact.mean(axis=0)).sum(axis=1).mean() <= ALIKE_ROWS * size)


def batches_of_one_length(ids: Sequence[Ids], most: int = 32) -> list[list[int]]:
    """Indices of texts that can run together without padding, at most so many at a time.

    >>> batches_of_one_length([np.arange(3), np.arange(5), np.arange(3)])
    [[0, 2], [1]]
    """
    of_length: dict[int, list[int]] = {}
    for i, row in enumerate(ids):
        of_length.setdefault(len(row), []).append(i)
    return [group[start : start + most] for group in of_length.values() for start in range(0, len(group), most)]


def encoder_of(checkpoint: Checkpoint) -> XLMRobertaModel:
    """The encoder as transformers has it, on the checkpoint's own tensors; nothing is copied."""
    with torch.device("meta"):
        encoder = XLMRobertaModel(_config(checkpoint), add_pooling_layer=False)
    _take(encoder, checkpoint.encoder)
    _fill_buffers(encoder)
    return encoder


def _config(checkpoint: Checkpoint, **changes: int) -> XLMRobertaConfig:
    labels = ("id2label", "label2id", "num_labels")
    config = {key: value for key, value in checkpoint.config.items() if key not in labels}
    return XLMRobertaConfig.from_dict({**config, "torch_dtype": None, "dtype": None, **changes})


def _take(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put tensors into a model that was constructed empty; only its embeddings' buffers may lack."""
    missing, unexpected = model.load_state_dict(dict(tensors), strict=False, assign=True)
    assert not unexpected and all("embeddings." in name for name in missing), (missing, unexpected)
    model.eval()


def _fill_buffers(encoder: XLMRobertaModel) -> None:
    """Position and type ids are buffers, left on the meta device by the empty construction."""
    length = encoder.config.max_position_embeddings
    encoder.embeddings.position_ids = torch.arange(length)[None]
    encoder.embeddings.token_type_ids = torch.zeros((1, length), dtype=torch.int64)


def _pooled(hidden: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    return {Pooling.CLS: hidden[0], Pooling.MEAN: hidden.mean(dim=0), Pooling.LAST_TOKEN: hidden[-1]}[pooling]


def _linear(x: torch.Tensor, head: HeadWeights) -> torch.Tensor:
    return functional.linear(x, head.weight, head.bias)


def _normalized(x: torch.Tensor, checkpoint: Checkpoint) -> torch.Tensor:
    return functional.normalize(x, dim=-1) if checkpoint.pooling.normalize else x


def _max_per_id(ids: Sequence[int], weights: Sequence[float], unused: set[int]) -> Mapping[int, float]:
    largest: dict[int, float] = {}
    for token, weight in zip(ids, weights, strict=True):
        if token not in unused and weight > largest.get(token, 0.0):
            largest[token] = weight
    return largest
