"""Real parts, made once for all processes of a run: two checkpoints, their bundles, and environments."""

import gc
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

# One thread to a process: several work side by side, and threads that wait for each other's core cost more than they
# save. Read when torch is imported, here and in every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import HealthCheck, settings

import foreign
import m3_models
from m3_runtime import Bundle, M3Encoder
from m3_runtime.tokenizer import M3Tokenizer
from made_once import made_once
from shared_bundles import HOMES, make_bundles, shared_bundle

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[1]
ENVIRONMENT = Path(__file__).parent / "environment"

# Fixtures of bundles, which are made early, and the names that `shared_bundles` gives these.
BUNDLES = {
    "tiny_bundle": "tiny-random",
    "small_bundle": "small",
    "reranker_bundle": "tiny-random-reranker",
    "mini_bundle": "mini-m3",
    "mini_reranker_bundle": "mini-reranker",
}
# What is made last of all that is made early, and files that take long.
LATE = {"mini_bundle", "mini_reranker_bundle", "bundle_path", "bare_python", "foreign_python"}
LONG = (
    "test_run_command.py", "test_export_bundles.py", "test_graph.py", "test_overload.py", "test_cluster.py",
    "test_export_failures.py", "test_hub.py", "test_bulk_workers.py", "test_tracing.py", "test_playground.py",
    "test_equivalence.py", "test_soak.py", "test_invariants.py", "test_open_bundles.py", "test_foreign_clients.py",
    "test_openvino.py", "test_compiled_cache.py", "test_haystack.py",
)  # fmt: skip

TEXTS = (
    "What is BGE M3?",
    "Defination of BM25",
    "",
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
    "日本語のテキストをトークン化する。",
    "Ein Satz, der etwas länger ist und deshalb in einer anderen Länge gepolstert wird als die übrigen Sätze hier.",
    "😀 emoji   and blanks ",
    "один два три два один",
)

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip

# A red build must be red again when it is run again; at a desk every run tries other examples. Machines stall, so no
# example has a deadline; what is generated goes to fixtures that tests only read.
settings.register_profile(
    "ours",
    derandomize=bool(os.environ.get("CI")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("ours")

# Shells start background jobs with SIGINT ignored, and what is ignored stays so in every process that is started from
# here; what has a handler does not. This process goes on ignoring it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, lambda *_: None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bundles",
        type=Path,
        metavar="DIR",
        help="keep exported bundles here and take them again; for a desk, not for CI",
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests also wait, for servers, browsers, and what another process makes."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What tests import stays, some million objects: no garbage collection is to look at them, then or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files by how long they would wait for what they need, of those the long ones first, else in their random order.

    So nobody waits for an export that goes on meanwhile, and no long file is to run alone at the end.
    """
    waits: dict[Path, int] = {}
    for item in items:
        waits[item.path] = max(waits.get(item.path, 0), _wait(item))
    items.sort(key=lambda item: (waits[item.path], item.path.name not in LONG))


def _wait(item: pytest.Item) -> int:
    """0: for nothing, 1: for a bundle that is made early, 2: for what is made after it."""
    needed = _needed(item)
    return 2 if needed & LATE else int(bool(needed & BUNDLES.keys()))


def _needed(item: pytest.Item) -> set[str]:
    """Names of fixtures; a parameter may be one."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return {*getattr(item, "fixturenames", ()), *(value for value in parameters if isinstance(value, str))}


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """A command that a test runs in this process sends logs to a standard error that ends with the test."""
    root, ours = logging.getLogger(), logging.getLogger("m3_runtime")
    handlers, levels = root.handlers, (root.level, ours.level)
    yield
    root.handlers = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium. CI installs it and fails without; at a desk without one the summary says what was left out.

    Not for the session: while it is open an event loop runs, which tests of asynchronous code must not find.
    """
    from playwright.sync_api import sync_playwright

    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        remedy = "Chromium is missing, so nobody has looked at this page; as root: apt-get install chromium"
        assert not os.environ.get("CI"), remedy
        pytest.skip(remedy)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=found,
            args=list(CHROMIUM_FLAGS),
            ignore_default_args=["--hide-scrollbars"],  # people see them
            timeout=180_000,
        )
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes of a run."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def mini_m3_checkpoint(shared_folder: Path) -> Path:
    """mini-m3's checkpoint folder: real weights, mean pooling."""
    return made_once(shared_folder / "checkpoints" / "mini-m3", partial(m3_models.write_checkpoint, "mini-m3"))


@pytest.fixture(scope="session")
def mini_reranker_checkpoint(shared_folder: Path) -> Path:
    """mini-reranker's checkpoint folder: mini-m3's encoder, fine-tuned to score pairs."""
    name = "mini-reranker"
    return made_once(shared_folder / "checkpoints" / name, partial(m3_models.write_checkpoint, name))


@pytest.fixture(scope="session")
def tiny_random_checkpoint(shared_folder: Path) -> Path:
    """tiny-random's checkpoint folder: CLS pooling, C ≠ H."""
    return made_once(shared_folder / "checkpoints" / "tiny-random", partial(m3_models.write_checkpoint, "tiny-random"))


@pytest.fixture(scope="session")
def reranker_checkpoint(shared_folder: Path) -> Path:
    """tiny-random-reranker's checkpoint folder."""
    name = "tiny-random-reranker"
    return made_once(shared_folder / "checkpoints" / name, partial(m3_models.write_checkpoint, name))


@pytest.fixture(scope="session")
def bundles(shared_folder: Path, request: pytest.FixtureRequest) -> Path:
    """Where exported bundles go."""
    kept: Path | None = request.config.getoption("--bundles")
    return (kept or shared_folder / "bundles").absolute()


@pytest.fixture(scope="session")
def mini_bundle(bundles: Path) -> Path:
    """mini-m3 with all three variants, by a plan that is fast on every processor."""
    return shared_bundle(bundles, BUNDLES["mini_bundle"])


@pytest.fixture(scope="session")
def mini_reranker_bundle(bundles: Path) -> Path:
    """mini-reranker in FP32 alone."""
    return shared_bundle(bundles, BUNDLES["mini_reranker_bundle"])


@pytest.fixture(scope="session")
def tiny_bundle(bundles: Path) -> Path:
    """tiny-random with all three variants, by a plan that has every precision."""
    return shared_bundle(bundles, BUNDLES["tiny_bundle"])


@pytest.fixture(scope="session")
def small_bundle(bundles: Path) -> Path:
    """tiny-random with the pieces of English and Chinese alone."""
    return shared_bundle(bundles, BUNDLES["small_bundle"])


@pytest.fixture(scope="session")
def reranker_bundle(bundles: Path) -> Path:
    """tiny-random-reranker with all three variants, by the plan of `tiny_bundle`: the encoder is the same."""
    return shared_bundle(bundles, BUNDLES["reranker_bundle"])


@pytest.fixture(scope="session")
def homes(tiny_bundle: Path, bundles: Path) -> Path:
    """Holds what were empty home folders before bundles were exported."""
    return bundles / HOMES


@pytest.fixture(scope="session")
def bare_python(shared_folder: Path) -> Path:
    """Python of an environment that holds our wheel and its base dependencies."""
    return _bare_python(shared_folder)


@pytest.fixture(scope="session")
def foreign_python() -> Path:
    """The Python of an environment with libraries that do not fit into ours."""
    return foreign.foreign_python()


@pytest.fixture(scope="session", autouse=True)
def _made_early(request: pytest.FixtureRequest, shared_folder: Path, bundles: Path) -> Iterator[None]:
    """Make what takes long, and what a collected test asks for, while other tests run.

    What fails here fails again, and is reported, in the fixture that needs it.
    """
    asked = set().union(*map(_needed, request.session.items))
    names = [name for fixture, name in BUNDLES.items() if fixture in asked]
    environments = {"bare_python": partial(_bare_python, shared_folder), "foreign_python": foreign.foreign_python}
    with ThreadPoolExecutor(2) as pool:  # pip waits for the network, an export computes
        if os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0":
            pool.submit(make_bundles, bundles, names)
            pool.submit(lambda: [make() for name, make in environments.items() if name in asked])
        if sys.platform == "linux":
            os.nice(5)  # this thread, not those of the pool: tests give way to what others of them wait for
        yield


def _bare_python(shared_folder: Path) -> Path:
    return made_once(shared_folder / "wheel", _install_wheel) / "venv" / "bin" / "python"


def _install_wheel(folder: Path) -> None:
    """Build the sdist, the wheel from it, and install that with its base dependencies into an environment."""
    with TemporaryDirectory() as built:
        _run_quietly(sys.executable, "-m", "build", "--no-isolation", "--outdir", built, ROOT)
        (wheel,) = Path(built).glob("m3_runtime-*.whl")
        venv.create(folder / "venv")
        python = folder / "venv" / "bin" / "python"
        options = ("--disable-pip-version-check", "--no-compile")
        _run_quietly(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel)


def _run_quietly(*words: str | Path) -> None:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def run_foreign(foreign_python: Path) -> Callable[[str, object, Path], Any]:
    """Runs a script of tests/environment with a request, in a folder; gives what it prints."""

    def run(script: str, request: object, folder: Path) -> Any:
        # nobody's login, nobody's downloads, and nothing sent to ONNX Runtime's makers
        env = {**os.environ, "HF_HOME": str(folder / "hub"), "ORT_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(
            [str(foreign_python), str(ENVIRONMENT / script)],
            input=json.dumps(request),
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def integrations_page() -> str:
    """docs/use/integrations.md."""
    return (ROOT / "docs" / "use" / "integrations.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def docs_code(integrations_page: str) -> Callable[[str], list[str]]:
    """The blocks of Python under a heading of docs/use/integrations.md."""

    def blocks(heading: str) -> list[str]:
        section = integrations_page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        return re.findall(r"```python\n(.*?)```", section, re.DOTALL)

    return blocks


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Several languages, an empty text, repeated words, blanks at the end."""
    return list(TEXTS)


@pytest.fixture(scope="session")
def encoder(tiny_bundle: Path) -> Iterator[M3Encoder]:
    """tiny-random in FP32: what other ways to the same vectors are held against."""
    with M3Encoder.open(tiny_bundle, variant="onnx-fp32", threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def tokenizer(tiny_bundle: Path) -> M3Tokenizer:
    """tiny-random's."""
    bundle = Bundle.open(tiny_bundle)
    return M3Tokenizer.open(bundle.file(bundle.manifest.tokenizer.path), bundle.manifest.tokenizer)


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """tiny-random's bundle to damage. Its files are hard links: replace them, never write into them."""
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy, copy_function=_link)
    return copy


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
