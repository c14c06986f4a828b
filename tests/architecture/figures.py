"""Figures of the product's source: lines, functions, names, imports. Run as a program, it prints them."""

import ast
import io
import statistics
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {"m3_runtime": "runtime", "m3_export": "exporter", "m3_models": "models", "m3_bench": "benchmarks"}
"""Where each package is. The folders hold scripts beside their package, which count as product lines too."""
CALLED_BY = {
    "main": tuple(PACKAGES),  # what runs a module as a program
    "add_command": ("m3_runtime.cli", "m3_bench.cli"),
    "add_to": ("m3_bench.cli",),
    "run": ("m3_runtime.cli", "m3_bench.cli"),
    "section": ("m3_bench.report",),
    "write": ("m3_models",),
    "M3SparseEmbeddings": ("m3_runtime.integrations",),  # LangChain has an interface of that kind for each database
}
"""Names by which every module of a folder is called: one meaning, whichever module it is."""
SHORT_LINES = 60
_NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip


@dataclass(frozen=True)
class Function:
    """A function and its lines of code: without blank lines, comments and its docstring."""

    name: str
    code_lines: int


@dataclass(frozen=True)
class Module:
    """A module of the product."""

    name: str
    package: str
    text: str

    @cached_property
    def lines(self) -> int:
        return len(self.text.splitlines())

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def public_names(self) -> frozenset[str]:
        """What the module itself defines at its top, and does not call private."""
        found: set[str] = set()
        for node in self.tree.body:
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    found.add(name)
                case ast.Assign(targets=targets):
                    names = [name for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
                    found |= {name.id for name in names if isinstance(name.ctx, ast.Store)}
                case ast.AnnAssign(target=ast.Name(id=name)):
                    found.add(name)
        return frozenset(name for name in found if not name.startswith("_"))

    @cached_property
    def functions(self) -> tuple[Function, ...]:
        """All functions, methods and inner ones included."""
        code = self._code_lines()
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = set(range(node.lineno, (node.end_lineno or node.lineno) + 1)) & code
                if ast.get_docstring(node) is not None:
                    lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
                found.append(Function(f"{self.name}.{node.name}", len(lines)))
        return tuple(found)

    def imports(self, known: frozenset[str]) -> frozenset[str]:
        """Those of the known modules that this one imports when it runs, inside functions too."""
        found: set[str] = set()
        waiting: list[ast.AST] = [self.tree]
        while waiting:
            node = waiting.pop()
            waiting += ast.iter_child_nodes(node)
            match node:
                case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body):
                    waiting = [other for other in waiting if other not in body]
                case ast.Import(names=names):
                    found |= {alias.name for alias in names}
                case ast.ImportFrom(module=str(module), names=names):
                    inner = {f"{module}.{alias.name}" for alias in names}
                    found |= inner
                    if not inner <= known:
                        found.add(module)
        return frozenset(found & known - {self.name})

    def _code_lines(self) -> set[int]:
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        spans = [(token.start[0], token.end[0]) for token in tokens if token.type not in _NO_CODE]
        return {line for start, end in spans for line in range(start, end + 1)}


def modules() -> tuple[Module, ...]:
    """Every module of the four packages."""

    def of(package: str, folder: Path) -> Iterator[Module]:
        for path in sorted((folder / package).rglob("*.py")):
            name = ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
            yield Module(name, package, path.read_text(encoding="utf-8"))

    return tuple(module for package, folder in PACKAGES.items() for module in of(package, ROOT / folder))


def product_lines() -> int:
    """Lines of all Python files beside the tests and the examples, scripts included."""
    files = [path for folder in PACKAGES.values() for path in (ROOT / folder).rglob("*.py")]
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)


def homonyms(found: tuple[Module, ...]) -> dict[tuple[str, str], list[str]]:
    """Public names that several modules of one package define: (package, name) → modules.

    What the modules of a folder are all called by counts as one definition.
    """
    places: dict[tuple[str, str], set[str]] = defaultdict(set)
    for module in found:
        for name in module.public_names:
            folder = next((f for f in CALLED_BY.get(name, ()) if f"{module.name}.".startswith(f"{f}.")), module.name)
            places[module.package, name].add(folder)
    return {key: sorted(names) for key, names in sorted(places.items()) if len(names) > 1}


def short_with_one_importer(found: tuple[Module, ...]) -> dict[str, str]:
    """Modules of fewer than `SHORT_LINES` lines that a single other module imports, and that module."""
    known = frozenset(module.name for module in found)
    importers: dict[str, list[str]] = defaultdict(list)
    for module in found:
        for name in module.imports(known):
            importers[name].append(module.name)
    short = [module.name for module in found if module.lines < SHORT_LINES]
    return {name: importers[name][0] for name in short if len(importers[name]) == 1}


def circle(found: tuple[Module, ...]) -> list[str]:
    """Modules that import each other in a circle, the first again at the end; empty if there is none."""
    known = frozenset(module.name for module in found)
    try:
        TopologicalSorter({module.name: module.imports(known) for module in found}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def main() -> None:
    found = modules()
    functions = sorted((one.code_lines, one.name) for module in found for one in module.functions)
    lengths = [length for length, _ in functions]
    print(f"product lines, scripts included: {product_lines()} in {len(found)} modules")
    print(f"longest module: {max((module.lines, module.name) for module in found)}")
    print(
        f"code lines of a function: median {statistics.median(lengths):.0f}, p90 {percentile_90(lengths)}, "
        f"longest {functions[-1]}"
    )
    short = short_with_one_importer(found)
    print(f"modules under {SHORT_LINES} lines with one importer: {len(short)}")
    for name, importer in sorted(short.items()):
        print(f"  {name} ← {importer}")
    print(f"a circle of imports: {' → '.join(circle(found)) or 'none'}")
    same = homonyms(found)
    print(f"public names of several modules: {len(same)}")
    for (package, name), places in same.items():
        print(f"  {name}: {', '.join(place.removeprefix(f'{package}.') for place in places)} in {package}")
    print(f"README.md: {len((ROOT / 'README.md').read_text(encoding='utf-8').splitlines())} lines")


def percentile_90(sorted_lengths: list[int]) -> int:
    """Nine of ten are no longer."""
    return sorted_lengths[int(0.9 * len(sorted_lengths))]


if __name__ == "__main__":
    main()
