"""Rules of the house that no tool checks by itself."""

import re
import statistics
import tomllib
from dataclasses import replace

import pytest
from figures import PACKAGES, ROOT, Module, circle, homonyms, modules, percentile_90, short_with_one_importer

import m3_runtime

MACHINE_PATHS = re.compile(r"(?<![\w.])/(home|root|work|tmp|Users)/\w")


def test_the_version_stands_in_the_changelog():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version == m3_runtime.__version__
    newest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


@pytest.fixture(scope="module")
def product() -> tuple[Module, ...]:
    return modules()


def test_modules_have_at_most_500_lines(product):
    assert {module.name: module.lines for module in product if module.lines > 500} == {}


def test_functions_are_short(product):
    functions = [one for module in product for one in module.functions]
    assert {one.name: one.code_lines for one in functions if one.code_lines > 60} == {}
    lengths = sorted(one.code_lines for one in functions)
    assert statistics.median(lengths) <= 8
    assert percentile_90(lengths) <= 24


def test_few_short_modules_have_a_single_importer(product):
    """Such a module is a part of its importer that a reader has to look up."""
    assert len(found := short_with_one_importer(product)) <= 10, found


def test_imports_go_in_no_circle(product):
    assert circle(product) == []


def test_a_public_name_has_one_meaning_in_a_package(product):
    assert homonyms(product) == {}


def test_the_rules_find_something():
    """Two small modules that break the rules about names, imports and lengths."""
    body = "".join(f"    x = {n}\n" for n in range(70))
    first = Module("m3_bench.a", "m3_bench", f'"""A."""\n\n\ndef load():\n    """Doc."""\n    # why\n\n{body}')
    second = Module("m3_bench.b", "m3_bench", "from m3_bench.a import load as other\n\nload: int = 1\n_own = other\n")
    assert [one.code_lines for one in first.functions] == [71]
    assert homonyms((first, second)) == {("m3_bench", "load"): ["m3_bench.a", "m3_bench.b"]}
    assert short_with_one_importer((first, second)) == {}
    assert short_with_one_importer((replace(first, text="def load(): ...\n"), second)) == {"m3_bench.a": "m3_bench.b"}
    assert circle((first, second)) == []
    assert len(circle((replace(first, text="def f():\n    from m3_bench import b\n"), second))) == 3
    assert circle((replace(first, text="if TYPE_CHECKING:\n    import m3_bench.b\n"), second)) == []


def test_no_path_of_one_machine():
    for path in [path for folder in PACKAGES.values() for path in (ROOT / folder).rglob("*.py")]:
        assert not MACHINE_PATHS.search(path.read_text()), path
