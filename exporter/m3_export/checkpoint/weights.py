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

State = dict[str, torch.Tensor]
ADAPTER_REMEDY = "merge the adapter (LoRA) into the weights first: merge_and_unload, then save_pretrained"
ADAPTER_FILES = ("adapter_config.json", "adapter_model*")
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
    """All tensors of the encoder's files; safetensors are preferred, and either is read without running code.

    Raises:
        CheckpointError: no weights, a missing shard, or a damaged or refused file.
    """
    layouts: tuple[tuple[str, Callable[[Path], State]], ...] = (
        ("model.safetensors", load_file),
        ("pytorch_model.bin", load_pickle),
    )
    for name, load in layouts:
        for path in _shards(folder, name):
            if path.is_file():
                continue
            raise CheckpointError(f"{path.name}: listed in {name}.index.json but missing; copy the checkpoint again")
        if shards := _shards(folder, name):
            return {key: _float32(key, tensor) for path in shards for key, tensor in _load(path, load).items()}
    refuse_shards_of_training(folder)
    raise CheckpointError(
        f"{folder.name} holds neither model.safetensors nor pytorch_model.bin; save the model with save_pretrained"
    )


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


def _shards(folder: Path, name: str) -> list[Path]:
    index = folder / f"{name}.index.json"
    if (folder / name).is_file():
        return [folder / name]
    if not index.is_file():
        return []
    try:
        files = {str(file) for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index.name}: not an index of shards ({error}); copy the checkpoint again") from error
    if outside := sorted(file for file in files if Path(file).name != file):
        raise CheckpointError(f"{index.name}: lists {outside[0]!r}, which is not a file of this folder")
    return [folder / file for file in sorted(files)]


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
