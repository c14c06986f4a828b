"""The two heads: what is read, and what is refused before anything of it runs."""

import io
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3_export.checkpoint.heads import read_heads
from m3_export.errors import CheckpointError

HIDDEN = 6
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FILES = ("sparse_linear.pt", "colbert_linear.pt")


class WritesMarker:
    """Unpickled by pickle itself, this writes a file: the proof that code has run."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.marker, "ran")


def head(rows: int, columns: int = HIDDEN, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, columns, generator=generator)
    return OrderedDict(weight=weight.to(dtype), bias=torch.randn(rows, generator=generator).to(dtype))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two good heads, C = 4."""
    torch.save(head(1), tmp_path / "sparse_linear.pt")
    torch.save(head(4), tmp_path / "colbert_linear.pt")
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_heads(folder, HIDDEN)
    return str(caught.value)


@pytest.mark.parametrize("width", [1, 4, HIDDEN, 9])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_heads_are_read_as_float32_and_the_width_is_the_tensors_own(folder: Path, dtype: torch.dtype, width: int):
    torch.save(head(1, dtype=dtype), folder / "sparse_linear.pt")
    torch.save(head(width, dtype=dtype), folder / "colbert_linear.pt")
    sparse, colbert = read_heads(folder, HIDDEN)
    assert {t.dtype for h in (sparse, colbert) for t in (h.weight, h.bias)} == {torch.float32}
    assert sparse.weight.shape == (1, HIDDEN) and sparse.bias.shape == (1,)
    assert colbert.weight.shape == (width, HIDDEN) and colbert.bias.shape == (width,)
    assert torch.equal(sparse.weight, head(1, dtype=dtype)["weight"].to(torch.float32))
    assert torch.equal(colbert.bias, head(width, dtype=dtype)["bias"].to(torch.float32))


def test_parameters_are_read_as_plain_values(folder: Path):
    layer = torch.nn.Linear(HIDDEN, 1)
    torch.save(dict(layer.named_parameters()), folder / "sparse_linear.pt")
    sparse, _ = read_heads(folder, HIDDEN)
    assert sparse.weight.numpy().shape == (1, HIDDEN)  # numpy() fails on a tensor that wants a gradient
    assert torch.equal(sparse.weight, layer.weight)


def test_files_of_before_pytorch_1_6_are_read(folder: Path):
    torch.save(head(1), folder / "sparse_linear.pt", _use_new_zipfile_serialization=False)
    sparse, _ = read_heads(folder, HIDDEN)
    assert torch.equal(sparse.weight, head(1)["weight"])


@pytest.mark.parametrize("missing", [FILES[:1], FILES[1:], FILES], ids="+".join)
def test_missing_heads_are_named_with_both_remedies(folder: Path, missing: tuple[str, ...]):
    for name in missing:
        (folder / name).unlink()
    message = refusal(folder)
    assert [name for name in FILES if name in message] == list(missing)
    assert "--unified_finetuning" in message
    assert "--heads dense" in message


@pytest.mark.parametrize(
    ("file", "state"),
    [
        ("sparse_linear.pt", head(2)),
        ("sparse_linear.pt", head(1, HIDDEN + 1)),
        ("colbert_linear.pt", head(4, HIDDEN - 1)),
        ("colbert_linear.pt", {"weight": head(4)["weight"].T.contiguous(), "bias": head(4)["bias"]}),
        ("colbert_linear.pt", {"weight": head(4)["weight"], "bias": head(5)["bias"]}),
    ],
    ids=["two rows", "wider", "narrower", "transposed", "bias of another"],
)
def test_wrong_shapes_are_refused_with_file_and_both_shapes(folder: Path, file: str, state: dict):
    torch.save(state, folder / file)
    message = refusal(folder)
    assert message.startswith(file)
    assert str(tuple(state["weight"].shape)) in message
    assert f"hidden_size {HIDDEN}" in message
    assert "expected" in message


@pytest.mark.parametrize(
    "state",
    [
        {"weight": torch.zeros(HIDDEN), "bias": torch.zeros(1)},
        {"weight": torch.zeros(1, 1, HIDDEN), "bias": torch.zeros(1)},
        {"weight": torch.zeros(1, HIDDEN), "bias": torch.tensor(0.0)},
        {"weight": torch.zeros(0, HIDDEN), "bias": torch.zeros(0)},
    ],
    ids=["flat weight", "deep weight", "scalar bias", "no rows"],
)
@pytest.mark.parametrize("file", FILES)
def test_wrong_ranks_and_empty_tensors_are_refused(folder: Path, file: str, state: dict):
    torch.save(state, folder / file)
    assert refusal(folder).startswith(f"{file}: ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_that_are_no_numbers_are_refused(folder: Path, dtype: torch.dtype, name: str, value: float):
    state = head(4, dtype=dtype)
    state[name].view(-1)[-1] = value
    torch.save(state, folder / "colbert_linear.pt")
    assert refusal(folder).startswith(f"colbert_linear.pt: {name} holds NaN or infinity")


@pytest.mark.parametrize(
    ("state", "names"),
    [
        ({**head(1), "scale": torch.ones(1)}, "scale"),
        ({"weight": torch.zeros(1, HIDDEN)}, "['weight']"),
        ({"linear.weight": torch.zeros(1, HIDDEN), "linear.bias": torch.zeros(1)}, "linear.weight"),
        ({0: torch.zeros(1, HIDDEN), "bias": torch.zeros(1)}, "0"),
        (torch.zeros(1, HIDDEN), "Tensor"),
        ([torch.zeros(1, HIDDEN), torch.zeros(1)], "list"),
        ({}, "[]"),
    ],
    ids=["extra", "no bias", "prefixed", "number as a name", "bare tensor", "list", "nothing"],
)
def test_anything_but_weight_and_bias_is_refused_and_named(folder: Path, state: object, names: str):
    torch.save(state, folder / "sparse_linear.pt")
    message = refusal(folder)
    assert message.startswith("sparse_linear.pt: expected exactly 'weight' and 'bias'")
    assert names in message


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (torch.zeros(1, HIDDEN, dtype=torch.int64), "torch.int64"),
        (torch.zeros(1, HIDDEN, dtype=torch.float64), "torch.float64"),
        (torch.zeros(1, HIDDEN, dtype=torch.bool), "torch.bool"),
        ([[0.0] * HIDDEN], "list"),
        (1.0, "float"),
        (torch.zeros(1, HIDDEN).to_sparse(), "sparse"),
        (torch.zeros(1, HIDDEN, device="meta"), "meta"),
    ],
    ids=["int64", "float64", "bool", "list", "number", "sparse", "meta"],
)
def test_other_dtypes_and_things_are_refused(folder: Path, value: object, kind: str):
    torch.save({"weight": value, "bias": torch.zeros(1)}, folder / "sparse_linear.pt")
    message = refusal(folder)
    assert message.startswith("sparse_linear.pt: weight is ")
    assert kind in message


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("file", FILES)
def test_code_in_a_pickle_is_refused_and_never_runs(folder: Path, tmp_path: Path, file: str, zipped: bool):
    marker = tmp_path / "marker"
    state = {"weight": WritesMarker(marker), "bias": torch.zeros(1)}
    torch.save(state, folder / file, _use_new_zipfile_serialization=zipped)
    message = refusal(folder)
    assert message.startswith(f"{file}: not a plain file of tensors, refused")
    assert not marker.exists()
    torch.load(folder / file, weights_only=False)
    assert marker.exists(), "the file must be one that does run code when it is allowed to"


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_cut_off_files_are_refused_with_their_name(folder: Path, file: str, share: float):
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: int(len(whole) * share)])
    message = refusal(folder)
    assert message.startswith(f"{file}: not a plain file of tensors")
    assert "--unified_finetuning" in message


def test_a_zip_of_something_else_is_refused(folder: Path):
    with zipfile.ZipFile(folder / "sparse_linear.pt", "w") as archive:
        archive.writestr("readme.txt", "no tensors here")
    assert refusal(folder).startswith("sparse_linear.pt: not a plain file of tensors")


def _bytes_of(state: object, *, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


LEGACY = _bytes_of(head(1), zipped=False)
ZIPPED = _bytes_of(head(1), zipped=True)


# PyTorch remarks on the pickle protocol of what it is about to refuse
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda tail: b"\x80\x02" + tail)))
@settings(max_examples=150)
def test_arbitrary_bytes_give_our_error_and_no_other(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    folder = tmp_path_factory.mktemp("heads")
    (folder / "sparse_linear.pt").write_bytes(content)
    torch.save(head(4), folder / "colbert_linear.pt")
    assert refusal(folder).startswith("sparse_linear.pt: ")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@given(st.sampled_from([LEGACY, ZIPPED]), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
@settings(max_examples=150)
def test_a_flipped_byte_gives_our_error_or_finite_tensors(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, place: float, flip: int
):
    folder = tmp_path_factory.mktemp("heads")
    damaged = bytearray(whole)
    damaged[int(place * len(whole))] ^= flip
    (folder / "sparse_linear.pt").write_bytes(damaged)
    torch.save(head(4), folder / "colbert_linear.pt")
    try:
        sparse, _ = read_heads(folder, HIDDEN)
    except CheckpointError as error:
        assert str(error).startswith("sparse_linear.pt: ")
    else:
        assert sparse.weight.shape == (1, HIDDEN) and torch.isfinite(sparse.weight).all()
