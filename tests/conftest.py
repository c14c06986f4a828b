"""Real parts, built once per session: two checkpoints, and the bundles that the command makes of them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

import m3_models
from m3_bench.peers.environments import PeerSource, environment_of
from m3_bench.texts import TextMaker
from m3_export.progress import Progress
from m3_runtime import Bundle
from m3_runtime.tokenizer import M3Tokenizer

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[1]
FOREIGN = Path(__file__).parent / "foreign"

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


def run_export(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run m3-export in a process of its own, as a user does."""
    command = [sys.executable, "-m", "m3_export", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


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
        opened = playwright.chromium.launch(executable_path=found, args=list(CHROMIUM_FLAGS), timeout=180_000)
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
    return _made_once(shared_folder / "checkpoints" / "mini-m3", partial(m3_models.write_checkpoint, "mini-m3"))


@pytest.fixture(scope="session")
def tiny_random_checkpoint(shared_folder: Path) -> Path:
    """tiny-random's checkpoint folder: CLS pooling, C ≠ H."""
    return _made_once(shared_folder / "checkpoints" / "tiny-random", partial(m3_models.write_checkpoint, "tiny-random"))


@pytest.fixture(scope="session")
def bundles(shared_folder: Path, request: pytest.FixtureRequest) -> Path:
    """Where exported bundles go."""
    kept: Path | None = request.config.getoption("--bundles")
    return (kept or shared_folder / "bundles").absolute()


@pytest.fixture(scope="session")
def mini_bundle(bundles: Path) -> Path:
    """mini-m3 with all three variants, by a plan that is fast on every processor: a search takes a minute or two."""
    plan = Path(__file__).parent / "golden" / "mini_m3_plan.json"
    return _made_once(bundles / "mini-m3", lambda out: _export("mini-m3", out, "--plan", plan))


@pytest.fixture(scope="session")
def tiny_bundle(bundles: Path) -> Path:
    """tiny-random with all three variants."""
    return _made_once(bundles / "tiny-random", lambda out: _export("tiny-random", out))


def _export(*words: str | Path) -> None:
    done = run_export(*words)
    assert done.returncode == 0, done.stderr


def _made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """A folder that the first process to ask for makes, and for which the others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():
            make(folder)
    return folder


@pytest.fixture(scope="session")
def foreign_python() -> Path:
    """The Python of an environment with libraries that do not fit into ours; made once, and again when pins change.

    TORCH names a build of torch, as for make.
    """
    torch = os.environ.get("TORCH")
    source = PeerSource(ROOT / "out", tuple(torch.split()) if torch else None)
    source.folder.mkdir(exist_ok=True)
    with FileLock(source.folder / "foreign.lock"):
        return environment_of(
            "foreign", FOREIGN / "pins.txt", source, Progress(quiet=True), pip_options=("--quiet", "--no-compile")
        )


@pytest.fixture(scope="session")
def run_foreign(foreign_python: Path) -> Callable[[str, object, Path], Any]:
    """Runs a script of tests/foreign with a request, in a folder; gives what it prints."""

    def run(script: str, request: object, folder: Path) -> Any:
        # nobody's login, nobody's downloads, and nothing sent to ONNX Runtime's makers
        env = {**os.environ, "HF_HOME": str(folder / "hub"), "ORT_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(
            [str(foreign_python), str(FOREIGN / script)],
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


@pytest.fixture
def tokenizer(tiny_bundle: Path) -> M3Tokenizer:
    """tiny-random's."""
    bundle = Bundle.open(tiny_bundle)
    return M3Tokenizer.open(bundle.file(bundle.manifest.tokenizer.path), bundle.manifest.tokenizer)


@pytest.fixture
def texts(tokenizer: M3Tokenizer) -> TextMaker:
    """Makes texts of so many tokens."""
    return TextMaker(tokenizer)
