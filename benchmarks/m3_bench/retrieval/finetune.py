"""FlagEmbedding's fine-tuning files: one JSON object a line with `query`, `pos` and `neg`.

What FlagEmbedding would trip over, or silently train wrongly on, is a bad line here: it is left out, with its reason.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from m3_bench.documents import BadLine
from m3_bench.errors import DatasetError
from m3_bench.retrieval.lines import Record, digest_of_files, lines_of, parsed

_NotEmpty = Annotated[str, Field(min_length=1)]
_Scores = list[float] | None


class _Line(Record):
    """What training takes; scores are for distillation and may be missing."""

    query: str = Field(pattern=r"\S")
    pos: list[_NotEmpty] = Field(min_length=1, description="training draws one of them")
    neg: list[str] = Field(min_length=1, description='FlagEmbedding needs it: write [""] where there are no negatives')
    pos_scores: _Scores = None
    neg_scores: _Scores = None
    prompt: str | None = None
    type: Literal["normal", "only_1neg", "symmetric_class", "symmetric_sts", "symmetric_clustering"] | None = None

    @model_validator(mode="after")
    def _scores_fit(self) -> "_Line":
        for key, scores, texts in (("pos", self.pos_scores, self.pos), ("neg", self.neg_scores, self.neg)):
            if scores is not None and len(scores) != len(texts):
                raise ValueError(f"{key}_scores has {len(scores)} numbers for {len(texts)} texts")
        return self


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
        DatasetError: the file cannot be read, is empty, or has no good line.
    """
    lines = list(lines_of(path))
    if not lines:
        raise DatasetError(f'{str(path)!r} is empty; expected one {{"query": …, "pos": […], "neg": […]}} on each line')
    examples, bad = [], []
    for number, line in lines:
        try:
            one = parsed(_Line, line)
        except DatasetError as error:
            bad.append(BadLine(number, str(error)))
        else:
            examples.append(Example(number, one.query, tuple(one.pos), tuple(text for text in one.neg if text)))
    if not examples:
        raise DatasetError(
            f"{str(path)!r}: not one of its {len(lines)} lines can be used; line {bad[0].line}: {bad[0].reason}. "
            f"Expected one object on each line; jq -c . {path.name} makes such lines of JSON over several, jq -c '.[]' "
            "of a list"
        )
    return FinetuneFile(path, digest_of_files([path]), len(lines), tuple(examples), tuple(bad))
