"""Why a passage matches a query, as a picture: what each token weighs, and which ColBERT row finds which.

    python examples/explain_match.py BUNDLE "Which database searches vectors?" "Milvus is a vector database" -o m.svg

Upper half: the lexical weight of every token of both texts; a shared token adds the product of its two weights to the
sparse score. Lower half: the dot product of every ColBERT row of the query (down) with every row of the passage
(across). MaxSim is the mean of the framed cells, the largest of each row.
"""

import argparse
import html
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3_runtime import Encoding, M3Encoder
from m3_runtime.cli.ending import run_command
from m3_runtime.cli.interrupt import interruptible
from m3_runtime.errors import InputError
from m3_runtime.io.output import opened_output
from m3_runtime.pairs import is_blank

CELL_W, CELL_H, LEFT, TOP = 46, 24, 110, 220  # TOP: of the matrix, below both strips and the turned words
INK, GREY, WEIGHT, MATCH = "#1b2733", "#5b6875", "#c2571a", "#2c6fbb"


def pieces(encoder: M3Encoder, text: str) -> tuple[list[str], list[int]]:
    """The tokens that have a ColBERT row, all but the first: their text, and their ids."""
    ids = encoder.tokenizer.encode_batch([text], encoder.max_tokens).ids[0].tolist()[1:]
    return [encoder.tokenizer.decode([one]) or "▁" for one in ids[:-1]] + ["</s>"], ids


def label(
    x: float, y: float, text: str, *, fill: str = INK, anchor: str = "start", turn: int = 0, size: int = 13
) -> str:
    """A line of text, turned about its start."""
    turned = f' transform="rotate({turn} {x} {y})"' if turn else ""
    words = html.escape(text)
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"{turned}>{words}</text>'


def cell(x: float, y: float, value: float, most: float, fill: str, *, framed: bool = False) -> list[str]:
    """A value as a box whose colour grows with it."""
    share = max(0.0, value) / most if most else 0.0
    frame = f' stroke="{INK}" stroke-width="2"' if framed else ""
    ink = "#ffffff" if share > 0.6 else INK
    box = f'<rect x="{x}" y="{y}" width="{CELL_W}" height="{CELL_H}"'
    return [
        f'{box} fill="#ffffff"/>',
        f'{box} fill="{fill}" fill-opacity="{share:.2f}"{frame}/>',
        label(x + CELL_W / 2, y + 16, f"{value:.2f}", fill=ink, anchor="middle", size=11),
    ]


def weights_strip(
    y: float, name: str, words: list[str], ids: list[int], weights: dict[str, float], most: float
) -> list[str]:
    """One text's tokens with their weights below them."""
    parts = [label(10, y + 16, name, fill=GREY)]
    for column, (word, one) in enumerate(zip(words[:-1], ids[:-1], strict=True)):
        x = LEFT + column * CELL_W
        parts += [label(x + CELL_W / 2, y - 6, word, anchor="middle", size=11)]
        parts += cell(x, y, weights.get(str(one), 0.0), most, WEIGHT)
    return parts


def picture(encoder: M3Encoder, query: str, passage: str) -> str:
    """The SVG."""
    found = encoder.encode([query, passage], return_sparse=True, return_colbert_vecs=True)
    (asked, asked_ids), (given, given_ids) = pieces(encoder, query), pieces(encoder, passage)
    similarity = found["colbert_vecs"][0] @ found["colbert_vecs"][1].T
    parts = [label(10, 22, scores_line(encoder, found, similarity))]
    strips = zip(("query", "passage"), (asked, given), (asked_ids, given_ids), found["lexical_weights"], strict=True)
    most = max((weight for row in found["lexical_weights"] for weight in row.values()), default=1.0)
    for row, (name, words, ids, weights) in enumerate(strips):
        parts += weights_strip(56 + row * 56, name, words, ids, weights, most)
    parts += [label(LEFT + (n + 0.4) * CELL_W, TOP - 8, word, turn=-40, size=12) for n, word in enumerate(given)]
    for row, word in enumerate(asked):
        y = TOP + row * CELL_H
        parts.append(label(LEFT - 8, y + 16, word, anchor="end", size=12))
        best = int(similarity[row].argmax())
        for column, value in enumerate(similarity[row].tolist()):
            parts += cell(LEFT + column * CELL_W, y, value, float(similarity.max()), MATCH, framed=column == best)
    width = LEFT + CELL_W * max(len(given), len(asked)) + 30
    height = TOP + CELL_H * len(asked) + 20
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label='
    about = html.escape(f"Token weights and ColBERT alignment of '{query}' and '{passage}'", quote=True)
    fonts = "system-ui, -apple-system, Segoe UI, DejaVu Sans, Noto Sans CJK SC, sans-serif"
    back = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    return "\n".join([f'{head}"{about}" font-family="{fonts}">', back, *parts, "</svg>", ""])


def scores_line(encoder: M3Encoder, found: Encoding, similarity: NDArray[np.float32]) -> str:
    """The three scores in words."""
    dense = float(found["dense_vecs"][0] @ found["dense_vecs"][1])
    sparse = encoder.compute_lexical_matching_score(*found["lexical_weights"])
    return f"dense {dense:.3f}   sparse {sparse:.3f}   ColBERT {similarity.max(axis=1).mean():.3f}"


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; gives its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="the bundle's folder")
    parser.add_argument("query", help="what is asked")
    parser.add_argument("passage", help="what is found")
    parser.add_argument("-o", "--output", default="match.svg", metavar="FILE", help="default: match.svg")
    parser.add_argument("--force", action="store_true", help="replace FILE")
    parser.add_argument("--variant", default="auto", metavar="NAME", help="default: the fastest that runs here")
    given = parser.parse_args(words)
    return run_command(
        "explain_match",
        lambda: draw(given),
        memory_remedy="take shorter texts",
        consequence=", nothing was written",
    )


def draw(given: argparse.Namespace) -> None:
    """Encode both texts, write the picture.

    Raises:
        M3Error: what was given is wrong.
    """
    for name in ("query", "passage"):
        if is_blank(getattr(given, name)):
            raise InputError(f"the {name} is empty: there is nothing to explain")
    if Path(given.output).is_file() and not given.force:
        raise InputError(f"{given.output!r} exists; choose another file, or pass --force to replace it")
    open_encoder = partial(M3Encoder.open, given.bundle, variant=given.variant)
    with interruptible(open_encoder) as encoder, opened_output(given.output) as file:
        file.write(picture(encoder, given.query, given.passage).encode())


if __name__ == "__main__":
    sys.exit(main())
