"""What a page holds, before it becomes HTML or Markdown."""

from dataclasses import dataclass
from urllib.parse import quote

from m3_bench.compare.figures import Place

RAW = "raw"


@dataclass(frozen=True)
class Cell:
    """Words or a number.

    Attributes:
        text: what is read.
        place: where its raw values stand; None for words.
        how: how it came from them.
        is_doubtful: whether it is too noisy to be trusted.
        is_strong: whether it stands out.
    """

    text: str
    place: Place | None = None
    how: str = ""
    is_doubtful: bool = False
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


NOTHING = Cell("–")


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row names it. `is_detail` tables are folded away."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_detail: bool = False

    def has_words(self, column: int) -> bool:
        """Whether a column holds words, not numbers."""
        return any(row[column].place is None and row[column] != NOTHING for row in self.rows)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that its numbers come from."""
        return tuple(dict.fromkeys(cell.place.file for row in self.rows for cell in row if cell.place is not None))


@dataclass(frozen=True)
class Picture:
    """A chart as SVG; `caption` says what to see, the SVG itself has title and description."""

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
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tile:
    """A figure in large letters, and what it is held against, after a word such as "against"."""

    label: str
    value: Cell
    word: str = ""
    against: tuple[Cell, ...] = ()


@dataclass(frozen=True)
class SourceRow:
    """A file that the page was made from."""

    name: str
    kind: str
    sha256: str


@dataclass(frozen=True)
class Page:
    """The whole page.

    Attributes:
        title: of the page.
        subtitle: what it is about, in short.
        summary: sentences, each of words and numbers.
        tiles: the figures that decide.
        doubts: what speaks against trusting the figures.
        sections: the rest, in order.
        files: what it was made from.
        version: the release that wrote it.
    """

    title: str
    subtitle: str
    summary: tuple[tuple[Cell, ...], ...]
    tiles: tuple[Tile, ...]
    doubts: tuple[str, ...]
    sections: tuple[Section, ...]
    files: tuple[SourceRow, ...]
    version: str
