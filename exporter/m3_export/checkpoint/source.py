"""SOURCE to a local checkpoint folder: a folder, a name that m3_models builds, or a hub id."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import m3_models
from m3_export.checkpoint.folder import CHECKPOINT_PATTERNS
from m3_export.checkpoint.pooling import TRAINING_ARGUMENTS
from m3_export.checkpoint.weights import ADAPTER_FILES, refuse_adapter, refuse_shards_of_training
from m3_export.errors import ExportError, HubError, SourceError
from m3_runtime.errors import ExtraNotInstalledError

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # "./folder" is a folder, there or not


@dataclass(frozen=True)
class Source:
    """A checkpoint on this disk: what the model is called, the folder, and the pinned revision of a hub source."""

    name: str
    folder: Path
    revision: str | None


def resolve(source: str, scratch: Path, *, revision: str | None, progress: Callable[[str], None]) -> Source:
    """Find SOURCE, a folder, a name of m3_models or a hub id (a folder wins over a name); fetch or build it if need be.

    A checkpoint is built in `scratch`; `revision` is a branch, tag or commit of a hub source.

    Raises:
        SourceError: none of the three, or the hub has no such repository, or it holds no checkpoint.
        HubError: the hub cannot be reached, or does not hand out the repository.
        CheckpointError: the folder holds an adapter, or what distributed training saved, and no plain weights.
        M3Error: a named model cannot be written, see `write_named`.
    """
    path = Path(source).expanduser()
    if revision is not None and (path.is_dir() or m3_models.is_name(source)):
        raise SourceError(f"--revision {revision!r} is for hub sources, which {source!r} is not; leave it out")
    if path.is_dir():
        if (path / "snapshots").is_dir() and not (path / "config.json").is_file():
            return _of_cache(_snapshot(path))
        parent = path.resolve().parent
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            return _of_cache(path)
        return Source(_name_of(_with_config(path)) or path.resolve().name, path, None)
    if is_named(source):
        write_named(source, scratch / source, progress)
        return Source(source, scratch / source, None)
    if HUB_ID.fullmatch(source):
        return _from_hub(source, revision)
    raise SourceError(
        f"SOURCE {source!r} is {'a file, not' if path.is_file() else 'not'} a folder, not one of "
        f"{', '.join(m3_models.names())}, and not a hub id of the form owner/name"
    )


def is_named(source: str) -> bool:
    """Whether SOURCE is a name of m3_models, and no folder here is called so."""
    return m3_models.is_name(source) and not Path(source).expanduser().is_dir()


def write_named(name: str, folder: Path, progress: Callable[[str], None]) -> None:
    """Write the checkpoint of a name that m3_models knows.

    Raises:
        ExtraNotInstalledError: a package that the model is made from is missing.
        ExportError: it is of another release.
    """
    try:
        m3_models.write_checkpoint(name, folder, progress=progress)
    except m3_models.MissingPackageError as error:
        raise ExtraNotInstalledError(str(error)) from error
    except m3_models.ModelError as error:
        raise ExportError(str(error)) from error


def _name_of(folder: Path) -> str | None:
    """The name under which m3_models wrote a checkpoint, wherever it is now; None for others.

    A hub id in config.json is no such name: it may be what the checkpoint was fine-tuned from.
    """
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None  # `Checkpoint.open` says what is wrong with it
    return name if isinstance(name, str) and m3_models.is_name(name) else None


def _of_cache(snapshot: Path) -> Source:
    """A snapshot of the hub's cache: the folders above say of which repository it is, its name which commit."""
    commit = snapshot.resolve()
    repo = commit.parents[1].name.removeprefix("models--").replace("--", "/", 1)
    return Source(repo, _with_config(snapshot), commit.name)


def _snapshot(folder: Path) -> Path:
    """The checkpoint in a repository's folder of the hub's cache: main's, or the only one."""
    snapshots = {path.name: path for path in sorted((folder / "snapshots").glob("*")) if path.is_dir()}
    main = folder / "refs" / "main"
    commit = main.read_text(encoding="utf-8", errors="replace").strip() if main.is_file() else None
    if commit in snapshots:
        return snapshots[commit]
    if len(snapshots) == 1:
        return next(iter(snapshots.values()))
    there = f"it has {', '.join(snapshots)}; give one of them" if snapshots else "it has none; download it again"
    raise SourceError(f"{folder} is a folder of the hub's cache; expected one folder in snapshots/, {there}")


def _with_config(folder: Path) -> Path:
    refuse_adapter(folder)
    config = folder / "config.json"
    if config.is_file() or config.is_symlink():  # `Checkpoint.open` says where a link leads
        return folder
    refuse_shards_of_training(folder)
    inner = sorted(folder.glob("checkpoint-*/config.json"), key=lambda p: _step(p.parent.name))
    inner = inner or [p for p in sorted(folder.glob("*/config.json")) if not p.parent.name.endswith("_Pooling")]
    inner = inner or sorted(folder.glob("models--*/snapshots"))  # of the whole cache
    hint = f"; did you mean {inner[-1].parent}?" if inner else "; a checkpoint folder has config.json"
    if m3_models.is_name(str(folder)):
        hint += f". A folder goes before the model of its name: run this elsewhere to have {folder} built"
    raise SourceError(f"{folder} holds no config.json{hint}")


def _step(name: str) -> int:
    digits = name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else -1


def _from_hub(repo: str, revision: str | None) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    wanted = [*CHECKPOINT_PATTERNS, ADAPTER_FILES[0], TRAINING_ARGUMENTS]
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the client's own errors, and those of the HTTP library below it
        not_there = (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError)
        kind = SourceError if isinstance(error, not_there) else HubError
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise kind(
            f"there is no folder {repo!r}, and it could not be fetched from the hub: {reason.rstrip('.')}. "
            "Without a network: download the checkpoint elsewhere and give its folder, "
            "or try the offline model with: m3-export mini-m3 OUT"
        ) from error
    refuse_adapter(folder)
    # the cache names a snapshot by its commit, whatever branch or tag was asked for
    if not (folder / "config.json").is_file():
        raise SourceError(f"hub repository {repo!r} holds no config.json; it is not a checkpoint of transformers")
    return Source(repo, folder, folder.name)
