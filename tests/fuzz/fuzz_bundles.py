"""Hostile bundles: none opens under verify="full", none crashes, none takes more than a second or 100 MB.

    python tests/fuzz/fuzz_bundles.py BUNDLE --bundles 10000 --seed 7

Every value of the manifest is changed (another type, out of bounds, huge, missing, doubled, a path that leads out), and
every file is cut, grown, swapped, linked, emptied, replaced by a folder or a pipe, or has a bit flipped.

One in four changed manifests is signed anew, as a forger would: digests protect from damage alone, so such a bundle may
open. What opens must encode, or be refused by name. Cases run in child processes, which a crash ends.
"""

import argparse
import copy
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m3_runtime import Bundle, M3Encoder, M3Error

MANIFEST, DIGEST = "manifest.json", "manifest_sha256"
MOST_CPU_S, MOST_BYTES, CHUNK = 1.0, 100 * 2**20, 250
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 3, 2**31 - 1, 2**31, 2**63, 2**64, 10**400, 1e308, -1.5, float("nan"), float("-inf"), "", "x",
    "\ud800", "..", "../outside", "/etc/hostname", "onnx/../../outside", "C:\\x", "a\0b", "é" * 1000, "x" * 10**6, [],
    {}, [[]], {"a": 1}, [0] * 100_000, "manifest.json", "tokenizer.json", "onnx", "openvino/model_int8.xml", "mean",
)  # fmt: skip
TEXTS = ["a b", "what is BGE M3? " * 40, ""]


@dataclass(frozen=True)
class Case:
    """What was done to a bundle, and what came of it; `outcome` is an error's name, "opened" or "encoded"."""

    number: int
    damage: str
    outcome: str
    cpu_s: float
    grown_bytes: int

    @property
    def is_wrong(self) -> bool:
        """It opened and is not forged, or ended with something else than one of our errors."""
        is_open = self.outcome in ("opened", "encoded")
        return self.outcome.startswith("!") or (is_open and not self.damage.startswith("forged"))

    def faults(self) -> Iterator[str]:
        """What must not be."""
        if self.is_wrong:
            yield self.outcome
        if self.cpu_s > MOST_CPU_S:
            yield f"it took {self.cpu_s:.1f} s of CPU"
        if self.grown_bytes > MOST_BYTES:
            yield f"it took {self.grown_bytes / 2**20:.0f} MiB"


def damage(folder: Path, draw: random.Random) -> str:
    """Do something to a bundle whose files are hard links; says what."""
    if draw.random() < 0.6:
        return _damage_manifest(folder / MANIFEST, draw)
    while True:
        path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        done = draw.choice(FILE_DAMAGES)
        before = path.read_bytes()
        done(path, draw)
        if not path.is_file() or path.is_symlink() or path.stat().st_size > len(before) or path.read_bytes() != before:
            return f"{done.__name__.strip('_')} {path.relative_to(folder)}"


def _damage_manifest(path: Path, draw: random.Random) -> str:
    """Change one to three values, and perhaps sign the result."""
    before = path.read_text(encoding="utf-8")
    while True:
        data = json.loads(before)
        said = "; ".join(_change(data, draw) for _ in range(draw.choice((1, 1, 1, 2, 3))))
        is_signed = draw.random() < 0.25
        if is_signed:
            data[DIGEST] = "0" * 64
        text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=True) + "\n"
        if is_signed:
            text = text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest(), 1)
        elif data.get(DIGEST) is None and data.get("schema_version") in (2, 3):
            continue  # as older exporters wrote it
        if draw.random() < 0.05:
            text = text.replace("{", '{"schema_version": 3,', 1)  # a key twice: the last one counts
        if text != before:
            path.unlink()
            path.write_text(text, encoding="utf-8")
            return f"{'forged ' * is_signed}manifest: {said}"


def _change(data: Any, draw: random.Random) -> str:
    """Change a value in place, anywhere."""
    place, keys = data, []
    while True:
        keys.append(draw.choice(list(place) if isinstance(place, dict) else range(len(place))))
        inner = place[keys[-1]]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.15:
            break
        place = inner
    key, where = keys[-1], "/".join(map(str, keys))
    match draw.randrange(6):
        case 0 | 1:
            place[key] = draw.choice(VALUES)
        case 2 if isinstance(inner, str):
            at = draw.randint(0, len(inner))
            place[key] = draw.choice(
                (inner[:at] + draw.choice("/.é\0 A0") + inner[at + 1 :], f"./{inner}", f"{inner}/")
            )
        case 2 if isinstance(inner, int | float):
            place[key] = draw.choice((inner + 1, inner - 1, inner * 1000, -inner, str(inner), [inner]))
        case 3:
            del place[key]
        case 4 if isinstance(place, list):
            place.insert(key, draw.choice((inner, *VALUES)))
        case 4:
            place[draw.choice(("extra", f"{key} ", "", "__class__"))] = draw.choice((inner, *VALUES))
        case _:
            other = draw.choice(list(data))
            place[key] = copy.deepcopy(data[other])
    return f"{where} was {ascii(inner)[:60]}"


def _anew(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def _cut(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    _anew(path, content[: draw.choice((0, 1, len(content) // 2, len(content) - 1, draw.randrange(len(content) + 1)))])


def _grow(path: Path, draw: random.Random) -> None:
    _anew(path, path.read_bytes() + draw.choice((b"\0", b" ", b"\n", b"}", draw.randbytes(5000))))


def _grow_without_end(path: Path, _draw: random.Random) -> None:
    _anew(path, path.read_bytes())
    os.truncate(path, 2**35)  # sparse


def _flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    _anew(path, bytes(content))


def _scramble(path: Path, draw: random.Random) -> None:
    _anew(path, draw.randbytes(path.stat().st_size))


def _swap(path: Path, draw: random.Random) -> None:
    other = draw.choice(sorted(one for one in _root(path).rglob("*") if one.is_file()))
    mine, theirs = path.read_bytes(), other.read_bytes()
    _anew(path, theirs)
    _anew(other, mine)


def _root(path: Path) -> Path:
    return next(parent for parent in path.parents if (parent / MANIFEST).is_file())


def _remove(path: Path, _draw: random.Random) -> None:
    path.unlink()


def _link(path: Path, draw: random.Random) -> None:
    """To a changed copy outside, to nothing, to itself, to what never ends."""
    outside = _root(path).with_name("outside")
    outside.write_bytes(path.read_bytes()[::-1] + b"x")
    path.unlink()
    path.symlink_to(draw.choice((outside, "nowhere", path.name, "/dev/zero", "/dev/stdin", "..", "/etc/hostname")))


def _folder(path: Path, _draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path, _draw: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


FILE_DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    _cut, _cut, _grow, _grow_without_end, _flip, _flip, _flip, _scramble, _swap, _remove, _link, _link, _folder, _pipe,
)  # fmt: skip


def outcome(folder: Path, draw: random.Random) -> str:
    """What comes of opening a bundle, and of encoding with it if it opens."""
    is_open = False
    try:
        bundle = Bundle.open(folder, verify="full")
        is_open = True
        with M3Encoder.open(folder, variant=draw.choice(bundle.manifest.variants).name, threads=1) as encoder:
            encoder.encode(TEXTS, return_sparse=True, return_colbert_vecs=True)
    except M3Error as error:
        return "opened" if is_open else type(error).__name__
    except Exception as error:  # whatever is not of our error tree is a finding
        return f"!{type(error).__name__}: {error}"
    return "encoded"


def cases(bundle: Path, seed: int, numbers: range) -> Iterator[Case]:
    """Try them one after the other in this process."""
    with tempfile.TemporaryDirectory() as work:
        whole, tampered = Path(shutil.copytree(bundle, Path(work) / "whole")), Path(work) / "bundle"
        for number in numbers:
            draw = random.Random(f"{seed} {number}")
            shutil.copytree(whole, tampered, copy_function=os.link)
            said = damage(tampered, draw)
            print(json.dumps(said), flush=True)  # the last words, if this one crashes
            before = _memory("VmRSS", is_reset=True)
            start_s = time.process_time()
            came = outcome(tampered, draw)
            cpu_s = time.process_time() - start_s
            yield Case(number, said, came, cpu_s, _memory("VmHWM") - before)
            shutil.rmtree(tampered)


def _memory(key: str, *, is_reset: bool = False) -> int:
    """Resident bytes now or, since the last reset, at most."""
    if is_reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key)))


def found(bundle: Path, seed: int, count: int) -> Iterator[Case]:
    """Try so many cases, some in a process; one whose process ends with a signal has the outcome "!signal N"."""
    start = 0
    while start < count:
        stop = min(start + CHUNK, count)
        words = [sys.executable, __file__, str(bundle), "--seed", str(seed), "--child", str(start), str(stop)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False, timeout=CHUNK * 10)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        yield from (Case(**line) for line in lines if isinstance(line, dict))
        if done.returncode:
            assert lines and isinstance(lines[-1], str), "a child could not start"
            stop = start + sum(isinstance(line, str) for line in lines)  # goes on after it
            yield Case(stop - 1, lines[-1], f"!exit {done.returncode}", 0.0, 0)
        start = stop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--bundles", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        with M3Encoder.open(args.bundle, threads=1) as encoder:  # what is loaded once is no case's
            encoder.encode(TEXTS)
        for case in cases(args.bundle, args.seed, range(*args.child)):
            print(json.dumps(asdict(case)), flush=True)
        return
    outcomes: Counter[str] = Counter()
    faults = 0
    for case in found(args.bundle, args.seed, args.bundles):
        outcomes[case.outcome] += 1
        for fault in case.faults():
            faults += 1
            print(f"case {case.number} of seed {args.seed} ({case.damage}): {fault}", flush=True)
    print(f"seed {args.seed}: {', '.join(f'{count} {name}' for name, count in outcomes.most_common())}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
