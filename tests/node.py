"""Node and packages of npm, for tests that look at ours from JavaScript."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from made_once import made_once
from patience import PATIENCE_S

ROOT = Path(__file__).parents[1]
_MISSING = [name for name in ("node", "npm") if shutil.which(name) is None]

needs_node = pytest.mark.skipif(bool(_MISSING), reason=f"{' and '.join(_MISSING)} missing: install Node 20 or newer")


def npm_folder(name: str, *packages: str, manifest: Path | None = None) -> Path:
    """A folder with packages, or with those of a package.json; their scripts, which may fetch more, do not run."""
    return made_once(ROOT / "out" / f"node-{name}", partial(_install, packages, manifest))


def run_node(*words: object, request: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script with a request on standard input."""
    return _run("node", *words, text=json.dumps(request), env={**os.environ, **(env or {})})


def _install(packages: tuple[str, ...], manifest: Path | None, folder: Path) -> None:
    folder.mkdir()
    if manifest is not None:
        shutil.copy(manifest, folder)
    done = _run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", folder, *packages)
    assert done.returncode == 0, done.stdout + done.stderr


def _run(*words: object, text: str = "", env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, words)], input=text, env=env, capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
