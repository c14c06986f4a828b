"""Encoder weights from safetensors or PyTorch files, whole or sharded, as float32."""

import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from m3_export.errors import CheckpointError
from m3_runtime.bundle.writer import is_bundle

State = dict[str, torch.Tensor]
_SAFETENSORS, _PICKLED = "model.safetensors", "pytorch_model.bin"
ADAPTER_REMEDY = "merge the adapter (LoRA) into the weights first: merge_and_unload, then save_pretrained"
ADAPTER_FILES = ("adapter_config.json", "adapter_model*")
WEIGHT_PATTERNS = (
    "model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
# What distributed training leaves; both tools come with what wrote them.
SHARDS_OF_TRAINING = {
    "zero_to_fp32.py": "python zero_to_fp32.py . OUT --safe_serialization",
    "global_step*": "python zero_to_fp32.py . OUT --safe_serialization",
    "*_model_states.pt": "python zero_to_fp32.py . OUT --safe_serialization",
    "pytorch_model_fsdp_*": "accelerate merge-weights pytorch_model_fsdp_0 OUT",
}
LFS_POINTER = b"version https://git-lfs"
# What torch.load makes of a damaged file: its unpickler passes on whatever the bytes provoke.
UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
    ArithmeticError, AssertionError, ImportError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


def read_encoder_weights(folder: Path) -> State:
    """All tensors of the encoder's files, read without running code.

    Raises:
        CheckpointError: no weights, a missing shard, a damaged or refused file, or shards that hold something else than
            their index says.
    """
    name, files = _weights(folder)
    state: State = {}
    for path, listed in files.items():
        tensors = _load(path, load_file if name == _SAFETENSORS else load_pickle)
        if lacking := sorted(listed - tensors.keys()):
            raise CheckpointError(
                f"{path.name}: lacks {lacking[0]!r}, which {name}.index.json says it holds; copy the checkpoint again"
            )
        if twice := sorted(state.keys() & tensors.keys()):
            raise CheckpointError(
                f"{path.name}: holds {twice[0]!r}, as another shard does; copy all shards of one checkpoint again"
            )
        state |= {key: _float32(key, tensor) for key, tensor in tensors.items()}
    return state


def weight_files(folder: Path) -> list[Path]:
    """The files that `read_encoder_weights` reads, an index among them.

    Raises:
        CheckpointError: no weights, a missing shard, or an index that is none.
    """
    name, files = _weights(folder)
    index = folder / f"{name}.index.json"
    return [*files, *([] if folder / name in files else [index])]


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder with an adapter, whatever lies beside it: its weights may be the base model's.

    Raises:
        CheckpointError: there is one.
    """
    if found := sorted(path.name for pattern in ADAPTER_FILES for path in folder.glob(pattern)):
        raise CheckpointError(
            f"{folder.name} holds {found[0]}, an adapter beside or instead of the model's weights; {ADAPTER_REMEDY}. "
            "If they are merged already, move adapter_* elsewhere"
        )


def refuse_shards_of_training(folder: Path) -> None:
    """Refuse a folder that has what DeepSpeed or FSDP saved and no plain weights.

    Raises:
        CheckpointError: it has.
    """
    for pattern, remedy in SHARDS_OF_TRAINING.items():
        if found := sorted(folder.glob(pattern)):
            raise CheckpointError(
                f"{folder.name} holds {found[0].name}, which distributed training saved, and no plain weights; write "
                f"them with: {remedy}; then copy config.json, the tokenizer's files and both heads there"
            )


def refuse_pointers(paths: Iterable[Path]) -> None:
    """Refuse Git-LFS pointers, which a parser would call damaged.

    Raises:
        CheckpointError: names the first one.
    """
    for path in paths:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise CheckpointError(f"{path.name}: a Git-LFS pointer, not the file itself; fetch it with: git lfs pull")


def reason_of(error: Exception) -> str:
    """Why a file could not be read, in a line; torch's own advice, to load it with code allowed, is left out."""
    reason = str(error).strip().split("\n")[0][:200]
    is_advice = "weights_only" in reason or "torch.load" in reason or reason.startswith("Weights only load failed")
    return "it holds code or objects, or is damaged" if is_advice else reason or "it is empty or cut off"


def _weights(folder: Path) -> tuple[str, dict[Path, set[str]]]:
    """The layout, and its files with the tensors that an index lists for each; safetensors are preferred."""
    for name in (_SAFETENSORS, _PICKLED):
        whole, index = folder / name, folder / f"{name}.index.json"
        if whole.is_file() and index.is_file() and (shards := _shards(whole)):
            raise CheckpointError(
                f"{folder.name} holds its weights twice: {name}, and {shards[0].name} with {index.name}; "
                "move the one that is out of date elsewhere"
            )
        if whole.is_file():
            return name, {whole: set()}
        if index.is_file():
            return name, _listed(index)
    refuse_shards_of_training(folder)
    if shards := _shards(folder / _SAFETENSORS) or _shards(folder / _PICKLED):
        raise CheckpointError(
            f"{folder.name} holds {shards[0].name} but no index, which lists what is in each shard; "
            "copy the checkpoint again"
        )
    if is_bundle(folder):
        raise CheckpointError(f"{folder.name} is a bundle; expected the checkpoint that it was made from")
    raise CheckpointError(
        f"{folder.name} holds neither {_SAFETENSORS} nor {_PICKLED}; save the model with save_pretrained"
    )


def _shards(whole: Path) -> list[Path]:
    return sorted(whole.parent.glob(f"{whole.stem}-*-of-*{whole.suffix}"))


def _listed(index: Path) -> dict[Path, set[str]]:
    """The shards that an index names, and which tensors it says are in each."""
    refuse_pointers([index])
    files: dict[str, set[str]] = {}
    try:
        for tensor, file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
            files.setdefault(str(file), set()).add(tensor)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index.name}: not an index of shards ({error}); copy the checkpoint again") from error
    if not files:
        raise CheckpointError(f"{index.name}: not an index of shards (it lists none); copy the checkpoint again")
    if outside := sorted(file for file in files if Path(file).name != file):
        raise CheckpointError(f"{index.name}: lists {outside[0]!r}, which is not a file of this folder")
    if missing := sorted(file for file in files if not (index.parent / file).is_file()):
        raise CheckpointError(
            f"{missing[0]}: listed in {index.name} but missing ({len(missing)} of {len(files)} shards are); "
            "copy the checkpoint again"
        )
    return {index.parent / file: files[file] for file in sorted(files)}


def _load(path: Path, load: Callable[[Path], State]) -> State:
    try:
        state = load(path)
    except (SafetensorError, *UNREADABLE) as error:
        raise CheckpointError(
            f"{path.name}: damaged or refused ({reason_of(error)}); copy the checkpoint again"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path.name}: holds a {type(state).__name__}; expected tensors by name (a state_dict)")
    return {str(key): tensor.detach() for key, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def load_pickle(path: Path) -> Any:
    """What torch.save wrote, read as data and never as code; raises one of `UNREADABLE`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tensors are good, or we say what is not
        # files of before PyTorch 1.6 are no zip archives and cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _float32(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():  # position-id buffers of old releases
        return tensor
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise CheckpointError(f"tensor {name!r} is {tensor.dtype}; save the checkpoint in float32, float16 or bfloat16")
    return tensor.to(torch.float32)
