"""INT8 where it is weakest: random texts of one to thirty words, and single words and signs, against onnx-fp32.

python benchmarks/short_texts.py BUNDLE
"""

import sys

import numpy as np

from m3_runtime import M3Encoder

WORDS = (
    "vector", "search", "向量", "检索", "поиск", "suche", "búsqueda", "बाज़ार", "ค้นหา", "بحث", "検索", "검색",
    "42", "3.14", "€", "def", "return;", "the", "of", "und", "la",
    "<mask>", "(a+b)", "http://example.com", "🙂", "É", "naïve", "LOUD",
)  # fmt: skip
SIGNS = ("", ".", "?", "a", "ok")
DENSE_MIN = 0.998  # the default budget


def texts() -> list[str]:
    """700 seeded random texts, every second one of at most three words, and each word alone."""
    rng = np.random.default_rng(1)
    drawn = [" ".join(rng.choice(WORDS, rng.integers(1, 4 if i % 2 else 30))) for i in range(700)]
    return [*drawn, *WORDS, *SIGNS]


def dense(bundle: str, variant: str) -> np.ndarray:
    """Unit vectors (S, H) of all texts."""
    with M3Encoder.open(bundle, variant=variant) as encoder:
        found = encoder.encode(texts()).dense_vecs
    assert found is not None
    return found.astype(np.float64)


def main(bundle: str) -> None:
    """Print mean, minimum and the worst texts of each INT8 variant."""
    exact = dense(bundle, "onnx-fp32")
    for variant in ("onnx-int8", "openvino-int8"):
        cosines = (exact * dense(bundle, variant)).sum(axis=1)
        random, signs = cosines[: -len(SIGNS)], cosines[-len(SIGNS) :]
        print(f"{variant}: {random.size} random texts, mean {random.mean():.5f}, min {random.min():.5f}")
        low = [(texts()[i], round(float(cosines[i]), 5)) for i in np.flatnonzero(random < DENSE_MIN)]
        print(f"  below {DENSE_MIN}: {low}")
        print("  alone: " + ", ".join(f"{sign!r} {cosine:.5f}" for sign, cosine in zip(SIGNS, signs, strict=True)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
