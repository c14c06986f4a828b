"""The bundles that tests share. One process exports all of them: what it imports and traces first, it does once.

It has an empty home folder and no network, as `traceless` says.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from made_once import made_once
from traceless import run_traceless

GOLDEN = Path(__file__).parent / "golden"
TINY_PLAN, MINI_PLAN = GOLDEN / "tiny_random_plan.json", GOLDEN / "mini_m3_plan.json"
FEW = ("--probe-texts", GOLDEN / "mini_m3_probe.txt")  # are measured faster, and have a budget of their own
HOMES = "homes"

# In the order in which they are made. Plans are given: a search takes a minute or two, and depends on the machine.
WORDS: dict[str, tuple[str | Path, ...]] = {
    "tiny-random": ("tiny-random", "--plan", TINY_PLAN),
    "small": ("tiny-random", "--languages", "en,zh", "--plan", TINY_PLAN, *FEW, "--budget", "fast"),
    # what is over budget is part of what is tested
    "tiny-random-reranker": ("tiny-random-reranker", "--plan", TINY_PLAN, *FEW, "--allow-over-budget"),
    # tests/contract measures these variants on texts of its own
    "mini-m3": ("mini-m3", "--plan", MINI_PLAN, *FEW, "--budget", "fast"),
    # its golden scores are about FP32 alone; of n texts every pair is probed
    "mini-reranker": ("mini-reranker", "--variants", "onnx-fp32", "--probe-texts", GOLDEN / "mini_reranker_probe.txt"),
}

EXPORT = "import sys; sys.path.insert(0, sys.argv[1]); import shared_bundles; shared_bundles.export_all(*sys.argv[2:])"


def shared_bundle(bundles: Path, name: str) -> Path:
    """The bundle of this name; whoever asks first makes it, and others wait."""
    make_bundles(bundles, [name])
    return bundles / name


def make_bundles(bundles: Path, names: Sequence[str]) -> None:
    """Make those that are not there yet, in a process of their own."""
    if all((bundles / name).exists() for name in names):
        return
    homes = bundles / HOMES
    homes.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(dir=homes)) / "home"
    run_traceless(home, EXPORT, Path(__file__).parent, bundles, *names, timeout_s=1800)


def export_all(bundles: str, *names: str) -> None:
    """Make them here, one after the other."""
    for name in names:
        made_once(Path(bundles) / name, lambda out, name=name: _export(*WORDS[name], out))


def _export(*words: str | Path) -> None:
    from m3_export.cli import main

    if code := main([*map(str, words)]):
        sys.exit(code)
