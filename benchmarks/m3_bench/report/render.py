"""A page as HTML and as Markdown."""

import re
from importlib import resources
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from m3_bench.report.page import Page, Picture

_PACKAGE = "m3_bench.report"
_SPACES = re.compile(r"\s+")
_MD_SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")


def html(page: Page) -> str:
    """One HTML page that needs nothing but itself; only its links lead to the raw files beside it."""
    return _render("page.html", page)


def markdown(page: Page) -> str:
    """The same as Markdown, with its pictures beside it."""
    return re.sub(r"\n{3,}", "\n\n", _render("page.md", page))


def standalone(picture: Picture) -> str:
    """A picture as an SVG file of its own, with its colours."""
    start, rest = picture.svg.split(">", 1)
    return f"{start}><style>{_css('chart.css')}.chart {{ background: var(--card); }}</style>{rest}\n"


def _render(name: str, page: Page) -> str:
    environment = Environment(
        loader=PackageLoader(_PACKAGE),
        autoescape=select_autoescape(enabled_extensions=("html",), default=False),
        undefined=StrictUndefined,
        trim_blocks=False,
        keep_trailing_newline=True,
    )
    environment.filters |= {"md": _md, "md_link": _md_link, "md_title": _md_title}
    template = environment.get_template(name)
    styles = {"chart_css": Markup(_css("chart.css")), "page_css": Markup(_css("page.css"))}  # noqa: S704 - our own files
    return template.render(page=page, **styles)


def _css(name: str) -> str:
    return resources.files(_PACKAGE).joinpath("templates", name).read_text(encoding="utf-8")


def _md(text: str) -> str:
    r"""Words that Markdown leaves alone.

    >>> _md("a|b <i>")
    'a\\|b \\<i\\>'
    """
    return _MD_SPECIAL.sub(r"\\\1", _SPACES.sub(" ", text.replace("\n", " · ")))


def _md_title(text: str) -> str:
    return _md(text).replace('"', "'")


def _md_link(address: str) -> str:
    """An address without what would end a link; what is quoted already stays.

    >>> _md_link("raw/a (1).json#/x")
    'raw/a%20%281%29.json#/x'
    """
    return quote(address, safe="/#%~.-_")
