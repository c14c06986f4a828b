"""What a page holds, before it becomes HTML or Markdown."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from urllib.parse import quote

from m3_bench.figures import Place
from m3_bench.formats import NOTHING

RAW = "raw"


@dataclass(frozen=True)
class Cell:
    """Words or a number."""

    text: str  # what is read
    place: Place | None = None  # where its raw values are stored; None for words
    how: str = ""  # how it was computed from them
    is_noisy: bool = False  # too noisy to be trusted
    is_strong: bool = False  # whether it stands out

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


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row names it. `is_detail` tables are folded."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_detail: bool = False

    def has_words(self, column: int) -> bool:
        """Whether a column holds words, not numbers."""
        return any(row[column].place is None and row[column].text != NOTHING for row in self.rows)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that its numbers come from."""
        return tuple(dict.fromkeys(cell.place.file for row in self.rows for cell in row if cell.place is not None))

    def pruned(self) -> "Table":
        """Without rows and columns that have no value."""
        rows = [row for row in self.rows if any(cell.text != NOTHING for cell in row[1:])]
        kept = [0, *(n for n in range(1, len(self.head)) if any(row[n].text != NOTHING for row in rows))]
        return replace(
            self, head=tuple(self.head[n] for n in kept), rows=tuple(tuple(row[n] for n in kept) for row in rows)
        )

    def plain(self) -> str:
        """As Markdown for a terminal, without links; numbers that stand out are bold, noisy ones have a "?"."""
        lines = [f"| {' | '.join(map(_one_line, self.head))} |", f"|---|{'---:|' * (len(self.head) - 1)}"]
        lines += [f"| {' | '.join(map(_plain, row))} |" for row in self.rows]
        return "\n".join(lines)


def _plain(cell: Cell) -> str:
    text = _one_line(cell.text)
    return f"**{text}**" if cell.is_strong else f"{text} ?" if cell.is_noisy else text


def _one_line(text: str) -> str:
    return " ".join(text.replace("\n", ", ").split()).replace("|", "/")


def printed(tables: Iterable[Table]) -> str:
    """Tables with their captions, for a terminal."""
    return "\n\n".join(f"## {_one_line(table.caption)}\n\n{table.plain()}" for table in tables)


@dataclass(frozen=True)
class Chart:
    """A chart as SVG, which has title and description in it; `caption` says what to see."""

    name: str
    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    anchor: str
    title: str
    intro: str
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tile:
    """A figure in large letters, and words and figures that explain it."""

    label: str
    value: Cell
    notes: tuple[Cell, ...] = ()


@dataclass(frozen=True)
class SourceRow:
    """A file that the page was made from."""

    name: str
    kind: str
    sha256: str


@dataclass(frozen=True)
class Page:
    """The whole page; `lead` says what the tiles are of, `remarks` what speaks against trusting the figures."""

    title: str
    subtitle: str
    lead: str
    tiles: tuple[Tile, ...]
    remarks: tuple[str, ...]
    sections: tuple[Section, ...]
    files: tuple[SourceRow, ...]
    version: str
