"""Trains mini-reranker again: mini-m3's encoder as a cross-encoder, by low-rank updates and a classification head.

    m3-export mini-m3 CHECKPOINT --checkpoint-only
    python models/train_mini_reranker.py --checkpoint CHECKPOINT --data DATA --state STATE --out OUT.safetensors

DATA holds `xquad/xquad.{ar,de,en,es,zh}.json` and `drcd/DRCD_dev.json` (SQuAD's JSON layout). Articles are split as
`train_mini_m3_heads.py` splits them; nothing of a held-out article is read.

A group is a question, its paragraph and hard negatives: paragraphs that BM25 ranks near it. The score of
the paragraph must be the largest of its group (softmax cross-entropy over the group). Beside it, while training
only, a second head marks the answer's first and last token among all tokens of the group. Paragraphs are cut to a
window around the answer, short ones first: a core learns more from two short windows than from a long one. A question
of XQuAD meets paragraphs of a language that is drawn anew in six groups of ten.

The encoder's weights stay as they are. Layers 4 to 11 get an update of rank 12 on each matrix, and new biases and
LayerNorms. Matrices are multiplied in bfloat16. STATE keeps the state of training: started again, it goes on where
it stopped.

The shipped file is of a run of 1200 steps in parts (`m3_models/data/mini_reranker.json`). The default here asks as many
questions as there are, once, and has not been run to its end.

Needs `pip install "m3-runtime[export,mini,bench]"`. About an hour and a half on one core.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bm25s import BM25
from numpy.typing import NDArray
from safetensors.numpy import save
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModel

from train_mini_m3_heads import FILES, SEED, held_out_articles

IntArray = NDArray[np.int64]

RANK = 12
FIRST_LAYER = 4  # layers below stay as they are
GROUP = 4  # one paragraph and three hard negatives
GROUPS_A_STEP = 4
HARDEST = 8  # negatives are drawn from so many of BM25's best
CROSS_LINGUAL = 0.6
ANSWER_WEIGHT = 0.5
LEARNING_RATE = 1e-3
WARMUP = 0.06
QUESTION_TOKENS = 40
WINDOWS = ((0.3, (56, 72)), (0.6, (80, 128)), (1.01, (96, 224)))  # tokens of a paragraph up to this share of steps


@dataclass(frozen=True)
class Paragraph:
    """A paragraph's token ids without special ones, and where each token begins and ends in the text."""

    ids: IntArray
    starts: IntArray
    ends: IntArray


@dataclass(frozen=True)
class Question:
    """A question's token ids, its paragraph, and the answer's first and last character there."""

    ids: IntArray
    gold: int
    answer: tuple[int, int]


@dataclass(frozen=True)
class TextSet:
    """The seen articles of one file, `near[q]` are wrong paragraphs that BM25 ranks near question q."""

    name: str
    paragraphs: Sequence[Paragraph]
    questions: Sequence[Question]
    near: IntArray


@dataclass(frozen=True)
class Group:
    """Token ids of GROUP pairs, the gold one first, and the answer's first and last position in the first."""

    pairs: Sequence[list[int]]
    answer: tuple[int, int]


def read_set(path: Path, tokenizer: Tokenizer) -> TextSet:
    """Read the seen articles of a file in SQuAD's JSON layout, and mine negatives."""
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    held_out = set(held_out_articles(len(articles)).tolist())
    texts: list[str] = []
    asked: list[tuple[str, int, tuple[int, int]]] = []
    for number, article in enumerate(articles):
        for paragraph in article["paragraphs"] if number not in held_out else ():
            for item in paragraph["qas"]:
                answer = item["answers"][0]
                start = int(answer["answer_start"])
                asked.append((item["question"], len(texts), (start, start + len(answer["text"]))))
            texts.append(paragraph["context"])
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    questions = tokenizer.encode_batch([text for text, _, _ in asked], add_special_tokens=False)
    gold = np.array([paragraph for _, paragraph, _ in asked])
    return TextSet(
        name=path.stem,
        paragraphs=[Paragraph(np.array(one.ids), *np.array(one.offsets).T) for one in encoded],
        questions=[
            Question(np.array(one.ids[:QUESTION_TOKENS]), about, answer)
            for one, (_, about, answer) in zip(questions, asked, strict=True)
        ],
        near=mine([one.ids for one in questions], [one.ids for one in encoded], gold),
    )


def mine(questions: Sequence[Sequence[int]], paragraphs: Sequence[Sequence[int]], gold: IntArray) -> IntArray:
    """Rank paragraphs by BM25 of token ids: (Q, HARDEST) indices, best first, without each question's own."""
    index = BM25()
    index.index([list(map(str, ids)) for ids in paragraphs], show_progress=False)
    found = np.empty((len(questions), HARDEST), np.int64)
    for row, (ids, own) in enumerate(zip(questions, gold, strict=True)):
        scores = index.get_scores([word for word in map(str, ids) if word in index.vocab_dict])
        best = np.argsort(-scores, kind="stable")[: HARDEST + 1]
        found[row] = best[best != own][:HARDEST]
    return found


def groups(sets: Sequence[TextSet], rng: np.random.Generator, tokens: int) -> Iterator[Group]:
    """Draw groups without end; `tokens` is the length of a paragraph's window."""
    shares = np.array([len(one.questions) for one in sets], float)
    parallel = [one for one in sets if one.name.startswith("xquad")]
    while True:
        asked = sets[rng.choice(len(sets), p=shares / shares.sum())]
        index = int(rng.integers(len(asked.questions)))
        other = asked
        if asked in parallel and rng.random() < CROSS_LINGUAL:
            other = parallel[int(rng.integers(len(parallel)))]
        ids = asked.questions[index].ids
        answered = other.questions[index]  # XQuAD's files ask the same questions in the same order
        wrong = rng.choice(asked.near[index], GROUP - 1, replace=False).tolist()
        gold, span = window_around(other.paragraphs[answered.gold], answered.answer, tokens, rng)
        windows = [gold]
        for one in wrong:
            paragraph = other.paragraphs[one]
            somewhere = int(paragraph.starts[rng.integers(len(paragraph.ids))])
            windows.append(window_around(paragraph, (somewhere, somewhere + 1), tokens, rng)[0])
        shift = len(ids) + 3
        yield Group(
            [[0, *ids.tolist(), 2, 2, *window.tolist(), 2] for window in windows],
            (span[0] + shift, span[1] + shift),
        )


def window_around(
    paragraph: Paragraph, answer: tuple[int, int], tokens: int, rng: np.random.Generator
) -> tuple[IntArray, tuple[int, int]]:
    """Cut a random window that holds the answer, or its beginning; returns ids, and the answer's tokens in them."""
    first = int(np.searchsorted(paragraph.ends, answer[0], side="right"))
    last = int(np.searchsorted(paragraph.starts, answer[1], side="left")) - 1
    first = min(first, len(paragraph.ids) - 1)
    last = min(max(last, first), first + tokens - 1)
    low, high = max(0, last - tokens + 1), min(first, max(0, len(paragraph.ids) - tokens))
    start = int(rng.integers(min(low, high), max(low, high) + 1))
    return paragraph.ids[start : start + tokens], (first - start, last - start)


class LowRank(nn.Module):
    """A projection whose weight stays, with an update of low rank and a bias of its own."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(RANK, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, RANK))
        base.weight.requires_grad_(False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out)."""
        return self.base(states) + (states @ self.down.T) @ self.up.T


class CrossEncoder(nn.Module):
    """The encoder with low-rank updates, the classification head, and the answer head that training alone has."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(
            checkpoint, add_pooling_layer=False, attn_implementation="eager"
        ).eval()
        self.encoder.requires_grad_(False)
        for layer in self.encoder.encoder.layer[FIRST_LAYER:]:
            for name, parameter in layer.named_parameters():
                parameter.requires_grad_(name.endswith("bias") or "LayerNorm" in name)
            for name, module in list(layer.named_modules()):
                if isinstance(module, nn.Linear):
                    parent, _, leaf = name.rpartition(".")
                    setattr(layer.get_submodule(parent) if parent else layer, leaf, LowRank(module))
        hidden = self.encoder.config.hidden_size
        self.dense = nn.Linear(hidden, hidden)
        self.out_proj = nn.Linear(hidden, 1)
        self.answer = nn.Linear(hidden, 2)

    def forward(self, pairs: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores (B,) and the answer head's logits (B, T, 2), -inf at padding."""
        longest = max(map(len, pairs))
        ids = torch.tensor([pair + [1] * (longest - len(pair)) for pair in pairs])
        mask = ids != 1
        with torch.autocast("cpu", torch.bfloat16):
            states = self.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        states = states.float()
        scores = self.out_proj(torch.tanh(self.dense(states[:, 0])))[:, 0]
        return scores, self.answer(states).masked_fill(~mask[..., None], -torch.inf)

    def trained(self) -> dict[str, torch.Tensor]:
        """What training changes, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


def group_loss(model: CrossEncoder, drawn: Sequence[Group]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (ranking loss, answer loss, share of groups whose gold paragraph is first)."""
    scores, logits = model([pair for group in drawn for pair in group.pairs])
    scores = scores.view(len(drawn), GROUP)
    gold = torch.zeros(len(drawn), dtype=torch.long)
    ranking = nn.functional.cross_entropy(scores, gold)
    flat = logits.view(len(drawn), -1, 2)
    ends = torch.tensor([group.answer for group in drawn])
    answer = nn.functional.cross_entropy(flat, ends)
    return ranking, answer, (scores.argmax(1) == 0).float().mean()


def train(model: CrossEncoder, sets: Sequence[TextSet], steps: int, state: Path) -> None:
    """Train for so many steps, or go on from the file `state`."""
    trained = model.trained()
    optimiser = torch.optim.AdamW(trained.values(), lr=LEARNING_RATE, weight_decay=0.0, betas=(0.9, 0.98))
    first = 0
    if state.exists():
        kept = torch.load(state)
        model.load_state_dict(kept["trained"], strict=False)
        optimiser.load_state_dict(kept["optimiser"])
        first = kept["step"]
    sums, since = np.zeros(3), time.perf_counter()
    for step in range(first, steps):
        rng = np.random.default_rng([SEED, step])
        low, high = next(window for share, window in WINDOWS if step / steps < share)
        source = groups(sets, rng, int(rng.integers(low, high + 1)))
        ranking, answer, right = group_loss(model, [next(source) for _ in range(GROUPS_A_STEP)])
        for part in optimiser.param_groups:
            part["lr"] = LEARNING_RATE * min((step + 1) / (WARMUP * steps), (steps - step) / (steps - WARMUP * steps))
        optimiser.zero_grad()
        (ranking + ANSWER_WEIGHT * answer).backward()
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimiser.step()
        sums += [ranking.item(), answer.item(), right.item()]
        if (step + 1) % 20 == 0:
            loss, marks, share = sums / 20
            step_s = (time.perf_counter() - since) / 20
            _say(f"step {step + 1}: ranking {loss:.3f}, answer {marks:.3f}, first {share:.2f}, {step_s:.2f} s a step")
            sums, since = np.zeros(3), time.perf_counter()
            kept = {"trained": trained, "optimiser": optimiser.state_dict(), "step": step + 1}
            torch.save(kept, state.with_suffix(".partial"))
            state.with_suffix(".partial").replace(state)


def main(arguments: Sequence[str]) -> int:
    """Train and write; progress goes to stderr."""
    parser = argparse.ArgumentParser(description="Train mini-reranker again.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="mini-m3's checkpoint folder")
    parser.add_argument("--data", type=Path, required=True, help="folder with xquad/ and drcd/")
    parser.add_argument("--state", type=Path, required=True, help="file for the state of training, kept up to date")
    parser.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--steps", type=int, default=1600, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (%(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    tokenizer = Tokenizer.from_file(str(options.checkpoint / "tokenizer.json"))
    tokenizer.no_truncation()
    sets = [read_set(options.data / name, tokenizer) for name in FILES]
    model = CrossEncoder(options.checkpoint)
    train(model, sets, options.steps, options.state)
    trained = {shipped_name(name): values.detach().numpy() for name, values in model.trained().items()}
    kept = {name: values.astype(np.float16) for name, values in trained.items() if not name.startswith("answer.")}
    options.out.write_bytes(save(kept))
    return 0


def shipped_name(name: str) -> str:
    """Translate the name of a parameter into the one that `m3_models.mini_reranker` reads.

    >>> shipped_name("encoder.encoder.layer.4.output.dense.base.bias"), shipped_name("dense.weight")
    ('encoder.layer.4.output.dense.bias', 'classifier.dense.weight')
    """
    name = name.replace(".base.", ".").removeprefix("encoder.")
    return f"classifier.{name}" if name.startswith(("dense.", "out_proj.")) else name


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
