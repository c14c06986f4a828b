"""FlagEmbedding's fine-tuning files: one JSON object a line with `query`, `pos` and `neg`.

What FlagEmbedding would trip over, or silently train wrongly on, is a bad line here: it is left out, with its reason.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m3_bench.documents import BadLine
from m3_bench.errors import DatasetError
from m3_bench.retrieval.lines import Record, digest_of_files, kind_of, lines_of

TYPES = ("normal", "only_1neg", "symmetric_class", "symmetric_sts", "symmetric_clustering")
_EMPTY = {"pos": "training draws one of them", "neg": 'training divides by its length; write [""]'}


@dataclass(frozen=True)
class Example:
    """A good line. `negatives` is empty where the line says `[""]`, which stands for none."""

    line: int
    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]

    @property
    def passages(self) -> tuple[str, ...]:
        """Positives, then negatives."""
        return self.positives + self.negatives


@dataclass(frozen=True)
class FinetuneFile:
    """A file's good lines and bad ones; `lines` counts both."""

    path: Path
    sha256: str
    lines: int
    examples: tuple[Example, ...]
    bad_lines: tuple[BadLine, ...]


def read_finetune(path: Path) -> FinetuneFile:
    """Read and check every line.

    Raises:
        DatasetError: the file cannot be read, is empty, one JSON value over several lines, or has no good line.
    """
    lines = list(lines_of(path))
    if not lines:
        raise DatasetError(f'{str(path)!r} is empty; expected one {{"query": …, "pos": […], "neg": […]}} on each line')
    _refuse_one_value(path, [line for _, line in lines])
    examples, bad = [], []
    for number, line in lines:
        try:
            examples.append(_example(number, line))
        except DatasetError as error:
            bad.append(BadLine(number, str(error)))
    if not examples:
        raise DatasetError(
            f"{str(path)!r}: not one of its {len(lines)} lines can be used; line {bad[0].line}: {bad[0].reason}"
        )
    return FinetuneFile(path, digest_of_files([path]), len(lines), tuple(examples), tuple(bad))


def _example(number: int, line: str) -> Example:
    record = Record.parsed(line, "")
    query = record.text("query")
    if not query.strip():
        raise DatasetError("query is an empty text")
    if "neg" not in record.values:
        raise DatasetError(
            "the key 'neg' is missing; FlagEmbedding needs it: write [\"\"] where there are no negatives"
        )
    positives, negatives = record.texts("pos"), record.texts("neg")
    for key, texts in (("pos", positives), ("neg", negatives)):
        if not texts:
            raise DatasetError(f"{key} is an empty list, and {_EMPTY[key]}")
        if record.values.get(f"{key}_scores") is not None:
            _check_scores(record, f"{key}_scores", len(texts))
    if "" in positives:
        raise DatasetError(f"pos[{positives.index('')}] is an empty text")
    record.text("prompt", default="")
    if record.values.get("type") not in (None, *TYPES):
        raise DatasetError(f"type must be one of {', '.join(TYPES)}, got {record.values['type']!r}")
    return Example(number, query, positives, tuple(text for text in negatives if text))


def _check_scores(record: Record, key: str, count: int) -> None:
    """Scores are for distillation and may be missing; what is there must fit."""
    scores = record.items(key)
    for n, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise DatasetError(f"{key}[{n}] must be a finite number, got {kind_of(score)}")
    if len(scores) != count:
        raise DatasetError(f"{key} has {len(scores)} numbers for {count} texts")


def _refuse_one_value(path: Path, lines: Sequence[str]) -> None:
    """Explain a file that is good JSON, but printed for people or as one list."""
    try:
        first, end = json.JSONDecoder().raw_decode("\n".join(lines))
    except (ValueError, RecursionError):
        return  # broken lines are reported one by one
    if isinstance(first, list):
        how, command = "one JSON list", "jq -c '.[]'"
    elif isinstance(first, dict) and end > len(lines[0]):
        how, command = "JSON printed over several lines", "jq -c ."
    else:
        return
    raise DatasetError(
        f"{str(path)!r}, line 1: the file is {how}, expected one object on each line; convert it: "
        f"{command} {path.name} > lines.jsonl"
    )
