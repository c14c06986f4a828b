"""How the dense vector is pooled: "flag", "classifier", what two libraries write, or BGE-M3's default."""

import json
import pickletools
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m3_export.checkpoint.weights import refuse_pointers
from m3_export.errors import CheckpointError
from m3_runtime.bundle.manifest import Pooling

# names of sentence-transformers: the flags of older releases, and the one word of newer ones
ST_NAMES = {
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_lasttoken": Pooling.LAST_TOKEN,
    "cls": Pooling.CLS,
    "mean": Pooling.MEAN,
    "lasttoken": Pooling.LAST_TOKEN,
}
ST_MODULES = {"Transformer", "Pooling", "Normalize"}
ST_FILES = "sentence-transformers files"
TRAINING_ARGUMENTS = "training_args.bin"  # transformers' Trainer writes it; FlagEmbedding's says how it pooled
_POOLED_BY = "sentence_pooling_method"
_ZIP = b"PK\x03\x04"  # how what torch.save writes begins
_NORMALIZED_BY = ("normalize_embeddings", "normlized")  # FlagEmbedding's names, today and before 1.3


@dataclass(frozen=True)
class PoolingChoice:
    """Pooling and normalisation, and where each was read.

    That is "flag", "sentence-transformers files", "training_args.bin" (FlagEmbedding's), "classifier" (a reranker's) or
    "default".
    `has_heads`: the folder has a sparse head.
    """

    pooling: Pooling
    pooling_from: str
    normalize: bool
    normalize_from: str
    has_heads: bool = field(default=False, compare=False)

    @property
    def warning(self) -> str | None:
        """What the folder's files say against the sparse and ColBERT heads; None if nothing, or settled."""
        stated, asked = ST_FILES, self.pooling.value
        if not self.has_heads:
            return None
        if self.pooling is not Pooling.CLS and self.pooling_from == stated:
            return (
                f"{stated} say {asked} pooling, but the folder has M3's heads, which are trained with cls: "
                "sentence-transformers writes mean when it saves a checkpoint that had no such files. "
                f"The export follows them; say --pooling cls --normalize, or --pooling {asked} if it is right"
            )
        if not self.normalize and self.normalize_from in (ST_FILES, TRAINING_ARGUMENTS):
            return (
                f"no normalization, by {self.normalize_from}, but the folder has M3's heads, which FlagEmbedding "
                "normalizes. The export follows that; say --normalize, or --no-normalize if it is right"
            )
        return None


OF_CLASSIFIER = PoolingChoice(Pooling.CLS, "classifier", normalize=False, normalize_from="classifier")
"""A reranker's: its classifier reads the first token as it is."""


def read_pooling(folder: Path, pooling: Pooling | None = None, normalize: bool | None = None) -> PoolingChoice:
    """What the flags say; else what sentence-transformers or FlagEmbedding wrote; else CLS and normalised, as BGE-M3.

    Raises:
        CheckpointError: the files are malformed or ask for a pooling that M3 does not have.
    """
    default, origin = (Pooling.CLS, True), "default"
    if pooling is None or normalize is None:
        if stated := _stated(folder):
            default, origin = stated, ST_FILES
        elif trained := _trained(folder / TRAINING_ARGUMENTS):
            default, origin = trained, TRAINING_ARGUMENTS
    return PoolingChoice(
        pooling=default[0] if pooling is None else pooling,
        pooling_from=origin if pooling is None else "flag",
        normalize=default[1] if normalize is None else normalize,
        normalize_from=origin if normalize is None else "flag",
        has_heads=(folder / "sparse_linear.pt").is_file(),
    )


def _stated(folder: Path) -> tuple[Pooling, bool] | None:
    if not (folder / "modules.json").is_file():
        return None
    modules = _read_json(folder / "modules.json", list)
    kinds = {str(m.get("type", "")).rpartition(".")[2]: str(m.get("path", "")) for m in modules if isinstance(m, dict)}
    if foreign := sorted(kinds.keys() - ST_MODULES):
        raise CheckpointError(
            f"modules.json has a {foreign[0]} module, which M3 does not have; "
            "to leave it out on purpose: m3-export --pooling cls|mean|last_token and --normalize or --no-normalize"
        )
    if "Pooling" not in kinds:
        raise CheckpointError(
            "modules.json names no Pooling module; say how to pool: m3-export --pooling cls|mean|last_token"
        )
    return _pooling(folder / kinds["Pooling"] / "config.json"), "Normalize" in kinds


def _pooling(path: Path) -> Pooling:
    config = _read_json(path, dict)
    name = f"{path.parent.name}/{path.name}"
    words = config.get("pooling_mode")
    if words is None:
        words = [flag for flag, is_on in config.items() if flag.startswith("pooling_mode_") and is_on is True]
    modes = [words] if isinstance(words, str) else words
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in ST_NAMES:
        raise CheckpointError(
            f"{name} asks for pooling {modes}; M3 has one of cls, mean, last_token: say which: m3-export --pooling"
        )
    return ST_NAMES[modes[0]]


def _trained(path: Path) -> tuple[Pooling, bool] | None:
    """How FlagEmbedding trained; None where the file is not there, or is other training's, which has no such words."""
    remedy = "say how to pool: m3-export --pooling cls|mean|last_token and --normalize or --no-normalize"
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"{path.name}: a link to nothing; {remedy}")
    if not path.is_file():
        return None
    refuse_pointers([path])
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            return None  # another program's
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            said = _values_in_pickle(archive.read(pickled[0]), {_POOLED_BY, *_NORMALIZED_BY}) if pickled else {}
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path.name}: cut off or damaged; {remedy}") from error
    if _POOLED_BY not in said:
        return None
    pooled, normalized = said[_POOLED_BY], next((said[name] for name in _NORMALIZED_BY if name in said), True)
    if pooled not in list(Pooling) or not isinstance(normalized, bool):
        raise CheckpointError(
            f"{path.name}: {_POOLED_BY} is {pooled!r} and {_NORMALIZED_BY[0]} {normalized!r}; expected cls, mean or "
            "last_token, and true or false: say which with --pooling and --normalize or --no-normalize"
        )
    return Pooling(pooled), normalized


def _values_in_pickle(data: bytes, names: set[str]) -> Mapping[str, Any]:
    """The texts and truth values that follow these names in a pickle. It is read word by word; nothing of it runs.

    Raises:
        ValueError: the bytes are no pickle.
    """
    found, kept = dict[str, Any](), dict[Any, Any]()
    value: Any = None
    for word, argument, _ in pickletools.genops(data):
        if word.name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            kept[len(kept) if argument is None else argument] = value
            continue
        name = value
        value = kept.get(argument) if word.name in ("BINGET", "LONG_BINGET") else _TRUTH.get(word.name, argument)
        if isinstance(name, str) and name in names:
            found[name] = value
    return found


_TRUTH = {"NEWTRUE": True, "NEWFALSE": False}


def _read_json(path: Path, kind: type[Any]) -> Any:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: {error}; or say it yourself: m3-export --pooling … --normalize") from error
    if not isinstance(data, kind):
        raise CheckpointError(
            f"{path.name}: expected a JSON {kind.__name__}; or say it yourself: m3-export --pooling … --normalize"
        )
    return data
