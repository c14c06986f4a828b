"""Trains the two heads of mini-m3 again, on the articles that its published figures did not use.

    m3-export mini-m3 CHECKPOINT --checkpoint-only
    python models/train_mini_m3_heads.py --checkpoint CHECKPOINT --data DATA --out mini_m3_heads.safetensors

DATA holds `xquad/xquad.{ar,de,en,es,zh}.json` and `drcd/DRCD_dev.json` (SQuAD's JSON layout). The encoder stays frozen:

* sparse (384 → 1): contrastive. In a batch of question-paragraph pairs of one language each question must
  give its own paragraph the largest lexical score (InfoNCE), as BGE-M3's own sparse head is trained (Chen
  et al. 2024).
* ColBERT (384 → 128): the first 128 principal components of centred token states, the mean folded into
  the bias. No training.

Needs `pip install "m3-runtime[export,mini]"`. About ten minutes on 2 cores.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from tokenizers import Tokenizer
from transformers import AutoModel

from m3_models.checkpoint_files import Linear

IntArray = NDArray[np.int64]

SEED = 20240205
MAX_TOKENS = 256
COLBERT_WIDTH = 128
PCA_TOKENS = 90_000
SPARSE_STEPS = 400
BATCH_PAIRS = 64
TEMPERATURE = 0.05
LEARNING_RATE = 3e-3
UNUSED_IDS = (0, 1, 2, 3)  # <s> <pad> </s> <unk>: never a lexical key, as in BGE-M3
HELD_OUT_SHARE = 1 / 3
FILES = (*(f"xquad/xquad.{language}.json" for language in ("ar", "de", "en", "es", "zh")), "drcd/DRCD_dev.json")


@dataclass(frozen=True)
class Encoded:
    """Frozen encoder's output of S texts."""

    ids: Sequence[IntArray]  # S arrays of (L,) token ids, special tokens included
    states: Sequence[NDArray[np.float16]]  # S arrays of (L, H) last hidden states, float16

    def pick(self, indices: IntArray) -> "Encoded":
        """Return the texts at these indices, in this order."""
        return Encoded([self.ids[i] for i in indices], [self.states[i] for i in indices])


@dataclass(frozen=True)
class TextSet:
    """One file: question q is about paragraph `gold[q]`; `seen` are indices of what training may use."""

    paragraphs: Encoded
    questions: Encoded
    gold: IntArray
    seen: IntArray
    seen_paragraphs: IntArray


class FrozenEncoder:
    """mini-m3's encoder without its heads."""

    def __init__(self, checkpoint: Path) -> None:
        self._model = AutoModel.from_pretrained(checkpoint, add_pooling_layer=False).eval()
        self._tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """Return ids and last hidden states of each text, at most 256 tokens each."""
        ids = [np.array(encoding.ids) for encoding in self._tokenizer.encode_batch(list(texts))]
        with torch.inference_mode():
            rows = [self._model(input_ids=torch.from_numpy(each)[None]).last_hidden_state[0] for each in ids]
        return Encoded(ids, [states.to(torch.float16).numpy() for states in rows])


def read_set(path: Path, encode: FrozenEncoder) -> TextSet:
    """Read a file in SQuAD's JSON layout, encode it and split it by article."""
    paragraphs: list[str] = []
    article: list[int] = []
    questions: list[str] = []
    gold: list[int] = []
    for number, entry in enumerate(json.loads(path.read_text(encoding="utf-8"))["data"]):
        for paragraph in entry["paragraphs"]:
            questions += [item["question"] for item in paragraph["qas"]]
            gold += [len(paragraphs)] * len(paragraph["qas"])
            paragraphs.append(paragraph["context"])
            article.append(number)
    _say(f"encoding {path.stem}: {len(paragraphs)} paragraphs, {len(questions)} questions")
    is_seen = ~np.isin(article, held_out_articles(max(article) + 1))
    return TextSet(
        paragraphs=encode(paragraphs),
        questions=encode(questions),
        gold=np.array(gold),
        seen=np.flatnonzero(is_seen[gold]),
        seen_paragraphs=np.flatnonzero(is_seen),
    )


def held_out_articles(count: int) -> IntArray:
    """Draw a third of the articles; XQuAD has the same ones in each language, in the same order."""
    return np.sort(np.random.default_rng(SEED).permutation(count)[: round(count * HELD_OUT_SHARE)])


def train_sparse(sets: Sequence[TextSet]) -> Linear:
    """Train the sparse head on the seen articles; a batch is of one set, so negatives share a language."""
    rng = np.random.default_rng(SEED)
    hidden = sets[0].questions.states[0].shape[1]
    weight = torch.zeros(hidden, requires_grad=True)
    # Starts as "every token counts alike", from where relu lets a gradient through everywhere.
    bias = torch.full((1,), 0.3, requires_grad=True)
    optimiser = torch.optim.AdamW([weight, bias], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, SPARSE_STEPS)
    shares = np.array([len(one.seen) for one in sets], float)
    for step in range(SPARSE_STEPS):
        one = sets[rng.choice(len(sets), p=shares / shares.sum())]
        loss = _pair_loss(one, _pairs(one, rng), weight, bias)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == SPARSE_STEPS - 1:
            _say(f"sparse head: step {step}, loss {loss.item():.3f}")
    return Linear(weight.detach().numpy()[None].copy(), bias.detach().numpy().copy())


def _pairs(one: TextSet, rng: np.random.Generator) -> IntArray:
    """Draw questions about different paragraphs: a second question about one would be a false negative."""
    order = rng.permutation(one.seen)
    _, first = np.unique(one.gold[order], return_index=True)
    return order[np.sort(first)[:BATCH_PAIRS]]


def _pair_loss(one: TextSet, pairs: IntArray, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    questions, paragraphs = one.questions.pick(pairs), one.paragraphs.pick(one.gold[pairs])
    vocabulary = np.setdiff1d(np.concatenate([*questions.ids, *paragraphs.ids]), UNUSED_IDS)
    sides = [_lexical(texts, vocabulary, weight, bias) for texts in (questions, paragraphs)]
    scores = sides[0] @ sides[1].T / TEMPERATURE
    return torch.nn.functional.cross_entropy(scores, torch.arange(len(pairs)))


def _lexical(texts: Encoded, vocabulary: IntArray, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Lexical weights (S, V of this batch), the largest per id, with gradients."""
    ids = np.concatenate(texts.ids)
    row = np.repeat(np.arange(len(texts.ids)), [len(one) for one in texts.ids])
    kept = ~np.isin(ids, UNUSED_IDS)
    states = torch.from_numpy(np.concatenate(texts.states)[kept].astype(np.float32))
    cell = torch.from_numpy(row[kept] * len(vocabulary) + np.searchsorted(vocabulary, ids[kept]))
    flat = torch.zeros(len(texts.ids) * len(vocabulary))
    return flat.scatter_reduce(0, cell, torch.relu(states @ weight + bias), "amax").view(len(texts.ids), -1)


def fit_colbert(sets: Sequence[TextSet]) -> Linear:
    """PCA of centred token states of the seen articles; the projection of the mean becomes the bias."""
    rng = np.random.default_rng(SEED)
    rows = [states[1:] for one in sets for states in one.paragraphs.pick(one.seen_paragraphs).states]
    rows += [states[1:] for one in sets for states in one.questions.pick(one.seen).states]
    tokens = np.concatenate(rows)
    tokens = tokens[rng.permutation(len(tokens))[:PCA_TOKENS]].astype(np.float64)
    mean = tokens.mean(0)
    values, vectors = np.linalg.eigh(np.cov(tokens - mean, rowvar=False))
    axes = vectors[:, ::-1][:, :COLBERT_WIDTH].T
    # An eigenvector's sign is arbitrary: let the largest entry be positive, so that machines agree.
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    kept = values[::-1][:COLBERT_WIDTH].sum() / values.sum()
    _say(f"ColBERT head: {COLBERT_WIDTH} components keep {kept:.0%} of the variance")
    return Linear(axes.astype(np.float32), (-axes @ mean).astype(np.float32))


def main(arguments: Sequence[str]) -> int:
    """Train and write; progress goes to stderr."""
    parser = argparse.ArgumentParser(description="Train mini-m3's heads again.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="mini-m3's checkpoint folder")
    parser.add_argument("--data", type=Path, required=True, help="folder with xquad/ and drcd/")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (%(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    encode = FrozenEncoder(options.checkpoint)
    sets = [read_set(options.data / name, encode) for name in FILES]
    heads = {"sparse": train_sparse(sets), "colbert": fit_colbert(sets)}
    tensors = {f"{name}.weight": head.weight for name, head in heads.items()}
    tensors |= {f"{name}.bias": head.bias for name, head in heads.items()}
    options.out.write_bytes(save({name: np.ascontiguousarray(values) for name, values in tensors.items()}))
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
