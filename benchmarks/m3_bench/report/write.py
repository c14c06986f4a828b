"""A report's folder: whole or not at all, and nothing else is written over."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from m3_bench.errors import DocumentError
from m3_bench.report.inputs import Input
from m3_bench.report.page import RAW, Page
from m3_bench.report.render import html, markdown, standalone
from m3_runtime.errors import InputError

INDEX, MARKDOWN, PICTURES = "index.html", "report.md", "pictures"
_MARK = b'<meta name="generator" content="m3-bench report '
_HEAD_BYTES = 4096


def check_target(folder: Path, files: Sequence[Path], *, force: bool) -> None:
    """Refuse a folder that must not be written over; a report may be, and an empty folder.

    Raises:
        InputError: it is something else and `force` is off, or it holds one of `files` or this process's folder.
    """
    if not os.path.lexists(folder):
        return
    whole = folder.resolve()
    if any(whole == one or whole in one.parents for one in (Path.cwd().resolve(), Path.home().resolve())):
        raise InputError(f"-o {folder} would replace the folder you are in, or your home; choose one of its own")
    inside = [path for path in files if whole in path.resolve().parents]
    if inside:
        raise InputError(f"-o {folder} would replace {str(inside[0])!r}, which the report is made of; choose another")
    if force or is_report(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return
    raise InputError(f"-o {folder} exists and is not a report; choose another folder, or pass --force to replace it")


def is_report(folder: Path) -> bool:
    """Whether a folder is one of ours."""
    try:
        with (folder / INDEX).open("rb") as file:
            return _MARK in file.read(_HEAD_BYTES)
    except OSError:
        return False


def write(page: Page, files: Sequence[Input], folder: Path) -> None:
    """Write page, pictures and raw files beside the target, then put them in its place.

    Raises:
        DocumentError: the disk said no.
    """
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.absolute().parent) as nest:
            _fill(Path(nest) / "new", page, files)
            _replace(Path(nest), folder)
    except OSError as error:
        raise DocumentError(f"the report {str(folder)!r} cannot be written: {error}") from error


def _fill(new: Path, page: Page, files: Sequence[Input]) -> None:
    for part in (new, new / RAW, new / PICTURES):
        part.mkdir()
    (new / INDEX).write_text(html(page), encoding="utf-8")
    (new / MARKDOWN).write_text(markdown(page), encoding="utf-8")
    for section in page.sections:
        for picture in section.pictures:
            (new / PICTURES / f"{picture.name}.svg").write_text(standalone(picture), encoding="utf-8")
    for file in files:
        shutil.copyfile(file.path, new / RAW / file.name)


def _replace(nest: Path, folder: Path) -> None:
    """What was there goes into the nest, and with it; if the new one cannot take its place it comes back."""
    old = nest / "old"
    if os.path.lexists(folder):
        folder.rename(old)
    try:
        (nest / "new").rename(folder)
    except OSError:
        if os.path.lexists(old):
            old.rename(folder)
        raise
