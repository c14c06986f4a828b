"""Tokens that a fine-tune added to XLM-R's vocabulary: what the files say of them, and texts that hold them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

from m3_export.calibration.texts.text import Text
from m3_export.errors import CheckpointError

TOKENIZER_NAME, TOKENIZER_CONFIG_NAME = "tokenizer.json", "tokenizer_config.json"
ADDED_TOKENS_NAME = "added_tokens.json"  # of transformers 4
MOST_PROBED = 16  # probe texts with an added token: enough to see a broken embedding, few beside the 97


def stated_ids(folder: Path) -> Iterator[tuple[str, str, int]]:
    """Every (file, token, id) that the tokenizer's files state; releases of transformers read different ones of them.

    Raises:
        CheckpointError: a file is malformed.
    """
    try:
        for token in _read(folder / TOKENIZER_NAME).get("added_tokens", ()):
            yield TOKENIZER_NAME, token["content"], int(token["id"])
        for index, token in _read(folder / TOKENIZER_CONFIG_NAME).get("added_tokens_decoder", {}).items():
            yield TOKENIZER_CONFIG_NAME, token["content"], int(index)
        for token, index in _read(folder / ADDED_TOKENS_NAME).items():
            yield ADDED_TOKENS_NAME, token, int(index)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{folder.name}: the tokenizer's added tokens cannot be read ({error}); copy the tokenizer's files again"
        ) from error


def texts_with(tokens: Sequence[str]) -> list[str]:
    """Texts in which the rules of added tokens show: blanks beside them, words, cases, repetition.

    >>> texts_with(["NaCl"])[:4]
    ['NaCl', ' NaCl ', 'a NaCl b', 'aNaClb']
    """
    return [
        text
        for token in tokens
        for text in (token, f" {token} ", f"a {token} b", f"a{token}b", f"{token}{token}", f"a\t{token}\n\n{token}.",
                     token.lower(), token.upper())
    ]  # fmt: skip


def probe_texts_with(tokens: Sequence[str], probe: Sequence[Text]) -> tuple[Text, ...]:
    """Probe texts in which an added token stands behind the first word; `MOST_PROBED` at most, over all tokens."""
    step = -(-len(tokens) // MOST_PROBED) or 1
    found = list[Text]()
    for token, text in zip(tokens[::step], cycle(probe)):
        head, _, tail = text.text.partition(" ")
        found.append(replace(text, id=f"added-{len(found)}", kind="added", text=f"{head} {token} {tail}"))
    return tuple(found)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
