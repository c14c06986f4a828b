"""What a page holds, before it becomes HTML, Markdown or words on a terminal."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import quote

from m3_bench.figures import Place
from m3_bench.formats import NOTHING
from m3_bench.report.inputs import Input

RAW = "raw"


@dataclass(frozen=True)
class Cell:
    """Words, or a number with the place of its raw values and how it was computed from them."""

    text: str
    place: Place | None = None  # None for words
    how: str = ""
    is_noisy: bool = False
    is_strong: bool = False

    @property
    def link(self) -> str:
        """Address of the raw values from the page; empty for words.

        >>> Cell("1", Place("run 1.json", "/contenders/0")).link
        'raw/run%201.json#/contenders/0'
        """
        return "" if self.place is None else f"{RAW}/{quote(self.place.file)}#{quote(self.place.pointer)}"

    @property
    def title(self) -> str:
        """Where the number comes from, in words; empty for words.

        >>> Cell("1", Place("run.json", "/contenders/0"), "median of 5 rounds").title
        'median of 5 rounds; run.json /contenders/0'
        """
        return "" if self.place is None else f"{self.how}; {self.place.file} {self.place.pointer}".removeprefix("; ")

    def strong(self) -> "Cell":
        """The same, standing out."""
        return replace(self, is_strong=True)


NO_VALUE = Cell(NOTHING)
Cells = Mapping[str, Cell | str]
"""Cells, or words, by the head of their column; the first names the row."""


@dataclass(frozen=True)
class Table:
    """A table; `is_detail` tables are folded."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_detail: bool = False

    @classmethod
    def of(cls, caption: str, rows: Iterable[Cells], *, is_detail: bool = False) -> "Table":
        """A table without rows and columns that have no value.

        >>> Table.of("speed", [{"": "a", "p50": "1 ms", "p99": NO_VALUE}, {"": "b"}]).head
        ('', 'p50')
        """
        every = [{head: Cell(cell) if isinstance(cell, str) else cell for head, cell in row.items()} for row in rows]
        kept = [row for row in every if any(cell.text != NOTHING for cell in list(row.values())[1:])]
        valued = {head for row in kept for head, cell in row.items() if cell.text != NOTHING}
        heads = [head for head in dict.fromkeys(head for row in every for head in row) if head in valued]
        cells = tuple(tuple(row.get(head, NO_VALUE) for head in heads) for row in kept)
        return cls(caption, tuple(heads), cells, is_detail)

    def has_words(self, column: int) -> bool:
        """Whether a column holds words, not numbers."""
        return any(row[column].place is None and row[column].text != NOTHING for row in self.rows)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that its numbers come from."""
        return tuple(dict.fromkeys(cell.place.file for row in self.rows for cell in row if cell.place is not None))


def printed(tables: Iterable[Table]) -> str:
    """Tables as Markdown for a terminal, without links; numbers that stand out are bold, noisy ones have a "?"."""
    parts = []
    for table in tables:
        lines = [f"## {_one_line(table.caption)}\n", f"| {' | '.join(map(_one_line, table.head))} |"]
        lines.append(f"|---|{'---:|' * (len(table.head) - 1)}")
        lines += [f"| {' | '.join(map(_printed_cell, row))} |" for row in table.rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _printed_cell(cell: Cell) -> str:
    text = _one_line(cell.text)
    return f"**{text}**" if cell.is_strong else f"{text} ?" if cell.is_noisy else text


def _one_line(text: str) -> str:
    return " ".join(text.replace("\n", ", ").split()).replace("|", "/")


@dataclass(frozen=True)
class Chart:
    """A chart as SVG, which has title and description in it; `caption` says what to see."""

    name: str
    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Section:
    """A part of the page; its title and first words are in `templates/sections.jinja`, `intro` goes on from there."""

    anchor: str
    charts: tuple[Chart, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    intro: str


@dataclass(frozen=True)
class Tile:
    """A figure in large letters, and words and figures that explain it."""

    label: str
    value: Cell
    notes: tuple[Cell, ...] = ()


@dataclass(frozen=True)
class Page:
    """The whole page; `lead` says what the tiles are of, `remarks` what speaks against trusting the figures."""

    title: str
    subtitle: str
    lead: str
    tiles: tuple[Tile, ...]
    remarks: tuple[str, ...]
    sections: tuple[Section, ...]
    files: tuple[Input, ...]
