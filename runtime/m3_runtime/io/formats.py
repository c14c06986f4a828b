"""Formats of files of texts, and their names' endings. What an ending does not say is not guessed."""

from enum import StrEnum
from pathlib import Path

STDIN = "-"


class SourceFormat(StrEnum):
    """How a file is read."""

    LINES = "lines"
    JSONL = "jsonl"
    JSON = "json"
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"


FORMAT_OF_ENDING = {
    ".jsonl": SourceFormat.JSONL,
    ".ndjson": SourceFormat.JSONL,
    ".json": SourceFormat.JSON,
    ".csv": SourceFormat.CSV,
    ".tsv": SourceFormat.TSV,
    ".parquet": SourceFormat.PARQUET,
    ".pq": SourceFormat.PARQUET,
    ".txt": SourceFormat.LINES,
}


class Packing(StrEnum):
    """How a file is compressed, by the second ending of its name."""

    GZIP = ".gz"
    BZIP2 = ".bz2"
    XZ = ".xz"
    ZSTD = ".zst"
    LZ4 = ".lz4"


def packing_of(path: str) -> Packing | None:
    """How a file is compressed; None for one that is not.

    >>> packing_of("a.jsonl.ZST"), packing_of("a.jsonl")
    (<Packing.ZSTD: '.zst'>, None)
    """
    return next((packing for packing in Packing if path.lower().endswith(packing)), None)


def format_of(path: str) -> SourceFormat | None:
    """The format that a name's ending stands for; None if it stands for none.

    >>> format_of("corpus/PART-1.JSONL.gz"), format_of("notes.md"), format_of("a.parquet.gz")
    (<SourceFormat.JSONL: 'jsonl'>, None, None)
    """
    packing = packing_of(path)
    found = FORMAT_OF_ENDING.get(Path(path.lower().removesuffix(packing or "")).suffix)
    return None if found is SourceFormat.PARQUET and packing else found


def endings_in_words() -> str:
    """Every ending that says how a file is read."""
    return f"{', '.join(FORMAT_OF_ENDING)}, all but Parquet also with {', '.join(Packing)} behind it"
