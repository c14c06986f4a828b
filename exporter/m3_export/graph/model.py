"""The model as we trace it: an XLM-R encoder written plainly, and three heads, or a reranker's classifier.

It exists so that the graph has exactly the shape that the passes and engines like, whatever release of
transformers is installed. That it computes what transformers computes is proven at every export: the reference
(m3_export.verify.reference) runs transformers' own XLM-R on the same tensors.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from m3_export.checkpoint.classifier import ClassifierWeights
from m3_export.checkpoint.folder import Checkpoint
from m3_runtime.bundle.manifest import Pooling

# Added to the scores of padded keys. Far below any score, and finite in bfloat16 too (the FP32 minimum is not).
MASKED_SCORE = -1e9
ROW_OF_ID = "row_of_id"  # the table from ids to rows, where not all ids have one
NORM_EPSILON = 1e-12  # torch.nn.functional.normalize's default, which FlagEmbedding uses


class Linear(nn.Module):
    """y = x W + b with W stored (in, out), so that the graph holds it under its own name and untransposed."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.t(), requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out)."""
        return x @ self.weight + self.bias


class Norm(nn.Module):
    """Layer normalisation over the last axis."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], name: str, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(tensors[f"{name}.weight"], requires_grad=False)
        self.bias = nn.Parameter(tensors[f"{name}.bias"], requires_grad=False)
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, H) → (…, H)."""
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class Layer(nn.Module):
    """One post-norm transformer layer with six projections."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], prefix: str, heads: int, epsilon: float) -> None:
        super().__init__()

        def projection(name: str) -> Linear:
            return Linear(tensors[f"{prefix}.{name}.weight"], tensors[f"{prefix}.{name}.bias"])

        self.heads = heads
        self.query = projection("attention.self.query")
        self.key = projection("attention.self.key")
        self.value = projection("attention.self.value")
        self.attention_out = projection("attention.output.dense")
        self.attention_norm = Norm(tensors, f"{prefix}.attention.output.LayerNorm", epsilon)
        self.ffn_in = projection("intermediate.dense")
        self.gelu = nn.GELU()  # a module, so that calibration can hook into it
        self.ffn_out = projection("output.dense")
        self.ffn_norm = Norm(tensors, f"{prefix}.output.LayerNorm", epsilon)

    def forward(self, x: torch.Tensor, mask_scores: torch.Tensor) -> torch.Tensor:
        """X (B, T, H), mask_scores (B, 1, 1, T) → (B, T, H)."""
        query, key, value = (self._split(p(x)) for p in (self.query, self.key, self.value))
        scale = query.shape[-1] ** -0.5
        # written out, not scaled_dot_product_attention: its export guards softmax with IsNaN, which no engine fuses
        scores = torch.matmul(query, key.transpose(-1, -2)) * scale + mask_scores
        context = torch.matmul(torch.softmax(scores, dim=-1), value)
        x = self.attention_norm(self.attention_out(context.transpose(1, 2).flatten(2)) + x)
        return self.ffn_norm(self.ffn_out(self.gelu(self.ffn_in(x))) + x)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Classifier(nn.Module):
    """A reranker's head: (B, H), the first token's rows, → (B, 1), scores before the sigmoid."""

    def __init__(self, weights: ClassifierWeights) -> None:
        super().__init__()
        self.dense = Linear(weights.dense.weight, weights.dense.bias)
        self.out_proj = Linear(weights.out_proj.weight, weights.out_proj.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H) → (B, 1)."""
        return self.out_proj(torch.tanh(self.dense(x)))


class M3Model(nn.Module):
    """input_ids, attention_mask (B, T) → dense_vecs (B, H), token_weights (B, T), colbert_vecs (B, T-1, C).

    A dense-only checkpoint gives dense_vecs alone, a reranker logits (B, 1) alone.

    Attributes:
        outputs: the heads whose outputs the graph has, in order.
    """

    def __init__(
        self, checkpoint: Checkpoint, unused_ids: tuple[int, ...], kept_ids: NDArray[np.int64] | None = None
    ) -> None:
        """Build from a checkpoint; tensors are shared, not copied.

        Args:
            checkpoint: the weights.
            unused_ids: carry no lexical weight.
            kept_ids: (K,), ascending: ids with a row in the word embedding; None where all have one. Any other id gets
                the first row; no tokenizer of the bundle gives it.
        """
        super().__init__()
        tensors, geometry = checkpoint.encoder, checkpoint.geometry
        epsilon = checkpoint.layer_norm_epsilon
        # XLM-R has one token type: its row is a constant, so it goes into the position rows
        positions = (
            tensors["embeddings.position_embeddings.weight"] + tensors["embeddings.token_type_embeddings.weight"]
        )
        words, row_of_id = tensors["embeddings.word_embeddings.weight"], None
        if kept_ids is not None:
            row_of_id = torch.zeros(len(words), dtype=torch.int32)
            row_of_id[kept_ids] = torch.arange(len(kept_ids), dtype=torch.int32)
            words = words[kept_ids]
        self.words = nn.Parameter(words, requires_grad=False)
        self.register_buffer(ROW_OF_ID, row_of_id)
        self.positions = nn.Parameter(positions, requires_grad=False)
        self.embedding_norm = Norm(tensors, "embeddings.LayerNorm", epsilon)
        self.layers = nn.ModuleList(
            Layer(tensors, f"encoder.layer.{i}", geometry.attention_heads, epsilon) for i in range(geometry.layers)
        )
        self.sparse = Linear(checkpoint.sparse.weight, checkpoint.sparse.bias) if checkpoint.sparse else None
        self.colbert = Linear(checkpoint.colbert.weight, checkpoint.colbert.bias) if checkpoint.colbert else None
        self.classifier = Classifier(checkpoint.classifier) if checkpoint.classifier else None
        self.outputs = checkpoint.heads
        self.pad_id = checkpoint.pad_id
        self.unused_ids = unused_ids
        self.pooling = checkpoint.pooling.pooling
        self.normalize = checkpoint.pooling.normalize
        self.eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The whole graph."""
        return self.heads(self._encode(input_ids, attention_mask), input_ids, attention_mask)

    def heads(
        self, hidden: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """The last layer's output (B, T, H) to the outputs."""
        if self.classifier is not None:
            return (self.classifier(self._pool(hidden, attention_mask)),)
        dense = self._normalized(self._pool(hidden, attention_mask))
        if self.sparse is None or self.colbert is None:
            return (dense,)
        return dense, self._token_weights(hidden, input_ids, attention_mask), self._colbert(hidden, attention_mask)

    def embedded(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, T) → (B, T, H), the first layer's input."""
        is_token = (input_ids != self.pad_id).to(torch.int64)
        position_ids = torch.cumsum(is_token, dim=1) * is_token + self.pad_id
        return self.embedding_norm(
            functional.embedding(self.rows(input_ids), self.words) + functional.embedding(position_ids, self.positions)
        )

    def rows(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, T) ids → (B, T) rows of the word embedding."""
        table: torch.Tensor | None = getattr(self, ROW_OF_ID)
        return input_ids if table is None else table[input_ids]

    def _encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.embedded(input_ids)
        mask_scores = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * MASKED_SCORE
        for layer in self.layers:
            x = layer(x, mask_scores)
        return x

    def _pool(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        if self.pooling is Pooling.CLS:
            return hidden[:, 0]
        if self.pooling is Pooling.MEAN:
            weights = attention_mask[:, :, None].to(torch.float32)
            return (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        last = attention_mask.sum(dim=1) - 1  # padding is on the right
        index = last[:, None, None].expand(-1, 1, hidden.shape[-1])
        return torch.gather(hidden, 1, index).squeeze(1)

    def _token_weights(
        self, hidden: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        assert self.sparse is not None
        weights = torch.relu(self.sparse(hidden)).squeeze(-1) * attention_mask.to(torch.float32)
        for unused in self.unused_ids:
            weights = weights * (input_ids != unused).to(torch.float32)
        return weights

    def _colbert(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        assert self.colbert is not None
        rows = self.colbert(hidden[:, 1:]) * attention_mask[:, 1:, None].to(torch.float32)
        return self._normalized(rows)

    def _normalized(self, x: torch.Tensor) -> torch.Tensor:
        if not self.normalize:
            return x
        # as functional.normalize, whose export expands the norms to x's shape, which the division does by itself
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(NORM_EPSILON)
