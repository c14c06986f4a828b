"""How the dense vector is pooled: "flag", "classifier", sentence-transformers files, or BGE-M3's default."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class PoolingChoice:
    """Pooling and normalisation, and where each was read.

    That is "flag", "sentence-transformers files", "classifier" (a reranker's) or "default".
    `has_heads`: the folder has a sparse head.
    """

    pooling: Pooling
    pooling_from: str
    normalize: bool
    normalize_from: str
    has_heads: bool = field(default=False, compare=False)

    @property
    def warning(self) -> str | None:
        """What sentence-transformers' files say against the sparse and ColBERT heads; None if nothing, or settled."""
        stated, asked = "sentence-transformers files", self.pooling.value
        if not self.has_heads or self.pooling_from != stated:
            return None
        if self.pooling is not Pooling.CLS:
            return (
                f"{stated} say {asked} pooling, but the folder has M3's heads, which are trained with cls: "
                "sentence-transformers writes mean when it saves a checkpoint that had no such files. "
                f"The export follows them; say --pooling cls --normalize, or --pooling {asked} if it is right"
            )
        if not self.normalize and self.normalize_from == stated:
            return (
                f"{stated} have no Normalize module, but the folder has M3's heads, which FlagEmbedding normalizes. "
                "The export follows them; say --normalize, or --no-normalize if it is right"
            )
        return None


OF_CLASSIFIER = PoolingChoice(Pooling.CLS, "classifier", normalize=False, normalize_from="classifier")
"""A reranker's: its classifier reads the first token as it is."""


def read_pooling(folder: Path, pooling: Pooling | None = None, normalize: bool | None = None) -> PoolingChoice:
    """What the flags say; else what modules.json and 1_Pooling say; else CLS and normalised, as BGE-M3 is.

    Raises:
        CheckpointError: the sentence-transformers files are malformed or ask for a pooling that M3 does not have.
    """
    stated = None if pooling is not None and normalize is not None else _stated(folder)
    default = stated or (Pooling.CLS, True)
    origin = "sentence-transformers files" if stated else "default"
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
