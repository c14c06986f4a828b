"""A checkpoint as GGUF, by llama.cpp's own converter: llama-cpp-python's source has it, its wheel does not."""

import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from m3_bench.bars.spm_file import spm_bytes
from m3_bench.errors import PeerError
from m3_bench.peers import Peer, requirement_of
from m3_bench.worker_process import run_to_end

_SENTENCEPIECE = "sentencepiece.bpe.model"
_PACKAGE = "llama_cpp_python"
_CONVERTER = "convert_hf_to_gguf.py"
_PARTS = (_CONVERTER, "conversion/", "gguf-py/")


def fetch_converter(folder: Path) -> None:
    """Put llama.cpp's converter into a folder, from the source of the release that the peer runs.

    Raises:
        BenchError: the source cannot be had, or has no converter.
    """
    release = requirement_of(Peer.LLAMA_CPP, _PACKAGE)
    options = ["--no-deps", "--no-binary", _PACKAGE, "--disable-pip-version-check", "--progress-bar", "off"]
    words = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), release]
    run_to_end(f"downloading the source of {release}", words, threads=1)
    (source,) = folder.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(folder, members=_converter_of(archive), filter="data")
    source.unlink()
    if not (folder / _CONVERTER).is_file():
        raise PeerError(f"the source of {release} has no {_CONVERTER}")


def _converter_of(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Its files, without the folders above them."""
    for member in archive:
        _, _, name = member.name.partition("vendor/llama.cpp/")
        if member.isfile() and name.startswith(_PARTS):
            yield member.replace(name=name)


def convert(python: Path, converter: Path, checkpoint: Path, precision: str, model: Path) -> None:
    """Write a checkpoint as GGUF.

    The converter gets a SentencePiece file beside the checkpoint's own, as BAAI's has: out of a `tokenizer.json` alone
    it makes a tokenizer that leaves out the space before the first word, and so gives other tokens.

    Args:
        python: of the peer's environment.
        converter: folder of `fetch_converter`.
        checkpoint: folder.
        precision: "q8_0" or "f16".
        model: file to write.

    Raises:
        BenchError: the converter failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder)
        for path in checkpoint.iterdir():
            (whole / path.name).symlink_to(path.absolute())
        if not (whole / _SENTENCEPIECE).exists():
            (whole / _SENTENCEPIECE).write_bytes(spm_bytes(checkpoint / "tokenizer.json"))
        words = [str(python), str(converter / _CONVERTER), str(whole), "--outfile", str(model)]
        run_to_end(f"converting {checkpoint} to GGUF", [*words, "--outtype", precision], threads=1)
