"""A vocabulary of fewer pieces: which stay, and the tokenizer without the others. Ids stay what they were.

Whatever is asked for, these stay: special and added tokens, ASCII, and single characters of every script that stays, so
that a word without a piece of its own can still be spelt.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from m3_export.checkpoint.added_tokens import texts_with
from m3_export.checkpoint.languages import Characters, is_single, script_of_character
from m3_export.checkpoint.tokenizer import HARD_TEXTS, CheckpointTokenizer
from m3_export.errors import OptionsError, TokenizerMismatchError
from m3_runtime.errors import InputError
from m3_runtime.fewer_pieces import PIECES_NAME, FewerPieces
from m3_runtime.io.formats import STDIN, endings_in_words, format_of
from m3_runtime.io.readers import read_texts
from m3_runtime.pairs import is_blank
from m3_runtime.tokenizer import M3Tokenizer

PIPELINE_NAME = "tokenizer_pipeline.json"
"""tokenizer.json without pieces, which the runtime has from another file."""

_AT_ONCE = 1024
_MOST_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class KeptPieces:
    """Which pieces stay: their ids (K,), ascending, and a description of how they were chosen."""

    ids: NDArray[np.int64]
    chosen_by: str


def check_corpora(paths: Sequence[str]) -> None:
    """Look at the beginning of each corpus, before anything else takes time.

    Raises:
        InputError: one cannot be read, or holds no texts.
    """
    for path in paths:
        if path == STDIN:
            raise InputError("--vocabulary-from reads files, not standard input; write the texts to a file first")
        if Path(path).is_file() and format_of(path) is None:
            raise InputError(
                f"{path!r}: its name does not say how it is read; known endings are {endings_in_words()}. Rename it"
            )
        if all(is_blank(row.text) for row in read_texts(path)):
            raise InputError(f"{path!r} holds no texts, so no piece would be kept; give texts in your languages")


def pieces_of_languages(saved: str, full: M3Tokenizer, languages: Sequence[str], texts: Sequence[str]) -> KeptPieces:
    """Pieces that languages can spell, and those of texts in them; `saved` is the JSON of the full tokenizer.

    Raises:
        OptionsError: they keep every piece.
    """
    characters = Characters.of(languages)
    used = _used(full, iter([list(texts)]))
    return _kept(saved, used, f"languages {', '.join(languages)}", characters.all_scripts, spelt_by=characters.spell)


def pieces_of_corpora(saved: str, full: M3Tokenizer, paths: Sequence[str]) -> KeptPieces:
    """Pieces that the texts of files have; `saved` is the JSON of the full tokenizer.

    Raises:
        InputError: a corpus cannot be read.
        OptionsError: they keep every piece.
    """
    counted = 0

    def parts() -> Iterator[list[str]]:
        nonlocal counted
        for path in paths:
            rows = read_texts(path)
            while part := [row.text for row in islice(rows, _AT_ONCE)]:
                counted += len(part)
                yield part

    used = _used(full, parts())
    vocab = _pieces(saved)
    scripts = {script for number in used if number < len(vocab) for script in _scripts(vocab[number])}
    names = ", ".join(Path(path).name for path in paths)
    return _kept(saved, used, f"texts of {names} ({counted} texts)", frozenset(scripts))


def cut_tokenizer(
    original: CheckpointTokenizer, full: M3Tokenizer, kept: KeptPieces, folder: Path, texts: Sequence[str]
) -> tuple[CheckpointTokenizer, M3Tokenizer]:
    """Write the tokenizer without what is dropped, and show that it does what it should; as files, and as it is read.

    tokenizer.json, the pipeline without pieces, and pieces go into `folder`. Compared are `texts`, `HARD_TEXTS`, and
    texts with every added token.

    Raises:
        TokenizerMismatchError: names the first text with ids that are neither the full tokenizer's, though no piece of
            it was dropped, nor those that the tokenizers package gives for the file.
    """
    spec = json.loads(original.saved)
    vocab = spec["model"]["vocab"]
    pieces = FewerPieces.of([piece for piece, _ in vocab], [score for _, score in vocab], kept.ids.tolist())
    pieces.save(folder / PIECES_NAME)
    # The places of dropped pieces stay, and their scores: an unknown character's penalty follows from the lowest one.
    left = [[name, score] for name, (_, score) in zip(pieces.names, vocab, strict=True)]
    cut = replace(original, saved=_text(spec, left))
    cut.save(folder)
    (folder / PIPELINE_NAME).write_text(_text(spec, []), encoding="utf-8")
    runtime = M3Tokenizer.open(folder / PIPELINE_NAME, full.info, folder / PIECES_NAME)
    _prove(runtime, full, cut.saved, (*HARD_TEXTS, *texts_with(original.added), *texts))
    return cut, runtime


def _text(spec: dict[str, Any], vocab: list[list[Any]]) -> str:
    content = {**spec, "model": {**spec["model"], "vocab": vocab}}
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _prove(runtime: M3Tokenizer, full: M3Tokenizer, saved: str, texts: Sequence[str]) -> None:
    package = Tokenizer.from_str(saved)
    found, before = runtime.encode_batch(texts, _MOST_TOKENS), full.encode_batch(texts, _MOST_TOKENS).ids
    assert found.is_respelled is not None
    for text, ids, whole, lacks in zip(texts, found.ids, before, found.is_respelled.tolist(), strict=True):
        expected = package.encode(text).ids
        if ids.tolist() != expected or (not lacks and expected != whole.tolist()):
            raise TokenizerMismatchError(
                f"the tokenizer of fewer pieces gives other ids for {text[:60]!r}: the tokenizers package "
                f"{expected[:20]}, the runtime {ids.tolist()[:20]}, the whole tokenizer {whole.tolist()[:20]}"
            )


def _used(full: M3Tokenizer, parts: Iterable[list[str]]) -> set[int]:
    used = set[int]()
    for part in parts:
        for ids in full.encode_batch(part, _MOST_TOKENS).ids:
            used.update(ids.tolist())
    return used


def _kept(
    saved: str,
    used: set[int],
    chosen_by: str,
    scripts: frozenset[str],
    spelt_by: Callable[[str], bool] = lambda _: False,
) -> KeptPieces:
    spec: dict[str, Any] = json.loads(saved)
    vocab = _pieces(saved)
    always = {int(token["id"]) for token in spec["added_tokens"]} | {int(spec["model"]["unk_id"])}
    kept = sorted(
        always
        | used
        | {n for n, piece in enumerate(vocab) if spelt_by(piece) or (is_single(piece) and _is_in(piece, scripts))}
    )
    if len(kept) >= len({*range(len(vocab)), *always}):
        raise OptionsError(
            f"the {chosen_by} keep every one of the {len(vocab)} pieces, so nothing would be smaller; leave the option "
            "out, or choose fewer"
        )
    return KeptPieces(np.array(kept, np.int64), chosen_by)


def _pieces(saved: str) -> list[str]:
    return [piece for piece, _ in json.loads(saved)["model"]["vocab"]]


def _scripts(piece: str) -> set[str]:
    return {script for one in piece if (script := script_of_character(one)) is not None}


def _is_in(piece: str, scripts: frozenset[str]) -> bool:
    """Whether every character is ASCII, of one of these scripts, or of none."""
    return all(one.isascii() or script_of_character(one) in (None, *scripts) for one in piece)
