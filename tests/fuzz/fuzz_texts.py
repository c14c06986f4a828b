"""Made-up texts through tokenizer and encoder, held against transformers and PyTorch FP32. `make fuzz` runs a million.

    python tests/fuzz/fuzz_texts.py BUNDLE CHECKPOINT --texts 1000000 --encoded 20000 --seed 7

A seed makes the same texts each time; a difference ends the run with the text that shows it.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import m3_models
from m3_export.calibration.texts import calibration_texts
from m3_export.checkpoint.folder import Checkpoint
from m3_export.checkpoint.tokenizer import CheckpointTokenizer
from m3_export.verify.reference import reference_outputs
from m3_runtime import InputError, M3Encoder
from m3_runtime.tokenizer import M3Tokenizer, check_text

BATCH = 256
MAX_LENGTHS = (8192, 16, 3)  # a batch is cut to one of them
SMALLEST_COSINE, WEIGHT_ERROR = 0.99999, 1e-4

# Inclusive ranges of code points: scripts, what joins or is invisible, what normalization changes, what is unassigned.
RANGES: tuple[tuple[tuple[int, int], ...], ...] = (
    ((0x20, 0x7E),),
    ((0xA1, 0x24F), (0x1E00, 0x1EFF)),
    ((0x370, 0x3FF), (0x400, 0x52F)),
    ((0x590, 0x6FF), (0x750, 0x77F)),
    ((0x900, 0xDFF), (0xE00, 0xEFF)),
    ((0x1000, 0x109F), (0x1200, 0x137F), (0x1780, 0x17FF)),
    ((0x1100, 0x11FF), (0xAC00, 0xD7A3), (0x3130, 0x318F)),
    ((0x3041, 0x30FF), (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF)),
    ((0x1F300, 0x1FAFF), (0x1F1E6, 0x1F1FF), (0x2600, 0x27BF)),
    ((0x300, 0x36F), (0x483, 0x489), (0x20D0, 0x20FF), (0xFE20, 0xFE2F)),
    ((0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0xFEFF, 0xFEFF), (0xAD, 0xAD), (0xFE00, 0xFE0F)),
    ((0x2000, 0x200A), (0x2028, 0x2029), (0x9, 0xD), (0x1C, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x3000, 0x3000)),
    ((0xFB00, 0xFDFF), (0xFE70, 0xFEFE), (0xFF01, 0xFFEE), (0x2460, 0x24FF), (0x3200, 0x33FF), (0x1D400, 0x1D7FF)),
    ((0x0, 0x1F), (0x7F, 0x9F), (0xE000, 0xE0FF), (0xFDD0, 0xFDEF), (0xFFF0, 0xFFFF)),
    ((0xE0000, 0xE01EF), (0xF0000, 0xF00FF), (0x10FF00, 0x10FFFF)),
)
SPECIALS = ("<s>", "</s>", "<pad>", "<unk>", "<mask>", "▁", "<s", "mask>", "\u0600 ", "👩\u200d💻", "क्\u200dष")


class TextMaker:
    """Yields texts of a seed: letters of one script or of several, mutations of calibration texts, repetitions."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._known = [text.text for text in calibration_texts()]
        self._makers = (self._of_one, self._of_one, self._of_many, self._mutated, self._mutated, self._repeated)

    def texts(self, count: int) -> Iterator[str]:
        for _ in range(count):
            yield self._random.choice(self._makers)()

    def _letters(self, count: int) -> str:
        low, high = self._random.choice(self._random.choice(RANGES))
        return "".join([chr(low + int(self._random.random() * (high - low + 1))) for _ in range(count)])

    def _of_one(self) -> str:
        return self._letters(int(self._random.expovariate(1 / 12)))

    def _of_many(self) -> str:
        parts = [self._letters(1 + int(self._random.expovariate(1 / 3))) for _ in range(self._random.randint(1, 8))]
        if self._random.random() < 0.3:
            parts.insert(self._random.randrange(len(parts) + 1), self._random.choice(SPECIALS))
        return self._random.choice(("", "", " ")).join(parts)

    def _mutated(self) -> str:
        known = self._random.choice(self._known)
        start = self._random.randrange(len(known))
        text = known[start : start + int(self._random.expovariate(1 / 60))]
        for _ in range(self._random.randint(1, 4)):
            at, end = sorted((self._random.randint(0, len(text)), self._random.randint(0, len(text))))
            match self._random.randrange(6):
                case 0:
                    text = text[:at] + text[end:]
                case 1:
                    text = text[:at] + self._letters(self._random.randint(1, 3)) + text[at:]
                case 2:
                    text = text[:at] + text[at:end] * 2 + text[end:]
                case 3:
                    text = text[:at] + text[at:end].swapcase() + text[end:]
                case 4:
                    text = text[:at] + self._letters(1).join(text[at:end]) + text[end:]
                case _:
                    text = text[:at] + self._random.choice(SPECIALS) + text[at:]
        return text[:1000]

    def _repeated(self) -> str:
        times = int(self._random.paretovariate(0.8))  # a few are very long
        return (self._of_many() * min(times, 3000))[: 20_000 if self._random.random() < 0.01 else 400]


def check_ids(ours: M3Tokenizer, theirs: Any, texts: Sequence[str], max_length: int) -> None:
    """The same ids for every text, cut or whole."""
    found = ours.encode_batch(texts, max_length).ids
    expected = theirs(list(texts), truncation=True, max_length=max_length)["input_ids"]
    for text, mine, other in zip(texts, found, expected, strict=True):
        assert mine.tolist() == other, f"other ids than transformers', cut to {max_length}: {text!r}"


def check_half_pairs(texts: Sequence[str], draw: random.Random) -> None:
    """With half of a surrogate pair in it, every text is refused by name."""
    for text in texts:
        at = draw.randint(0, len(text))
        with pytest.raises(InputError, match="text 3 has a lone surrogate"):
            check_text(text[:at] + chr(draw.randint(0xD800, 0xDFFF)) + text[at:], "text 3")


def check_vectors(encoder: M3Encoder, checkpoint: Checkpoint, texts: Sequence[str], max_length: int) -> None:
    """What PyTorch makes of the same ids: dense and ColBERT vectors, lexical weights."""
    found = encoder.encode(list(texts), max_length=max_length, return_sparse=True, return_colbert_vecs=True)
    ids = encoder.tokenizer.encode_batch(texts, max_length).ids
    expected = reference_outputs(checkpoint, ids, encoder.tokenizer.info.unused_ids, lambda batches: batches)
    assert found.sparse is not None and found.colbert_vecs is not None
    assert expected.lexical is not None and expected.colbert is not None
    cosines = (found.dense_vecs * expected.dense).sum(axis=1)
    assert cosines.min() > SMALLEST_COSINE, f"another dense vector ({cosines.min()}): {texts[int(cosines.argmin())]!r}"
    for text, weights, lexical in zip(texts, found.lexical_weights, expected.lexical, strict=True):
        same = {int(key): value for key, value in weights.items()}
        for key in same.keys() | lexical.keys():
            difference = abs(same.get(key, 0.0) - lexical.get(key, 0.0))
            assert difference < WEIGHT_ERROR, f"the weight of {key} differs by {difference}: {text!r}"
    for text, rows, reference in zip(texts, found.colbert_vecs, expected.colbert, strict=True):
        assert rows.shape == reference.shape, f"{rows.shape} ColBERT rows, not {reference.shape}: {text!r}"
        assert (rows * reference).sum(axis=1).min() > SMALLEST_COSINE, f"other ColBERT rows: {text!r}"


def tokenizers_of(checkpoint: Path, vocab_size: int) -> tuple[M3Tokenizer, Any]:
    """Ours and transformers', both as the checkpoint has them."""
    from transformers import AutoTokenizer

    source = CheckpointTokenizer.open(checkpoint, vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        source.save(Path(folder))
        ours = M3Tokenizer.open(Path(folder) / source.info.path, source.info)
    return ours, AutoTokenizer.from_pretrained(checkpoint)


def fuzz_ids(ours: M3Tokenizer, theirs: Any, seed: int, count: int) -> None:
    maker = TextMaker(seed)
    for number, start in enumerate(range(0, count, BATCH)):
        texts = list(maker.texts(min(BATCH, count - start)))
        check_ids(ours, theirs, texts, MAX_LENGTHS[number % len(MAX_LENGTHS)])
        check_half_pairs(texts[::16], random.Random(number))


def fuzz_vectors(encoder: M3Encoder, checkpoint: Checkpoint, seed: int, count: int) -> None:
    maker = TextMaker(seed)
    for start in range(0, count, BATCH):
        check_vectors(encoder, checkpoint, list(maker.texts(min(BATCH, count - start))), 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="of tiny-random, with onnx-fp32")
    parser.add_argument("checkpoint", type=Path, help="that it was made from")
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--encoded", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        m3_models.write_checkpoint("mini-m3", Path(folder))  # it has XLM-R's vocabulary
        started_s = time.monotonic()
        fuzz_ids(*tokenizers_of(Path(folder), 250_037), args.seed, args.texts)
    print(f"{args.texts} texts: transformers' ids, in {time.monotonic() - started_s:.0f} s", flush=True)
    started_s = time.monotonic()
    with M3Encoder.open(args.bundle, variant="onnx-fp32", threads=1) as encoder:
        fuzz_vectors(encoder, Checkpoint.open(args.checkpoint), args.seed, args.encoded)
    print(f"{args.encoded} texts: PyTorch's vectors, in {time.monotonic() - started_s:.0f} s", flush=True)


if __name__ == "__main__":
    main()
