"""What arm64.sh runs on both machines: encode with every variant of a bundle, and compare.

arm64_vectors.py cpuinfo                          /proc/cpuinfo of the emulated processor, which qemu does not fake
arm64_vectors.py encode BUNDLE VECTORS.npz
arm64_vectors.py compare HERE.npz THERE.npz       a table in Markdown
"""

import ctypes
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"
REFERENCE = "onnx-fp32"

# <asm/hwcap.h>: which bit of which word says it
FEATURES = {
    "asimd": (16, 1), "asimdhp": (16, 10), "asimddp": (16, 20), "sve": (16, 22), "i8mm": (26, 13), "bf16": (26, 14),
}  # fmt: skip


def cpuinfo() -> None:
    found = [name for name, (word, bit) in FEATURES.items() if ctypes.CDLL(None).getauxval(word) >> bit & 1]
    for cpu in range(os.cpu_count() or 1):
        print(f"processor\t: {cpu}\nBogoMIPS\t: 50.00\nFeatures\t: fp {' '.join(found)}\nCPU implementer\t: 0x41")
        print("CPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\nCPU revision\t: 1\n")


def encode(bundle: str, out: str) -> None:
    from m3_runtime import Bundle, M3Encoder, M3Error
    from m3_runtime.cpu import cpu_info

    print(f"{cpu_info()}", file=sys.stderr)
    texts = json.loads((GOLDEN / f"{Path(bundle).name.replace('-', '_')}.json").read_text())["texts"]
    arrays: dict[str, np.ndarray] = {}
    for variant in Bundle.open(bundle).manifest.variants:
        began = time.monotonic()
        try:
            with M3Encoder.from_bundle(Bundle.open(bundle), variant, 1) as encoder:  # OpenVINO's too, refused there
                found = encoder.encode(texts, return_sparse=True, return_colbert_vecs=True)
        except M3Error as error:
            print(f"{variant.name}: {error}", file=sys.stderr)
            continue
        print(f"{variant.name}: {len(texts)} texts in {time.monotonic() - began:.1f} s", file=sys.stderr)
        sparse = np.zeros((len(texts), encoder.bundle.manifest.geometry.vocab_size), np.float32)
        for row, weights in enumerate(found.lexical_weights):
            sparse[row, [int(key) for key in weights]] = list(weights.values())
        arrays |= {
            f"{variant.name} dense": found.dense_vecs,
            f"{variant.name} sparse": sparse[:, sparse.any(axis=0)],
            f"{variant.name} ids": np.flatnonzero(sparse.any(axis=0)),
            f"{variant.name} colbert": np.concatenate(found.colbert_vecs),
        }
    np.savez(out, **arrays)


def compare(here: str, there: str) -> None:
    with np.load(here) as on_this, np.load(there) as on_other:
        names = [name.removesuffix(" dense") for name in on_other if name.endswith(" dense")]
        print("| on Arm | on x86-64 | dense, lowest cosine | sparse, largest difference | ColBERT, lowest cosine |")
        print("|---|---|---|---|---|")
        for name in names:
            for against in dict.fromkeys((name, REFERENCE)):
                if f"{against} dense" in on_this:
                    print(f"| `{name}` | `{against}` | {_figures(on_this, against, on_other, name)} |")


def _figures(mine: np.lib.npyio.NpzFile, name: str, others: np.lib.npyio.NpzFile, its_name: str) -> str:
    ids = np.union1d(mine[f"{name} ids"], others[f"{its_name} ids"])
    a, b = (_wide(one, name, ids) for one, name in ((mine, name), (others, its_name)))
    dense = _lowest_cosine(mine[f"{name} dense"], others[f"{its_name} dense"])
    colbert = _lowest_cosine(mine[f"{name} colbert"], others[f"{its_name} colbert"])
    return f"{dense:.7f} | {np.abs(a - b).max():.1e} | {colbert:.7f}"


def _wide(vectors: np.lib.npyio.NpzFile, name: str, ids: np.ndarray) -> np.ndarray:
    rows = np.zeros((len(vectors[f"{name} sparse"]), len(ids)), np.float32)
    rows[:, np.searchsorted(ids, vectors[f"{name} ids"])] = vectors[f"{name} sparse"]
    return rows


def _lowest_cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1)[norms > 0] / norms[norms > 0]).min())


if __name__ == "__main__":
    {"cpuinfo": cpuinfo, "encode": encode, "compare": compare}[sys.argv[1]](*sys.argv[2:])
