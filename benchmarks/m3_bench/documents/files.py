"""Documents as JSON files: written whole or not at all, and nothing read that is not known."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from m3_bench.documents.comparisons import Comparison
from m3_bench.documents.kinds import SCHEMA_VERSION, Kind
from m3_bench.documents.loads import Load
from m3_bench.documents.runs import Roofline, Run
from m3_bench.documents.searches import Margins, Retrieval
from m3_bench.errors import DocumentError
from m3_runtime.errors import BundleFormatError
from m3_runtime.records import from_json, to_json

D = TypeVar("D", bound="Run | Roofline | Comparison | Retrieval | Margins | Load")
Document = Run | Roofline | Comparison | Retrieval | Margins | Load
KINDS: Mapping[Kind, type[Document]] = {
    Kind.RUN: Run,
    Kind.ROOFLINE: Roofline,
    Kind.COMPARISON: Comparison,
    Kind.RETRIEVAL: Retrieval,
    Kind.MARGINS: Margins,
    Kind.LOAD: Load,
}
# JSON text has line breaks between values only, never within them.
_PLAIN_LIST, _BREAK = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s*\]"), re.compile(r"\n\s+")


def to_text(document: Document) -> str:
    """A document as JSON text: a key a line, and lists of plain values on one."""
    text = json.dumps(to_json(document), ensure_ascii=False, allow_nan=False, indent=1)
    return _PLAIN_LIST.sub(lambda found: f"[{_BREAK.sub(' ', found[1])}]", text) + "\n"


def from_text(text: str, where: str) -> Document:
    """The document of a JSON text; `where` names it in errors.

    Raises:
        DocumentError: not JSON, of an unknown kind or a newer schema, or malformed.
    """
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{where} is not JSON ({error}); was it cut off? measure again") from error
    kind, version = _kind_and_version(data, where)
    if version != SCHEMA_VERSION:
        remedy = "upgrade m3-runtime" if version > SCHEMA_VERSION else "measure again"
        raise DocumentError(f"{where} has schema version {version}, this release reads {SCHEMA_VERSION}; {remedy}")
    try:
        return from_json(KINDS[kind], data, where)
    except BundleFormatError as error:
        raise DocumentError(f"{error}; the file was not written by m3-bench, or was changed") from error


def _kind_and_version(data: Any, where: str) -> tuple[Kind, int]:
    kind = data.get("kind") if isinstance(data, dict) else None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if kind not in set(Kind) or not isinstance(version, int) or isinstance(version, bool):
        raise DocumentError(f"{where} is no document of m3-bench: expected a kind of {', '.join(Kind)}, got {kind!r}")
    return Kind(kind), version


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no measurement")


def read(path: Path) -> Document:
    """Read a document.

    Raises:
        DocumentError: it cannot be read; see `from_text`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError(f"{str(path)!r} cannot be read: {error}") from error
    return from_text(text, str(path))


def read_as(kind: type[D], path: Path) -> D:
    """Read a document of one kind.

    Raises:
        DocumentError: it cannot be read, or is of another kind.
    """
    document = read(path)
    if not isinstance(document, kind):
        raise DocumentError(f"{str(path)!r} is a {document.kind}, expected a {kind.__name__.lower()}")
    return document


def write(document: Document, path: Path) -> None:
    """Write a document, whole or not at all.

    Raises:
        DocumentError: the disk said no.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(to_text(document))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise DocumentError(f"{str(path)!r} cannot be written: {error}") from error
