"""XLM-R's text normalisation (nmt_nfkc), taken from the sentencepiece package.

A SentencePiece model carries its normalisation as a "precompiled charsmap": a double-array trie over
UTF-8 bytes whose leaves point into a pool of replacement texts. sentencepiece writes its current nmt_nfkc
table into every model it trains, so a toy model trained in memory yields it.

Two honest differences from the table inside XLM-R's own model of 2019. It knows newer Unicode: 566 rules
more, nearly all for letters assigned since. And it keeps U+200D (zero width joiner), which XLM-R's table
turns into a space; that one occurs in real text (emoji, Indic scripts), so the rule is put back into the
trie here. Doing it inside the charsmap, not as a second normaliser in front of it, matters: transformers
5 rebuilds this tokenizer from the charsmap alone.
"""

import io
import struct

import numpy as np
from numpy.typing import NDArray

from m3_models.optional_packages import import_package

_JOINER = "\u200d"
_SPACE_LIKE = "\u200b"
"""Shares its first two bytes with the joiner, and both tables map it to a space."""

# A unit of a darts-clone double array: label in bits 0-7 (bit 31 marks a value), 8 has-leaf, 9 offset
# scale, 10-30 offset.
_LABEL_MASK = 0x8000_00FF
_HAS_LEAF_AND_LABEL = 0x1FF
_UNUSED = 0x8000_0000
_BLOCK = 256

_Units = NDArray[np.uint32]


def xlmr_charsmap() -> bytes:
    """Return the charsmap: sentencepiece's nmt_nfkc with U+200D → space.

    Raises:
        MissingPackageError: sentencepiece is not installed.
    """
    return with_joiner_as_space(sentencepiece_charsmap())


def sentencepiece_charsmap() -> bytes:
    """Return nmt_nfkc as sentencepiece has it."""
    sentencepiece = import_package("sentencepiece")
    proto = import_package("sentencepiece.sentencepiece_model_pb2")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f g h i j k l m n"] * 2),
        model_writer=model,
        model_type="unigram",
        vocab_size=20,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        minloglevel=2,
    )
    parsed = proto.ModelProto.FromString(model.getvalue())
    return bytes(parsed.normalizer_spec.precompiled_charsmap)


def with_joiner_as_space(charsmap: bytes) -> bytes:
    """Return the charsmap with U+200D mapped to what U+200B is mapped to; unchanged if it has a rule.

    The trie's slot for the new byte is taken by an unrelated node, so all children of their common prefix
    move to a new block at the end of the array (their old places are left, unreachable), where the new
    child finds its slot free.
    """
    (trie_bytes,) = struct.unpack_from("<I", charsmap)
    units: _Units = np.frombuffer(charsmap, "<u4", trie_bytes // 4, 4).astype(np.uint32)
    prefix, label = _JOINER.encode()[:2], _JOINER.encode()[2]
    parent = _walk(units, prefix)
    if _child(units, parent, label) is None:
        units = _move_children(units, parent)
        sibling = _walk(units, _SPACE_LIKE.encode())
        leaf = sibling ^ _offset(units[sibling])
        slot = parent ^ _offset(units[parent]) ^ label
        units[slot] = _with_offset((1 << 8) | label, slot ^ leaf)
    trie = units.astype("<u4").tobytes()
    return struct.pack("<I", len(trie)) + trie + charsmap[4 + trie_bytes :]


def _move_children(units: _Units, parent: int) -> _Units:
    """Give the parent's children a fresh block of 256 units of their own."""
    start = -(-len(units) // _BLOCK) * _BLOCK
    grown = np.full(start + _BLOCK, _UNUSED, np.uint32)
    grown[: len(units)] = units
    for label in range(_BLOCK):
        old = _child(units, parent, label)
        if old is not None:
            new = start ^ label
            grown[new] = _with_offset(int(units[old]) & _HAS_LEAF_AND_LABEL, new ^ old ^ _offset(units[old]))
    grown[parent] = _with_offset(int(units[parent]) & _HAS_LEAF_AND_LABEL, parent ^ start)
    return grown


def _walk(units: _Units, key: bytes) -> int:
    node = 0
    for label in key:
        child = _child(units, node, label)
        if child is None:
            raise ValueError(f"this charsmap has no rule under {key!r}: not sentencepiece's nmt_nfkc table")
        node = child
    return node


def _child(units: _Units, node: int, label: int) -> int | None:
    index = node ^ _offset(units[node]) ^ label
    return index if index < len(units) and int(units[index]) & _LABEL_MASK == label else None


def _offset(unit: np.uint32) -> int:
    value = int(unit)
    return (value >> 10) << ((value & 0x200) >> 6)


def _with_offset(label_and_leaf: int, offset: int) -> int:
    return label_and_leaf | offset << 10
