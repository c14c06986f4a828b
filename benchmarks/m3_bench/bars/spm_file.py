"""A SentencePiece model file made of a `tokenizer.json`: bge-m3-lite reads no other form of XLM-R's vocabulary.

The file is a protocol buffer (sentencepiece_model.proto): field 1, repeated, a piece {1: text, 2: score, 3: type};
field 2 the trainer {3: model type, 1 is unigram}; field 3 the normalizer {1: name, 2: charsmap}.
"""

import base64
import json
import struct
from pathlib import Path

from m3_bench.errors import BenchError

_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # XLM-R's first ids
_MASK = "<mask>"  # its last id, which is none of SentencePiece's
_NORMAL, _UNKNOWN, _CONTROL = 1, 2, 3
_LENGTH_DELIMITED = 2


def spm_bytes(tokenizer_json: Path) -> bytes:
    """The model file of an XLM-R `tokenizer.json` (Unigram).

    Raises:
        BenchError: it is no XLM-R tokenizer.
    """
    data = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    vocabulary = data["model"].get("vocab", [])
    texts = tuple(text for text, _ in vocabulary) if data["model"].get("type") == "Unigram" else ()
    if texts[: len(_SPECIALS)] != _SPECIALS or texts[-1:] != (_MASK,):
        raise BenchError(f"{str(tokenizer_json)!r} is not XLM-R's: expected Unigram, {_SPECIALS} first, {_MASK!r} last")
    pieces = [_piece("<unk>", 0.0, _UNKNOWN), _piece("<s>", 0.0, _CONTROL), _piece("</s>", 0.0, _CONTROL)]
    pieces += [_piece(text, score, _NORMAL) for text, score in vocabulary[len(_SPECIALS) : -1]]
    trainer = _field(2, _number(3, 1))
    normalizer = _field(3, _field(1, b"nmt_nfkc") + _field(2, _charsmap(data.get("normalizer"))))
    return b"".join(pieces) + trainer + normalizer


def _charsmap(normalizer: object) -> bytes:
    """The precompiled charsmap of a normalizer, or of the first step that has one; empty without."""
    if not isinstance(normalizer, dict):
        return b""
    steps = normalizer.get("normalizers", [normalizer])
    return next((base64.b64decode(s["precompiled_charsmap"]) for s in steps if "precompiled_charsmap" in s), b"")


def _piece(text: str, score: float, kind: int) -> bytes:
    return _field(1, _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind))


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(payload)) + payload


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the low ones first; the eighth says that more follow.

    >>> _varint(300).hex()
    'ac02'
    """
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
