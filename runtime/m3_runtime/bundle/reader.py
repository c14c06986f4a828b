"""Opening a bundle: everything is checked before anything is used."""

import hashlib
import io
import os
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest, Variant, check_digest
from m3_runtime.errors import (
    BundleDamagedError,
    BundleFormatError,
    BundleNotFoundError,
    HeadError,
    InputError,
    VariantError,
)
from m3_runtime.sequences import member

SMALL_FILE_BYTES = 2**20
"""Files up to this size have their digest compared at every opening: it takes a millisecond."""


COLBERT_PCA = "colbert_pca.npy"
"""(C, C) float32, a principal axis of ColBERT rows in each column, the widest first; bundles since 2026-11 have it."""

_MOST_MANIFEST_BYTES = 2**24
"""Manifests have a hundredth of it; what is larger is none, and is not read."""


class Verify(StrEnum):
    """How closely the listed files are looked at when a bundle is opened.

    SIZE finds files that are missing or cut off, and any change of a file of at most 1 MiB (the graphs without their
    weights, config.json). FULL finds changed bytes in large files (weights, a full-size tokenizer) and in the manifest
    too, at the price of reading everything. Neither finds a forged manifest: digests protect from damage, not from an
    attacker.
    """

    SIZE = "size"
    FULL = "full"


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: the folder and its manifest."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, *, verify: Verify | str = Verify.SIZE) -> "Bundle":
        """Open a bundle and check every listed file.

        Args:
            path: the bundle's folder.
            verify: "size" compares every size, and the SHA-256 of files up to 1 MiB (instant); "full" compares every
                SHA-256. See `Verify`.

        Raises:
            BundleNotFoundError: no such folder, or no manifest in it.
            BundleFormatError: malformed manifest, another schema, a path that leaves the folder.
            BundleDamagedError: a listed file is missing, cut off or changed.
            InputError: the path is none, or `verify` is neither "size" nor "full".
        """
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"expected a bundle's folder, got {type(path).__name__}")
        folder = Path(path)
        level = member(Verify, verify, "verify")
        manifest = _read_manifest(folder, level)
        for entry in manifest.files:
            _check_file(folder, entry, level)
        _check_references(manifest)
        return cls(folder=folder, manifest=manifest)

    def file(self, path: str) -> Path:
        """Absolute path of a listed file."""
        return self.folder.resolve() / path

    @property
    def colbert_pca(self) -> FileEntry | None:
        """The file of the principal axes; None where the bundle has none."""
        return next((entry for entry in self.manifest.files if entry.path == COLBERT_PCA), None)

    def colbert_axes(self, dim: int) -> NDArray[np.float32]:
        """(C, `dim`): what rows are multiplied by to have so many dimensions.

        Raises:
            M3Error: as `checked_colbert_dim`.
            BundleFormatError: the file is no such matrix.
            BundleDamagedError: it is not the one that the manifest lists.
        """
        kept = self.checked_colbert_dim(dim)  # first: there may be no axes
        return self._principal_axes[:, :kept]

    def checked_colbert_dim(self, dim: int) -> int:
        """The dimensions, if ColBERT rows can have so many.

        Raises:
            HeadError: the bundle has no ColBERT head.
            InputError: `dim` is no number from 1 to C, or the bundle has no principal axes.
        """
        width = self.manifest.geometry.colbert_dim
        if width is None:
            raise HeadError(f"colbert_dim={dim}: the bundle has no colbert head")
        if isinstance(dim, bool) or not hasattr(dim, "__index__") or not 1 <= dim <= width:
            raise InputError(f"colbert_dim must be a number from 1 to {width}, got {dim!r}")
        if self.colbert_pca is None:
            raise InputError(f"colbert_dim={dim}: the bundle has no {COLBERT_PCA}, as older exports; export it again")
        return dim.__index__()

    @cached_property
    def _principal_axes(self) -> NDArray[np.float32]:
        width, entry = self.manifest.geometry.colbert_dim, self.colbert_pca
        assert entry is not None
        try:
            data = self.file(COLBERT_PCA).read_bytes()
            axes = np.load(io.BytesIO(data), allow_pickle=False)
        except (OSError, ValueError, EOFError, MemoryError) as error:  # its header may say any size
            raise BundleFormatError(f"{COLBERT_PCA} cannot be read ({error}); export the bundle again") from error
        if axes.shape != (width, width) or axes.dtype != np.float32 or not np.isfinite(axes).all():
            raise BundleFormatError(
                f"{COLBERT_PCA}: expected ({width}, {width}) finite float32, got {axes.shape} {axes.dtype}; export the "
                "bundle again"
            )
        if (digest := hashlib.sha256(data).hexdigest()) != entry.sha256:  # it names the space of reduced rows
            raise BundleDamagedError(_other_digest(entry, digest))
        return np.asarray(axes)

    def variant(self, name: str) -> Variant:
        """The variant of that name.

        Raises:
            VariantError: the bundle has no such variant.
        """
        for variant in self.manifest.variants:
            if variant.name == name:
                return variant
        names = ", ".join(v.name for v in self.manifest.variants)
        raise VariantError(f"the bundle has no variant {name!r}; it has: {names}")


def safe_path(folder: Path, path: str) -> Path:
    """The file `path` inside `folder`, refusing everything that leads out of it.

    A snapshot in the hub's cache consists of links, which lead to the files of its repository.

    Raises:
        BundleFormatError: absolute, with '..' or backslashes, or a symbolic link that leads elsewhere.
    """
    parts = PurePosixPath(path)
    if not path or parts.is_absolute() or ".." in parts.parts or "\\" in path or ":" in path or "\0" in path:
        raise BundleFormatError(f"{MANIFEST_NAME} lists {path!r}, which is not a path inside the bundle")
    full = folder / parts
    real, home = Path(os.path.realpath(full)), Path(os.path.realpath(folder))
    if not real.is_relative_to(home) and real.parent not in _blobs(home):
        raise BundleFormatError(
            f"{path!r} is a link that leads out of the bundle, to {str(real)!r}; a bundle holds its own files, or is a "
            "snapshot in the hub's cache whose links stay in its repository: download it with snapshot_download(…, "
            "local_dir=FOLDER), or copy it with cp -rL"
        )
    return full


def _blobs(folder: Path) -> list[Path]:
    """Where huggingface_hub's cache keeps the files of a snapshot, which holds links to them."""
    return [
        above.parent / "blobs"
        for above in folder.parents
        if above.name == "snapshots" and above.parent.name.startswith(("models--", "datasets--", "spaces--"))
    ]


def _read_manifest(folder: Path, level: Verify) -> Manifest:
    if not folder.is_dir():
        found = "it is a file, and a bundle is a folder" if folder.exists() else "the folder does not exist"
        raise BundleNotFoundError(f"no bundle at {str(folder)!r}: {found}; make one with m3-export SOURCE OUT")
    path = safe_path(folder, MANIFEST_NAME)
    if not path.is_file():
        inner = sorted(folder.glob(f"snapshots/*/{MANIFEST_NAME}"))  # of the hub's cache
        remedy = f"if it is a checkpoint, turn it into a bundle with: m3-export {folder} OUT"
        raise BundleNotFoundError(
            f"{str(folder)!r} is not a bundle: it has no {MANIFEST_NAME}; "
            + (f"did you mean {str(inner[-1].parent)!r}?" if inner else remedy)
        )
    if (size := path.stat().st_size) > _MOST_MANIFEST_BYTES:
        raise BundleFormatError(f"{MANIFEST_NAME} has {size} bytes, expected at most {_MOST_MANIFEST_BYTES}")
    try:
        text = path.read_bytes().decode()  # as it is: every byte counts
    except UnicodeDecodeError as error:
        raise BundleFormatError(f"{MANIFEST_NAME} is not UTF-8 text; export the bundle again") from error
    manifest = Manifest.from_text(text)
    if level is Verify.FULL:
        check_digest(text)
    return manifest


def _check_file(folder: Path, entry: FileEntry, level: Verify) -> None:
    path = safe_path(folder, entry.path)
    if not os.path.isfile(path):  # noqa: PTH113 - Path's fails where a name is too long
        found = f" (a link to {os.readlink(path)!r}, which is not there)" if os.path.islink(path) else ""  # noqa: PTH114, PTH115
        raise BundleDamagedError(f"the bundle is incomplete: {entry.path!r} is missing{found}; copy or export it again")
    size = path.stat().st_size
    if size != entry.size_bytes:
        raise BundleDamagedError(
            f"{entry.path!r} is damaged: expected {entry.size_bytes} bytes, got {size}; copy or export it again"
        )
    is_digest_compared = level is Verify.FULL or size <= SMALL_FILE_BYTES
    if is_digest_compared and (digest := sha256_of(path)) != entry.sha256:
        raise BundleDamagedError(_other_digest(entry, digest))


def _other_digest(entry: FileEntry, digest: str) -> str:
    return f"{entry.path!r} is damaged: expected SHA-256 {entry.sha256}, got {digest}; copy or export it again"


def _check_references(manifest: Manifest) -> None:
    listed = {entry.path for entry in manifest.files}
    used, fewer = {manifest.tokenizer.path}, manifest.vocabulary
    used |= set() if fewer is None else {fewer.pieces_path, fewer.pipeline_path}
    for variant in manifest.variants:
        used |= {variant.graph, *variant.files}
    if unlisted := sorted(used - listed):
        raise BundleFormatError(f"{MANIFEST_NAME} uses files that it does not list: {unlisted}")
    names = {variant.name for variant in manifest.variants}
    if not names or names != set(manifest.parity):
        raise BundleFormatError(
            f"{MANIFEST_NAME} must have variants, and parity for exactly those; it has variants {sorted(names)} and "
            f"parity for {sorted(manifest.parity)}; export the bundle again"
        )
    if unknown := sorted(manifest.over_budget.keys() - names):
        raise BundleFormatError(f"{MANIFEST_NAME} has over_budget for variants that it does not have: {unknown}")
