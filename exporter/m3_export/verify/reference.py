"""The reference: transformers' own XLM-R in PyTorch FP32, and the heads as FlagEmbedding applies them.

It shares the checkpoint's tensors with M3Model but none of its code, so that parity also proves M3Model. Only texts of
one length run together: padding cannot hide a mistake on both sides.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional
from transformers import XLMRobertaConfig, XLMRobertaModel

from m3_export.arrays import Ids
from m3_export.checkpoint.folder import Checkpoint
from m3_export.checkpoint.heads import HeadWeights
from m3_export.verify.parity import Outputs
from m3_runtime.bundle.manifest import Pooling


def reference_outputs(
    checkpoint: Checkpoint,
    ids: Sequence[Ids],
    unused_ids: Iterable[int],
    track: Callable[[Sequence[list[int]]], Iterable[list[int]]],
) -> Outputs:
    """Run N texts, given as ids with both special tokens.

    Args:
        checkpoint: the weights.
        ids: (L,) ids of each text.
        unused_ids: ids without lexical weight.
        track: wraps the iteration, for a progress bar.
    """
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
    config = XLMRobertaConfig.from_dict({**checkpoint.config, "torch_dtype": None, "dtype": None})
    with torch.device("meta"):
        encoder = XLMRobertaModel(config, add_pooling_layer=False)
    missing, unexpected = encoder.load_state_dict(dict(checkpoint.encoder), strict=False, assign=True)
    assert not unexpected and all(name.startswith("embeddings.") for name in missing), (missing, unexpected)
    # position and type ids are buffers, left on the meta device by the empty construction
    length = config.max_position_embeddings
    encoder.embeddings.position_ids = torch.arange(length)[None]
    encoder.embeddings.token_type_ids = torch.zeros((1, length), dtype=torch.int64)
    return encoder.eval()


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
