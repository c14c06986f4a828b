"""A checkpoint folder, read and checked: encoder, heads, pooling. Nothing of it is executed."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from m3_export.checkpoint.classifier import ClassifierWeights, read_classifier
from m3_export.checkpoint.heads import COLBERT_FILE, SPARSE_FILE, HeadWeights, read_heads
from m3_export.checkpoint.pooling import OF_CLASSIFIER, TRAINING_ARGUMENTS, PoolingChoice, read_pooling
from m3_export.checkpoint.weights import (
    ADAPTER_REMEDY,
    WEIGHT_PATTERNS,
    read_encoder_weights,
    refuse_adapter,
    refuse_pointers,
    weight_files,
)
from m3_export.errors import CheckpointError, OptionsError
from m3_models.checkpoint_files import tensor_shapes
from m3_runtime.bundle.manifest import ENCODER_HEADS, FileEntry, Geometry, Head, Pooling
from m3_runtime.bundle.prompts import PROMPTS_NAME, Prompts
from m3_runtime.bundle.reader import sha256_of
from m3_runtime.errors import InputError

# Everything that a checkpoint is read from: no foreign weight formats, no code, no training state.
_BESIDE_WEIGHTS = (
    "config.json", SPARSE_FILE, COLBERT_FILE, "tokenizer*.json", "added_tokens.json", "special_tokens_map.json",
    "sentencepiece.bpe.model", "modules.json", "*_Pooling/config.json", PROMPTS_NAME,
)  # fmt: skip
CHECKPOINT_PATTERNS = (*_BESIDE_WEIGHTS, *WEIGHT_PATTERNS)
MIN_TOKENS = 3  # both special tokens and one of the text
TASK_PREFIXES = ("roberta.", "model.")  # what task heads of transformers put before the encoder's own names


@dataclass(frozen=True)
class Checkpoint:
    """The weights of an M3 model or a reranker in float32 and all that is known about them.

    `encoder` maps transformers' XLMRobertaModel names to tensors; `sparse` and `colbert` are None for a dense-only
    export and for a reranker, `classifier` for an encoder. `config` is config.json as it is.
    """

    folder: Path
    config: Mapping[str, Any]
    encoder: Mapping[str, torch.Tensor]
    sparse: HeadWeights | None
    colbert: HeadWeights | None
    pooling: PoolingChoice
    geometry: Geometry
    pad_id: int
    prompts: Prompts = field(default_factory=Prompts)
    classifier: ClassifierWeights | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        heads: tuple[Head, ...] | None = None,
        pooling: Pooling | None = None,
        normalize: bool | None = None,
    ) -> "Checkpoint":
        """Read a checkpoint folder: all heads of an encoder or dense alone; None is as the folder says.

        Raises:
            CheckpointError: a file is missing, malformed, of another architecture, of wrong shape, or holds NaN.
            OptionsError: what is for an encoder is said of a reranker.
        """
        refuse_adapter(folder)
        unread = () if Head.SPARSE in (heads or ENCODER_HEADS) else (SPARSE_FILE, COLBERT_FILE)
        _refuse_dangling(folder, unread)
        refuse_pointers(path for path in files_read(folder) if path.name not in unread)
        config = _read_config(folder / "config.json")
        weights = read_encoder_weights(folder)
        classifier = read_classifier(folder, config, weights)
        if classifier is not None:
            refuse_options_of_encoders({"--heads": heads, "--pooling": pooling, "--normalize": normalize})
        encoder = _encoder_only(weights)
        has_heads = classifier is None and Head.SPARSE in (heads or ENCODER_HEADS)
        sparse, colbert = read_heads(folder, int(config["hidden_size"])) if has_heads else (None, None)
        geometry = _geometry(config, colbert)
        _check_encoder(folder, encoder, geometry, config["max_position_embeddings"])
        return cls(
            folder=folder,
            config=config,
            encoder=encoder,
            sparse=sparse,
            colbert=colbert,
            pooling=OF_CLASSIFIER if classifier else read_pooling(folder, pooling, normalize),
            geometry=geometry,
            pad_id=int(config.get("pad_token_id", 1)),
            prompts=_read_prompts(folder / PROMPTS_NAME, is_reranker=classifier is not None),
            classifier=classifier,
        )

    @property
    def heads(self) -> tuple[Head, ...]:
        """What the model gives."""
        if self.classifier is not None:
            return (Head.SCORE,)
        return ENCODER_HEADS if self.sparse is not None else (Head.DENSE,)

    @property
    def layer_norm_epsilon(self) -> float:
        """What keeps a normalisation from dividing by zero; transformers' default where config.json says nothing."""
        return float(self.config.get("layer_norm_eps", 1e-12))

    def weights_sha256(self) -> str:
        """Digest of all weights as float32, whatever files and dtypes hold them on disk."""
        digest = hashlib.sha256()
        tensors = {**self.encoder, **(self.classifier.tensors() if self.classifier else {})}
        for name, head in (("sparse", self.sparse), ("colbert", self.colbert)):
            if head:
                tensors |= {f"{name}.weight": head.weight, f"{name}.bias": head.bias}
        for name in sorted(tensors):
            tensor = tensors[name].contiguous()
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(memoryview(tensor.numpy()).cast("B"))
        return digest.hexdigest()

    def space_id(self, weights_sha256: str, ids_sha256: str) -> str:
        """Name of the vector space: the same weights, tokenization, pooling and normalisation give the same one."""
        pooling, heads = self.pooling, self.geometry.attention_heads
        encoder = f"{heads} heads, epsilon {self.layer_norm_epsilon!r}"  # not seen in the weights
        parts = (weights_sha256, ids_sha256, encoder, pooling.pooling, f"normalize {pooling.normalize}")
        return "m3-" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def files(self) -> tuple[FileEntry, ...]:
        """What a checkpoint is read from, with digests; other files of the folder do not matter."""
        is_trained = TRAINING_ARGUMENTS in (self.pooling.pooling_from, self.pooling.normalize_from)
        said = [self.folder / TRAINING_ARGUMENTS] if is_trained else []
        return tuple(
            FileEntry(path.relative_to(self.folder).as_posix(), path.stat().st_size, sha256_of(path))
            for path in sorted([*files_read(self.folder), *said])
        )


def files_read(folder: Path) -> list[Path]:
    """Every file of the folder that a checkpoint is read from.

    Raises:
        CheckpointError: the weights are not there, or not whole.
    """
    beside = {path for pattern in _BESIDE_WEIGHTS for path in folder.glob(pattern) if path.is_file()}
    return sorted(beside.union(weight_files(folder)))


def _refuse_dangling(folder: Path, unread: Sequence[str]) -> None:
    """A copied cache may hold links without the files that they lead to."""
    for path in sorted(folder.iterdir()):
        is_read = path.name not in unread and any(path.match(pattern) for pattern in CHECKPOINT_PATTERNS)
        if is_read and path.is_symlink() and not path.exists():
            raise CheckpointError(
                f"{path.name}: a link to {str(path.readlink())!r}, which is not there; download the checkpoint again, "
                "or copy it where it is whole with cp -rL"
            )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: {error}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "xlm-roberta":
        raise CheckpointError(f"config.json: model_type is {kind!r}; BGE-M3 checkpoints are 'xlm-roberta'")
    expected = {"hidden_act": "gelu", "position_embedding_type": "absolute", "type_vocab_size": 1}
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"config.json: {key} is {config[key]!r}; BGE-M3 checkpoints have {value!r}")
    _check_sizes(config)
    return config


def refuse_options_of_encoders(given: Mapping[str, object]) -> None:
    """Refuse what means nothing for a reranker: it has one score a pair, read from the first token, and no vectors.

    Raises:
        OptionsError: one of the options, by their names, is not None.
    """
    if names := [name for name, value in given.items() if value is not None]:
        raise OptionsError(
            f"{names[0]} is for encoders; the checkpoint is a reranker, which has one score a pair and no vectors: "
            "leave it out"
        )


def _read_prompts(path: Path, *, is_reranker: bool) -> Prompts:
    if not path.is_file():
        return Prompts()
    try:
        prompts = Prompts.from_json(json.loads(path.read_text(encoding="utf-8")))
        if is_reranker and any(prompts.prompts.values()):
            raise InputError(f"{path.name}: a reranker's bundle has no prompts; put them into the texts, and empty it")
        return Prompts() if is_reranker else prompts
    except InputError as error:
        raise CheckpointError(str(error)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: {error}") from error


def _check_sizes(config: Mapping[str, Any]) -> None:
    if wrong := [key for key in _SIZES if not _is_count(config.get(key), 1)]:
        raise CheckpointError(f"config.json: {wrong[0]} is {config.get(wrong[0])!r}; expected a positive integer")
    if (layers := config["num_hidden_layers"]) > _MOST_LAYERS:  # their tensors' names would fill the memory
        raise CheckpointError(f"config.json: num_hidden_layers is {layers}; expected at most {_MOST_LAYERS}")
    if config["hidden_size"] % config["num_attention_heads"]:
        raise CheckpointError("config.json: hidden_size is not a multiple of num_attention_heads")
    pad_id, rows = config.get("pad_token_id", 1), config["max_position_embeddings"]
    if not _is_count(pad_id, 0) or rows - pad_id - 1 < MIN_TOKENS:
        raise CheckpointError(
            f"config.json: pad_token_id is {pad_id!r} and max_position_embeddings {rows}; XLM-R has 1, "
            f"and {MIN_TOKENS} positions or more above it"
        )
    epsilon = config.get("layer_norm_eps", 1e-12)
    if not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise CheckpointError(f"config.json: layer_norm_eps is {epsilon!r}; BGE-M3 checkpoints have 1e-05")


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


_WORDS = "embeddings.word_embeddings.weight"
_MOST_LAYERS = 1_000
_SIZES = (
    "num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip


def _encoder_only(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Encoder tensors under their plain names; pooler, task heads and position-id buffers are not used by M3."""
    if adapter := sorted(name for name in weights if "lora_" in name):
        raise CheckpointError(f"the weights hold {adapter[0]!r} ({len(adapter)} such tensors); {ADAPTER_REMEDY}")
    prefix = next((p for p in TASK_PREFIXES if f"{p}embeddings.word_embeddings.weight" in weights), "")
    plain = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    used = ("embeddings.", "encoder.layer.")
    buffers = ("embeddings.position_ids", "embeddings.token_type_ids")
    return {n: t for n, t in plain.items() if n.startswith(used) and n not in buffers}


def _geometry(config: Mapping[str, Any], colbert: HeadWeights | None) -> Geometry:
    return Geometry(
        layers=config["num_hidden_layers"],
        attention_heads=config["num_attention_heads"],
        hidden_size=config["hidden_size"],
        ffn_size=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        # XLM-R counts positions from pad_token_id + 1, so that many rows are never used for tokens
        max_tokens=config["max_position_embeddings"] - int(config.get("pad_token_id", 1)) - 1,
        colbert_dim=colbert.weight.shape[0] if colbert else None,
    )


def encoder_shapes(geometry: Geometry, positions: int) -> dict[str, tuple[int, ...]]:
    """Every tensor that an XLM-R encoder of this geometry has, with its shape."""
    return tensor_shapes(
        layers=geometry.layers,
        hidden=geometry.hidden_size,
        ffn=geometry.ffn_size,
        vocabulary=geometry.vocab_size,
        positions=positions,
    )


def _check_encoder(folder: Path, encoder: Mapping[str, torch.Tensor], geometry: Geometry, positions: int) -> None:
    shapes = encoder_shapes(geometry, positions)
    if missing := sorted(shapes.keys() - encoder.keys()):
        raise CheckpointError(
            f"{folder.name}: {len(missing)} encoder tensors are missing, the first is {missing[0]!r}; "
            "config.json and the weights belong to different models, or a file is incomplete"
        )
    if unknown := sorted(encoder.keys() - shapes.keys()):
        raise CheckpointError(
            f"{folder.name}: unexpected encoder tensor {unknown[0]!r} ({len(unknown)} in all); "
            "config.json and the weights belong to different models, or the weights have been quantized"
        )
    for name, shape in shapes.items():
        if tuple(encoder[name].shape) != shape:
            got = tuple(encoder[name].shape)
            resized = f", or it was resized: set vocab_size to {got[0]}" if name == _WORDS else ""
            raise CheckpointError(
                f"{folder.name}: {name} has shape {got}, config.json says {shape}; "
                f"they belong to different models{resized}"
            )
        if encoder[name].dtype is not torch.float32:
            raise CheckpointError(
                f"{folder.name}: {name} is {encoder[name].dtype}; export the float weights, not quantized ones"
            )
        if not math.isfinite(encoder[name].sum(dtype=torch.float64).item()):
            raise CheckpointError(
                f"{folder.name}: {name} holds NaN or infinity; the training run has diverged; use an earlier checkpoint"
            )
