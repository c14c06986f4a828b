"""Pages say what is so: links lead somewhere, commands and quoted messages exist, both READMEs agree on figures."""

import ast
import contextlib
import io
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import m3_bench.cli
import m3_export.cli
import m3_runtime.cli

ROOT = Path(__file__).parents[2]
README, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md")])
MAINS: dict[str, Callable[[list[str]], int]] = {
    "m3-runtime": m3_runtime.cli.main,
    "m3-export": m3_export.cli.main,
    "m3-bench": m3_bench.cli.main,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)]+)\)", prose(page)):
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_the_readme_is_one_sitting():
    assert len(README.read_text().splitlines()) <= 120


def test_both_readmes_give_the_same_figures():
    assert figures(README) == figures(CHINESE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_options_exist(page):
    for command, line in commands(page):
        verb = next((word for word in line.split() if re.fullmatch(r"[a-z][a-z-]+", word)), None)
        if command == "m3-export":
            verb = verb if verb == "verify-golden" else None
        known = help_of(command, verb)
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", line):
            assert option in known, f"{command} {line}"


def test_quoted_messages_are_raised():
    """The first column of the tables in docs/troubleshooting.md quotes messages, with … for what varies."""
    texts = "\n".join(strings())
    rows = [line for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines() if line.startswith("| ")]
    quotes = [quote for row in rows for quote in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    parts = [part.strip() for quote in quotes for part in quote.split("…")]
    assert len(parts) > 30
    assert [part for part in parts if len(part) > 9 and part not in texts] == []


def test_pages_that_the_code_names_exist():
    named = {page for text in strings() for page in re.findall(r"\bdocs/[\w/-]+\.md", text)}
    assert named
    assert [page for page in sorted(named) if not (ROOT / page).is_file()] == []


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def figures(page: Path) -> list[list[str]]:
    """The rows of the results table, without the header and each contender's name."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.read_text().splitlines()]
    found = [row[1:] for row in rows if len(row) == 6 and row[0].strip("-:")]
    assert found
    return found


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """Our commands in a page's shell blocks, each with its arguments."""
    for block in re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.splitlines():
            if found := re.match(r"(m3-runtime|m3-export|m3-bench) (.*)", line.split("  #")[0].strip()):
                yield found[1], found[2]


@cache
def help_of(command: str, verb: str | None) -> str:
    words = ["--help"] if verb is None else [verb, "--help"]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as ended:
        MAINS[command](words)
    assert ended.value.code == 0, f"{command} has no {verb}"
    return shown.getvalue()


@cache
def strings() -> tuple[str, ...]:
    """Every string in the product's source, adjacent ones joined as Python does."""
    rooms = ("runtime", "exporter", "models", "benchmarks")
    trees = [ast.parse(path.read_text()) for room in rooms for path in (ROOT / room).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return tuple(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
