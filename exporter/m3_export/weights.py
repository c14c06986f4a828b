"""Encoder weights from safetensors or PyTorch files, whole or sharded, as float32."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from m3_export.errors import CheckpointError

State = dict[str, torch.Tensor]


def read_encoder_weights(folder: Path) -> State:
    """All tensors of the encoder's files; safetensors are preferred, and either is read without running code.

    Raises:
        CheckpointError: no weights, a missing shard, or a damaged or refused file.
    """
    layouts: tuple[tuple[str, Callable[[Path], State]], ...] = (
        ("model.safetensors", load_file),
        ("pytorch_model.bin", _load_bin),
    )
    for name, load in layouts:
        for path in _shards(folder, name):
            if path.is_file():
                continue
            raise CheckpointError(f"{path.name}: listed in {name}.index.json but not there; copy the checkpoint again")
        if shards := _shards(folder, name):
            return {key: _float32(key, tensor) for path in shards for key, tensor in _load(path, load).items()}
    raise CheckpointError(f"{folder.name} holds neither model.safetensors nor pytorch_model.bin")


def _shards(folder: Path, name: str) -> list[Path]:
    index = folder / f"{name}.index.json"
    if (folder / name).is_file():
        return [folder / name]
    if not index.is_file():
        return []
    try:
        return sorted({folder / str(file) for file in json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index.name}: not an index of shards ({error})") from error


def _load(path: Path, load: Callable[[Path], State]) -> State:
    try:
        state = load(path)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise CheckpointError(f"{path.name}: damaged or refused ({reason}); copy the checkpoint again") from error
    return {key: tensor for key, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def _load_bin(path: Path) -> State:
    state: State = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return state


def _float32(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():  # position-id buffers of old releases
        return tensor
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise CheckpointError(f"tensor {name!r} is {tensor.dtype}; expected float32, float16 or bfloat16")
    return tensor.to(torch.float32)
