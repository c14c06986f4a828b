"""FlagEmbedding's fine-tuning files: one JSON object a line with `query`, `pos` and `neg`.

What FlagEmbedding would trip over, or silently train wrongly on, is a bad line here: it is left out, with its reason.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3_bench.documents import BadLine
from m3_bench.errors import DatasetError
from m3_bench.retrieval.lines import digest_of_files, has_lone_surrogate, lines_of

TYPES = ("normal", "only_1neg", "symmetric_class", "symmetric_sts", "symmetric_clustering")


@dataclass(frozen=True)
class Example:
    """A good line. `negatives` is empty where the line says `[""]`, which stands for none."""

    line: int
    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...]


@dataclass(frozen=True)
class FinetuneFile:
    """A file's good lines and bad ones; `lines` counts both."""

    path: Path
    sha256: str
    lines: int
    examples: tuple[Example, ...]
    bad_lines: tuple[BadLine, ...]


class _BadLineError(ValueError):
    """Why a line is bad."""


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
        except _BadLineError as error:
            bad.append(BadLine(number, str(error)))
    if not examples:
        raise DatasetError(
            f"{str(path)!r}: not one of its {len(lines)} lines can be used; line {bad[0].line}: {bad[0].reason}"
        )
    return FinetuneFile(path, digest_of_files([path]), len(lines), tuple(examples), tuple(bad))


def _example(number: int, line: str) -> Example:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _BadLineError(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise _BadLineError(f"expected an object, got {_kind(values)}")
    if "query" not in values:
        raise _BadLineError(f"the key 'query' is missing; keys are {', '.join(map(repr, values)) or '(none)'}")
    query = _text(values["query"], "query")
    if not query.strip():
        raise _BadLineError("query is an empty text")
    positives, negatives = _passages(values, "pos"), _passages(values, "neg")
    if "" in positives:
        raise _BadLineError(f"pos[{positives.index('')}] is an empty text")
    _check_scores(values, "pos_scores", len(positives))
    _check_scores(values, "neg_scores", len(negatives))
    if values.get("prompt") is not None:
        _text(values["prompt"], "prompt")
    if values.get("type") not in {None, *TYPES}:
        raise _BadLineError(f"type must be one of {', '.join(TYPES)}, got {values['type']!r}")
    return Example(number, query, positives, tuple(text for text in negatives if text))


def _passages(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    if key not in values:
        hint = '; FlagEmbedding needs it: write [""] where there are no negatives' if key == "neg" else ""
        raise _BadLineError(f"the key {key!r} is missing{hint}")
    passages = values[key]
    if not isinstance(passages, list):
        hint = f"; write [{json.dumps(passages, ensure_ascii=False)}]" if isinstance(passages, str) else ""
        raise _BadLineError(f"{key} must be a list of texts, got {_kind(passages)}{hint[:80]}")
    if not passages:
        hint = 'training divides by its length; write [""]' if key == "neg" else "training draws one of them"
        raise _BadLineError(f"{key} is an empty list, and {hint}")
    return tuple(_text(passage, f"{key}[{n}]") for n, passage in enumerate(passages))


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _BadLineError(f"{where} must be a text, got {_kind(value)}")
    if has_lone_surrogate(value):
        raise _BadLineError(f"{where} has half of a surrogate pair, which is no character")
    return value


def _check_scores(values: Mapping[str, Any], key: str, count: int) -> None:
    """Scores are for distillation and may be missing; what is there must fit."""
    scores = values.get(key)
    if scores is None:
        return
    if not isinstance(scores, list):
        raise _BadLineError(f"{key} must be a list of numbers, got {_kind(scores)}")
    for n, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise _BadLineError(f"{key}[{n}] must be a number, got {_kind(score)}")
    if len(scores) != count:
        raise _BadLineError(f"{key} has {len(scores)} numbers for {count} texts")


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


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a text"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")
