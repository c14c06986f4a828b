"""A bundle's own checkpoint in the forms that peers read; each is made once, which can take minutes."""

import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from m3_bench.errors import PeerError
from m3_bench.peers.environments import Peer, PeerSource, environment_of
from m3_bench.peers.sentencepiece_file import spm_bytes
from m3_bench.worker_process import Command, run_to_end
from m3_runtime import Bundle
from m3_runtime.bundle.manifest import SourceInfo
from m3_runtime.bundle.reader import sha256_of
from m3_runtime.errors import InputError
from m3_runtime.io.progress import Progress

_DIGEST_LIMIT_BYTES = 2**25  # larger files are compared by size: the weights are in the bundle's digest anyway
_SENTENCEPIECE = "sentencepiece.bpe.model"
_LLAMA_PACKAGE, _CONVERTER = "llama_cpp_python", "convert_hf_to_gguf.py"
_CONVERTER_PARTS = (_CONVERTER, "conversion/", "gguf-py/")


@dataclass(frozen=True)
class Setup:
    """What peers are made ready with."""

    bundle: Bundle  # whose checkpoint they run
    checkpoint: Path  # its source, as `check_source` has found it
    work: Path  # for converted models
    peers: PeerSource
    threads: int  # of every contender
    progress: Progress = field(repr=False)

    @property
    def weights(self) -> str:
        """Names the weights, for what is made of them."""
        return self.bundle.manifest.source.weights_sha256[:12]

    def environment(self, peer: Peer) -> Path:
        """The Python of a peer's environment."""
        return environment_of(peer.value, peer.requirements, self.peers, self.progress)


def check_source(checkpoint: Path, source: SourceInfo) -> None:
    """Whether a folder has the very files that a bundle was made of.

    Raises:
        InputError: it is no folder, or names the first file that is missing or another.
    """
    if not checkpoint.is_dir():
        raise InputError(f"{str(checkpoint)!r} is no folder; peers need the checkpoint that the bundle was made of")
    for entry in source.files:
        path = checkpoint / entry.path
        if not path.is_file():
            raise InputError(f"{str(checkpoint)!r} has no {entry.path}, which the bundle was made of ({source.name})")
        is_same = path.stat().st_size == entry.size_bytes and (
            entry.size_bytes > _DIGEST_LIMIT_BYTES or sha256_of(path) == entry.sha256
        )
        if not is_same:
            raise InputError(
                f"{str(path)!r} is not what the bundle was made of ({source.name}); give the bundle's own checkpoint"
            )


def lite_model(setup: Setup) -> Path:
    """The folder with bge-m3-lite's two models, built with its own tools from the graph that the hub has.

    Raises:
        BenchError: it could not be installed or built.
    """

    def make(folder: Path) -> None:
        options = {"checkpoint": str(setup.checkpoint.absolute()), "folder": str(folder)}
        export = Command(Path(sys.executable), "m3_bench.peers.hub_graph", options)
        run_to_end("exporting the graph that bge-m3-lite starts from", export.words(), setup.threads)
        build = Command(setup.environment(Peer.LITE), "m3_bench.workers.lite_build", {"folder": str(folder)})
        run_to_end("building bge-m3-lite's models", build.words(), setup.threads)

    return _made(f"bge-m3-lite-{setup.weights}", "Building bge-m3-lite's models", make, setup)


def gguf_model(precision: str, setup: Setup) -> Path:
    """The checkpoint in GGUF, "q8_0" or "f16", by llama.cpp's own converter.

    The converter gets a SentencePiece file beside the checkpoint's own, as BAAI's has: out of a `tokenizer.json` alone
    it makes a tokenizer that leaves out the space before the first word, and so gives other tokens.

    Raises:
        BenchError: it could not be installed or converted.
    """
    python = setup.environment(Peer.LLAMA_CPP)
    converter = _made("llama.cpp", "Fetching llama.cpp's converter", _fetch_converter, setup) / _CONVERTER

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as given:
            for path in setup.checkpoint.iterdir():
                (Path(given) / path.name).symlink_to(path.absolute())
            if not (Path(given) / _SENTENCEPIECE).exists():
                (Path(given) / _SENTENCEPIECE).write_bytes(spm_bytes(setup.checkpoint / "tokenizer.json"))
            words = [str(python), str(converter), given, "--outfile", str(folder / "model.gguf")]
            run_to_end(f"converting {setup.checkpoint} to GGUF", [*words, "--outtype", precision], threads=1)

    return _made(f"gguf-{precision}-{setup.weights}", f"Converting to GGUF {precision}", make, setup) / "model.gguf"


def _fetch_converter(folder: Path) -> None:
    """llama.cpp's converter, from the source of the release that the peer runs: the wheel does not have it."""
    lines = Peer.LLAMA_CPP.requirements.read_text(encoding="utf-8").splitlines()
    (release,) = (line for line in lines if line.startswith(f"{_LLAMA_PACKAGE}=="))
    options = ["--no-deps", "--no-binary", _LLAMA_PACKAGE, "--disable-pip-version-check", "--progress-bar", "off"]
    words = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), release]
    run_to_end(f"downloading the source of {release}", words, threads=1)
    (source,) = folder.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        named = ((one, one.name.partition("vendor/llama.cpp/")[2]) for one in archive if one.isfile())
        parts = [one.replace(name=name) for one, name in named if name.startswith(_CONVERTER_PARTS)]
        archive.extractall(folder, members=parts, filter="data")
    source.unlink()
    if not (folder / _CONVERTER).is_file():
        raise PeerError(f"the source of {release} has no {_CONVERTER}")


def _made(name: str, title: str, make: Callable[[Path], None], setup: Setup) -> Path:
    """A folder that is complete or absent: made beside its place and renamed."""
    folder = setup.work / name
    if not folder.is_dir():
        partial = folder.with_name(f".{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with setup.progress.step(title):
            make(partial)
        partial.replace(folder)
    return folder.absolute()
