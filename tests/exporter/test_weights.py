"""Encoder weights and config.json: every layout that is read gives the same tensors, everything else is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from m3_export.checkpoint.folder import Checkpoint, encoder_shapes
from m3_export.errors import CheckpointError
from m3_runtime.bundle.manifest import Head

QUERY = "encoder.layer.1.attention.self.query.weight"
WORDS = "embeddings.word_embeddings.weight"
State = dict[str, torch.Tensor]


@pytest.fixture
def folder(tiny_random_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of tiny-random to change; its encoder is one safetensors file."""
    return Path(shutil.copytree(tiny_random_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def state(folder: Path) -> State:
    return {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}


@pytest.fixture
def digest(tiny_random_checkpoint: Path) -> str:
    """What names the unchanged weights."""
    return opened(tiny_random_checkpoint).weights_sha256()


def opened(folder: Path) -> Checkpoint:
    return Checkpoint.open(folder)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        opened(folder)
    return str(caught.value)


def write(folder: Path, state: State) -> None:
    save_file(state, folder / "model.safetensors")


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def shard(folder: Path, state: State, save: Callable[[State, Path], None], name: str) -> list[str]:
    """Write the tensors in three shards with an index, as save_pretrained does."""
    stem, _, ending = name.rpartition(".")
    names = sorted(state)
    files = [f"{stem}-{i + 1:05d}-of-00003.{ending}" for i in range(3)]
    index = {"metadata": {}, "weight_map": {key: files[place % 3] for place, key in enumerate(names)}}
    for file in files:
        save({key: state[key] for key in names if index["weight_map"][key] == file}, folder / file)
    (folder / f"{name}.index.json").write_text(json.dumps(index))
    return files


def save_bin(state: State, path: Path) -> None:
    torch.save(state, path)


def save_legacy_bin(state: State, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


# Layouts that are read


def test_geometry_and_weights_are_those_of_the_files(folder: Path, state: State):
    checkpoint = opened(folder)
    assert checkpoint.encoder.keys() == state.keys()
    assert all(torch.equal(checkpoint.encoder[name], tensor) for name, tensor in state.items())
    geometry = checkpoint.geometry
    assert (geometry.layers, geometry.hidden_size, geometry.ffn_size, geometry.max_tokens) == (2, 64, 128, 512)
    assert geometry.colbert_dim == 24 != geometry.hidden_size
    assert geometry.vocab_size == len(state[WORDS])
    assert encoder_shapes(geometry, 514) == {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda folder, state: shard(folder, state, save_file, "model.safetensors"),
        lambda folder, state: save_bin(state, folder / "pytorch_model.bin"),
        lambda folder, state: save_legacy_bin(state, folder / "pytorch_model.bin"),
        lambda folder, state: shard(folder, state, save_bin, "pytorch_model.bin"),
    ],
    ids=["sharded safetensors", "bin", "bin of before PyTorch 1.6", "sharded bin"],
)
def test_every_layout_gives_the_same_weights(folder: Path, state: State, digest: str, rewrite: Callable):
    (folder / "model.safetensors").unlink()
    rewrite(folder, state)
    assert opened(folder).weights_sha256() == digest


def test_safetensors_are_preferred_to_a_bin_beside_them(folder: Path, state: State, digest: str):
    save_bin({name: tensor + 1 for name, tensor in state.items()}, folder / "pytorch_model.bin")
    assert opened(folder).weights_sha256() == digest


def test_parameters_in_a_bin_are_read_as_plain_values(folder: Path, state: State, digest: str):
    (folder / "model.safetensors").unlink()
    save_bin({name: torch.nn.Parameter(tensor) for name, tensor in state.items()}, folder / "pytorch_model.bin")
    assert opened(folder).weights_sha256() == digest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_widened_and_named_as_its_float32_copy(folder: Path, state: State, dtype: torch.dtype):
    half = {name: tensor.to(dtype) for name, tensor in state.items()}
    write(folder, half)
    checkpoint = opened(folder)
    assert {tensor.dtype for tensor in checkpoint.encoder.values()} == {torch.float32}
    assert torch.equal(checkpoint.encoder[QUERY], half[QUERY].to(torch.float32))
    named = checkpoint.weights_sha256()
    write(folder, {name: tensor.to(torch.float32) for name, tensor in half.items()})
    assert opened(folder).weights_sha256() == named


def test_the_digest_tells_weights_apart(folder: Path, state: State, digest: str):
    state[QUERY][0, 0] += 1e-3
    write(folder, state)
    assert opened(folder).weights_sha256() != digest


@pytest.mark.parametrize("prefix", ["roberta.", "model."])
def test_task_prefixes_poolers_and_buffers_are_put_aside(folder: Path, state: State, digest: str, prefix: str):
    state = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    state |= {
        f"{prefix}pooler.dense.weight": torch.full((64, 64), float("nan")),
        f"{prefix}pooler.dense.bias": torch.zeros(64),
        f"{prefix}embeddings.position_ids": torch.arange(514)[None],
        "lm_head.dense.weight": torch.zeros(64, 64),
    }
    write(folder, state)
    assert opened(folder).weights_sha256() == digest


def test_a_pooler_and_position_ids_without_prefix_are_put_aside(folder: Path, state: State, digest: str):
    state |= {"pooler.dense.weight": torch.zeros(64, 64), "embeddings.position_ids": torch.arange(514)[None]}
    write(folder, state)
    checkpoint = opened(folder)
    assert checkpoint.weights_sha256() == digest
    assert not any("pooler" in name or "position_ids" in name for name in checkpoint.encoder)


def test_dense_only_reads_no_heads(folder: Path):
    (folder / "sparse_linear.pt").write_bytes(b"damaged")
    (folder / "colbert_linear.pt").unlink()
    checkpoint = Checkpoint.open(folder, heads=(Head.DENSE,))
    assert checkpoint.sparse is checkpoint.colbert is None
    assert checkpoint.geometry.colbert_dim is None


def test_files_lists_what_was_read_and_not_what_lies_beside_it(folder: Path):
    for name in ("training_args.bin", "optimizer.pt", "notes.txt", "modeling_m3.py"):
        (folder / name).write_bytes(b"x")
    entries = {entry.path: entry for entry in opened(folder).files()}
    assert {"config.json", "model.safetensors", "sparse_linear.pt", "colbert_linear.pt", "tokenizer.json"} <= set(
        entries
    )
    assert not {"training_args.bin", "optimizer.pt", "notes.txt", "modeling_m3.py"} & set(entries)
    assert all(entry.size_bytes == (folder / path).stat().st_size for path, entry in entries.items())


# Files that are refused


def test_no_weights_at_all_names_both_files(folder: Path):
    (folder / "model.safetensors").unlink()
    message = refusal(folder)
    assert "model.safetensors" in message and "pytorch_model.bin" in message and "save_pretrained" in message


def test_an_adapter_alone_is_refused_with_the_remedy(folder: Path):
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    message = refusal(folder)
    assert "adapter" in message and "merge_and_unload" in message


@pytest.mark.parametrize(("name", "save"), [("model.safetensors", save_file), ("pytorch_model.bin", save_bin)])
def test_a_missing_shard_is_named(folder: Path, state: State, name: str, save: Callable):
    (folder / "model.safetensors").unlink()
    files = shard(folder, state, save, name)
    (folder / files[1]).unlink()
    message = refusal(folder)
    assert message.startswith(f"{files[1]}: listed in {name}.index.json but missing")
    assert "copy the checkpoint again" in message


@pytest.mark.parametrize(("name", "save"), [("model.safetensors", save_file), ("pytorch_model.bin", save_bin)])
def test_shards_hold_what_their_index_says(folder: Path, state: State, name: str, save: Callable):
    (folder / "model.safetensors").unlink()
    shard(folder, state, save, name)
    listed = json.loads((folder / f"{name}.index.json").read_text())["weight_map"]
    one = listed[QUERY]
    inside = {key: state[key] for key, file in listed.items() if file == one}
    save({key: tensor for key, tensor in inside.items() if key != QUERY}, folder / one)
    assert f"{one}: lacks {QUERY!r}, which {name}.index.json says it holds" in refusal(folder)
    save({**inside, QUERY: torch.zeros(32, 32)}, folder / one)  # of a model of another size
    assert f"{QUERY} has shape (32, 32), config.json says (64, 64)" in refusal(folder)
    elsewhere = next(key for key, file in listed.items() if file != one)
    save({**inside, elsewhere: state[elsewhere] + 1}, folder / one)
    assert f"holds {elsewhere!r}, as another shard does" in refusal(folder)


@pytest.mark.parametrize(("name", "save"), [("model.safetensors", save_file), ("pytorch_model.bin", save_bin)])
def test_weights_that_are_there_twice_are_refused(folder: Path, state: State, digest: str, name: str, save: Callable):
    (folder / "model.safetensors").unlink()
    save(state, folder / name)
    files = shard(folder, state, save, name)
    message = refusal(folder)
    assert f"holds its weights twice: {name}, and {files[0]}" in message and "out of date" in message
    for file in files:
        (folder / file).unlink()
    assert opened(folder).weights_sha256() == digest, "an index without its shards is a leftover"
    assert f"{name}.index.json" not in {entry.path for entry in opened(folder).files()}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_shards_without_their_index_are_named(folder: Path, state: State, name: str):
    (folder / "model.safetensors").unlink()
    files = shard(folder, state, save_file if name == "model.safetensors" else save_bin, name)
    (folder / f"{name}.index.json").unlink()
    assert f"holds {files[0]} but no index" in refusal(folder)


def test_files_lists_the_shards_that_were_read(folder: Path, state: State):
    save_file(state, folder / "model.fp16.safetensors")
    assert "model.fp16.safetensors" not in {entry.path for entry in opened(folder).files()}
    (folder / "model.safetensors").unlink()
    files = shard(folder, state, save_file, "model.safetensors")
    listed = {entry.path for entry in opened(folder).files()}
    assert {*files, "model.safetensors.index.json"} <= listed and "model.fp16.safetensors" not in listed


def test_an_index_that_is_a_git_lfs_pointer_is_named(folder: Path):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "model.safetensors.index.json: a Git-LFS pointer" in refusal(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "sparse_linear.pt", "config.json", "tokenizer.json"])
def test_links_to_what_is_not_there_are_named(folder: Path, name: str):
    """A copied cache may hold the links alone."""
    (folder / name).unlink()
    (folder / name).symlink_to("../../blobs/abc")
    message = refusal(folder)
    assert message.startswith(f"{name}: a link to '../../blobs/abc', which is not there") and "cp -rL" in message


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"weight_map": {}}',
        '{"weight_map": []}',
        '{"weight_map": 3}',
        '{"weight_map":',
    ],
)
def test_an_index_that_is_none_is_refused(folder: Path, index: str):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    assert refusal(folder).startswith("model.safetensors.index.json: not an index of shards")


@pytest.mark.parametrize("path", ["../elsewhere.safetensors", "/elsewhere.safetensors", "sub/model.safetensors"])
def test_an_index_may_not_point_elsewhere(folder: Path, path: str):
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {WORDS: path}}))
    message = refusal(folder)
    assert message.startswith("model.safetensors.index.json: lists ") and path in message


@pytest.mark.parametrize("keep", [0, 4, 100, 20_000])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_cut_off_weights_are_refused(folder: Path, state: State, name: str, keep: int):
    (folder / "model.safetensors").unlink()
    (save_file if name == "model.safetensors" else save_bin)(state, folder / name)
    (folder / name).write_bytes((folder / name).read_bytes()[:keep])
    message = refusal(folder)
    assert message.startswith(f"{name}: damaged or refused")
    assert "copy the checkpoint again" in message


class WritesMarker:
    """Unpickled by pickle itself, this writes a file: the proof that code has run."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.marker, "ran")


def test_code_in_pytorch_model_bin_is_refused_and_never_runs(folder: Path, state: State, tmp_path: Path):
    marker = tmp_path / "marker"
    (folder / "model.safetensors").unlink()
    torch.save({**state, "extra": WritesMarker(marker)}, folder / "pytorch_model.bin")
    assert refusal(folder).startswith("pytorch_model.bin: damaged or refused")
    assert not marker.exists()


def test_a_bin_that_holds_no_state_dict_is_refused(folder: Path, state: State):
    (folder / "model.safetensors").unlink()
    torch.save(list(state.values()), folder / "pytorch_model.bin")
    assert refusal(folder).startswith("pytorch_model.bin: holds a list; expected tensors by name")


# Tensors that are refused


def test_missing_tensors_are_counted_and_named(folder: Path, state: State):
    del state[QUERY], state[WORDS]
    write(folder, state)
    message = refusal(folder)
    assert f"2 encoder tensors are missing, the first is {WORDS!r}" in message
    assert "config.json" in message


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight",
        "encoder.layer.0.attention.self.query.lora_B.default.weight",
    ],
)
def test_adapter_tensors_are_refused_with_the_remedy(folder: Path, state: State, name: str):
    write(folder, {**state, name: torch.zeros(8, 64)})
    message = refusal(folder)
    assert name in message and "merge_and_unload" in message


def test_adapter_tensors_are_what_is_named_where_base_weights_are_renamed_too(folder: Path, state: State):
    weight = state.pop(QUERY)
    base = QUERY.removesuffix("weight")
    state |= {f"{base}base_layer.weight": weight, f"{base}lora_A.default.weight": torch.zeros(8, 64)}
    write(folder, state)
    assert "merge_and_unload" in refusal(folder)


def test_a_layer_too_many_is_refused(folder: Path):
    change_config(folder, num_hidden_layers=1)
    message = refusal(folder)
    assert "unexpected encoder tensor 'encoder.layer.1." in message and "config.json" in message


@pytest.mark.parametrize(
    ("name", "shape"),
    [(QUERY, (64, 32)), (WORDS, (559, 64)), ("embeddings.LayerNorm.bias", (1, 64))],
)
def test_wrong_shapes_name_the_tensor_and_both_shapes(folder: Path, state: State, name: str, shape: tuple):
    expected = tuple(state[name].shape)
    write(folder, {**state, name: torch.zeros(shape)})
    message = refusal(folder)
    assert f"{name} has shape {shape}, config.json says {expected}" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_values_that_are_no_numbers_are_refused(folder: Path, state: State, dtype: torch.dtype, value: float):
    state[QUERY] = state[QUERY].to(dtype)
    state[QUERY][3, 5] = value
    write(folder, state)
    assert f"{QUERY} holds NaN or infinity" in refusal(folder)


def test_two_infinities_of_opposite_sign_do_not_cancel(folder: Path, state: State):
    state[QUERY][0, 0], state[QUERY][0, 1] = float("inf"), float("-inf")
    write(folder, state)
    assert f"{QUERY} holds NaN or infinity" in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool], ids=str)
def test_quantized_weights_are_refused(folder: Path, state: State, dtype: torch.dtype):
    write(folder, {**state, QUERY: torch.ones(64, 64, dtype=dtype)})
    message = refusal(folder)
    assert f"{QUERY} is {dtype}" in message and "float weights" in message


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn], ids=str)
def test_other_float_types_are_refused_with_the_tensors_name(folder: Path, state: State, dtype: torch.dtype):
    write(folder, {**state, QUERY: state[QUERY].to(dtype)})
    message = refusal(folder)
    assert f"{QUERY!r} is {dtype}" in message and "float32, float16 or bfloat16" in message


# config.json


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "bert"),
        ("model_type", ...),
        ("hidden_act", "relu"),
        ("position_embedding_type", "relative_key"),
        ("type_vocab_size", 2),
    ],
)
def test_other_architectures_are_refused(folder: Path, key: str, value: object):
    change_config(folder, **{key: value})
    message = refusal(folder)
    assert message.startswith(f"config.json: {key} is {None if value is ... else value!r}")
    assert "BGE-M3 checkpoints" in message


SIZES = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "vocab_size")


@pytest.mark.parametrize("value", [..., None, 0, -1, "64", 64.0, True], ids=str)
@pytest.mark.parametrize("key", [*SIZES, "max_position_embeddings"])
def test_sizes_must_be_positive_integers(folder: Path, key: str, value: object):
    change_config(folder, **{key: value})
    message = refusal(folder)
    assert message.startswith(f"config.json: {key} is ") and "positive integer" in message


@pytest.mark.parametrize("value", [None, "1", -1, True, 511, 10**9])
def test_pad_token_ids_that_cannot_be_are_refused(folder: Path, value: object):
    change_config(folder, pad_token_id=value)
    assert refusal(folder).startswith(f"config.json: pad_token_id is {value!r}")


@pytest.mark.parametrize("value", [None, "1e-5", 0, -1e-5, 2.0])
def test_layer_norm_epsilons_that_cannot_be_are_refused(folder: Path, value: object):
    change_config(folder, layer_norm_eps=value)
    assert refusal(folder).startswith(f"config.json: layer_norm_eps is {value!r}")


def test_heads_that_do_not_divide_the_hidden_size_are_refused(folder: Path):
    change_config(folder, num_attention_heads=5)
    assert refusal(folder).startswith("config.json: hidden_size is not a multiple")
    change_config(folder, num_hidden_layers=10**12)
    assert refusal(folder).startswith("config.json: num_hidden_layers is 1000000000000; expected at most 1000")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"xlm-roberta"', b"\xff\xfe"])
def test_a_config_that_is_no_json_object_is_refused(folder: Path, text: str | bytes):
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert refusal(folder).startswith("config.json: ")
