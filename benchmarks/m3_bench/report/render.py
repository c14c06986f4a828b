"""A page as HTML and as Markdown, in a folder that is whole or absent; nothing but a report is written over."""

import os
import re
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from m3_bench.errors import DocumentError
from m3_bench.report.page import RAW, Chart, Page
from m3_runtime.bundle.writer import publish, staging_folder
from m3_runtime.errors import InputError
from m3_runtime.version import __version__

INDEX, MARKDOWN, PICTURES = "index.html", "report.md", "pictures"
_PACKAGE = "m3_bench.report"
_GENERATOR = b'<meta name="generator" content="m3-bench report '
_HEAD_BYTES = 4096
_MD_SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")


def html(page: Page) -> str:
    """One HTML page that needs nothing but itself; only its links lead to the raw files beside it."""
    return _render("page.html", page)


def markdown(page: Page) -> str:
    """The same as Markdown, with its pictures beside it."""
    return re.sub(r"\n{3,}", "\n\n", _render("page.md", page))


def standalone(chart: Chart) -> str:
    """A chart as an SVG file of its own, with its colours."""
    start, rest = chart.svg.split(">", 1)
    return f"{start}><style>{_css('chart.css')}.chart {{ background: var(--card); }}</style>{rest}\n"


def check_target(folder: Path, files: Sequence[Path], *, force: bool) -> None:
    """Refuse a folder that must not be written over; a report may be, and an empty folder.

    Raises:
        InputError: it is something else and `force` is off, or it holds one of `files` or this process's folder.
    """
    if not os.path.lexists(folder):
        return
    whole = folder.resolve()
    if any(whole == one or whole in one.parents for one in (Path.cwd().resolve(), Path.home().resolve())):
        raise InputError(f"-o {folder} would replace the folder you are in, or your home; choose one of its own")
    inside = [path for path in files if whole in path.resolve().parents]
    if inside:
        raise InputError(f"-o {folder} would replace {str(inside[0])!r}, which the report is made of; choose another")
    if force or _is_report(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return
    raise InputError(f"-o {folder} exists and is not a report; choose another folder, or pass --force to replace it")


def _is_report(folder: Path) -> bool:
    try:
        with (folder / INDEX).open("rb") as file:
            return _GENERATOR in file.read(_HEAD_BYTES)
    except OSError:
        return False


def write_report(page: Page, folder: Path) -> None:
    """Write page, pictures and raw files beside the target, then put them in its place.

    Raises:
        DocumentError: they cannot be written.
    """
    target = folder.absolute()
    try:
        with staging_folder(target) as new:
            for part in (new / RAW, new / PICTURES):
                part.mkdir()
            (new / INDEX).write_text(html(page), encoding="utf-8")
            (new / MARKDOWN).write_text(markdown(page), encoding="utf-8")
            for chart in (chart for section in page.sections for chart in section.charts):
                (new / PICTURES / f"{chart.name}.svg").write_text(standalone(chart), encoding="utf-8")
            for file in page.files:
                shutil.copyfile(file.path, new / RAW / file.name)
            publish(new, target)
    except OSError as error:
        raise DocumentError(f"the report {str(folder)!r} cannot be written: {error}") from error


def _render(name: str, page: Page) -> str:
    environment = Environment(
        loader=PackageLoader(_PACKAGE),
        autoescape=select_autoescape(enabled_extensions=("html",), default=False),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": _md, "md_link": _md_link}
    styles = {"chart_css": Markup(_css("chart.css")), "page_css": Markup(_css("page.css"))}  # noqa: S704 - our own files
    return environment.get_template(name).render(page=page, version=__version__, **styles)


def _css(name: str) -> str:
    return resources.files(_PACKAGE).joinpath("templates", name).read_text(encoding="utf-8")


def _md(text: str) -> str:
    r"""Words that Markdown leaves alone.

    >>> _md("a|b <i>")
    'a\\|b \\<i\\>'
    """
    return _MD_SPECIAL.sub(r"\\\1", " ".join(text.replace("\n", " · ").split()))


def _md_link(address: str) -> str:
    """An address without what would end a link; what is quoted already stays.

    >>> _md_link("raw/a (1).json#/x")
    'raw/a%20%281%29.json#/x'
    """
    return quote(address, safe="/#%~.-_")
