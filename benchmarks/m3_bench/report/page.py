"""What a page holds, before it becomes HTML or words on a terminal."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources

from m3_bench.formats import NOTHING
from m3_bench.report.inputs import Input
from m3_runtime.version import __version__

_PACKAGE = "m3_bench.report"


@dataclass(frozen=True)
class Cell:
    """Words or a number; what is noisy is not to be trusted."""

    text: str
    is_noisy: bool = False
    is_strong: bool = False

    @property
    def is_number(self) -> bool:
        """Whether it goes to the right of its column."""
        return self.text[:1] in "0123456789+−≥≤" or self.text == NOTHING


Cells = Mapping[str, Cell | str]
"""Cells, or their texts, by the head of their column; the first names the row."""


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

        >>> Table.of("speed", [{"": "a", "p50": "1 ms", "p99": "–"}, {"": "b"}]).head
        ('', 'p50')
        """
        every = [{head: Cell(cell) if isinstance(cell, str) else cell for head, cell in row.items()} for row in rows]
        kept = [row for row in every if any(cell.text != NOTHING for cell in list(row.values())[1:])]
        valued = {head for row in kept for head, cell in row.items() if cell.text != NOTHING}
        heads = [head for head in dict.fromkeys(head for row in every for head in row) if head in valued]
        cells = tuple(tuple(row.get(head, Cell(NOTHING)) for head in heads) for row in kept)
        return cls(caption, tuple(heads), cells, is_detail)

    def has_words(self, column: int) -> bool:
        """Whether a column holds words, which begin at its left."""
        return not all(row[column].is_number for row in self.rows)


def printed(tables: Iterable[Table]) -> str:
    """Tables as Markdown for a terminal; what stands out is bold, noisy numbers have a "?"."""
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

    title: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Section:
    """A part of the page; its title and first words are in `templates/page.html`."""

    anchor: str
    charts: tuple[Chart, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Tile:
    """A figure in large letters, and words that explain it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Page:
    """The whole page; `lead` says what the tiles are of; `remarks` are warnings about the figures."""

    title: str
    subtitle: str
    lead: str
    tiles: tuple[Tile, ...]
    remarks: tuple[str, ...]
    sections: tuple[Section, ...]
    files: tuple[Input, ...]


def html(page: Page) -> str:
    """A page as one file that needs nothing but itself: style and charts are in it, it runs no script."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # only a report needs it
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader(_PACKAGE), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    style = resources.files(_PACKAGE).joinpath("templates", "page.css").read_text(encoding="utf-8")
    template = environment.get_template("page.html")
    return template.render(page=page, version=__version__, style=Markup(style))  # noqa: S704 - our own file
