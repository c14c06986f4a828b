"""Rules of the house that no tool checks by itself."""

import re
import tomllib
from pathlib import Path

import m3_runtime

ROOT = Path(__file__).parents[2]
ROOMS = ("exporter", "runtime", "models", "benchmarks")
MACHINE_PATHS = re.compile(r"(?<![\w.])/(home|root|work|tmp|Users)/\w")


def sources() -> list[Path]:
    return [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]


def test_the_version_stands_in_the_changelog():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version == m3_runtime.__version__
    newest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


def test_modules_are_one_idea_each():
    assert {p.name: n for p in sources() if (n := len(p.read_text().splitlines())) > 400} == {}


def test_no_path_of_one_machine():
    for path in sources():
        assert not MACHINE_PATHS.search(path.read_text()), path


def test_links_in_the_docs_lead_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
