"""What is made for peers before they run; the peers themselves live in environments that tests do not have."""

import io
import sys
import tarfile
from pathlib import Path

import pytest

from m3_bench.errors import PeerError, WorkerError
from m3_bench.peers import models
from m3_bench.peers.environments import PeerSource
from m3_bench.peers.models import Setup, gguf_model
from m3_bench.peers.sentencepiece_file import spm_bytes
from m3_bench.run.peers import PEERS, peer_contenders
from m3_bench.worker_process import WorkerProcess
from m3_runtime import Bundle
from m3_runtime.errors import InputError
from m3_runtime.io.progress import Progress


@pytest.fixture
def setup(tiny_bundle: Path, tiny_random_checkpoint: Path, tmp_path: Path) -> Setup:
    """What peers are made ready with, of tiny-random."""
    return Setup(
        bundle=Bundle.open(tiny_bundle),
        checkpoint=tiny_random_checkpoint,
        work=tmp_path / "models",
        peers=PeerSource(tmp_path / "peers", None),
        threads=1,
        progress=Progress(quiet=True),
    )


def source(path, names) -> None:
    """A source archive, laid out as llama-cpp-python's."""
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            info = tarfile.TarInfo(f"llama_cpp_python-0.3.36/{name}")
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))


def with_llama_cpp(monkeypatch, names, folder: Path) -> list[list[str]]:
    """An environment that is there, and every step that would be run; a conversion looks at what it is given."""
    steps: list[list[str]] = []

    def run(name, words, threads):
        steps.append([*words])
        if "download" in words:
            source(Path(words[words.index("--dest") + 1]) / "llama_cpp_python-0.3.36.tar.gz", names)
        else:
            given = {path.name: path.read_bytes()[:64] if path.is_file() else b"" for path in Path(words[2]).iterdir()}
            steps[-1].append(given)
            Path(words[4]).write_bytes(b"GGUF")

    monkeypatch.setattr(models, "run_to_end", run)
    monkeypatch.setattr(models, "environment_of", lambda *_: folder / "python")
    return steps


CONVERTER = ("vendor/llama.cpp/convert_hf_to_gguf.py", "vendor/llama.cpp/gguf-py/gguf/vocab.py")


def test_a_checkpoint_is_converted_once_for_each_precision_by_the_pinned_release(setup, monkeypatch, tmp_path):
    steps = with_llama_cpp(monkeypatch, ("README.md", "vendor/llama.cpp/src/llama.cpp", *CONVERTER), tmp_path)
    first, again, other = (gguf_model(precision, setup) for precision in ("q8_0", "q8_0", "f16"))
    assert first == again != other
    download, *conversions = steps
    assert "llama_cpp_python==0.3.36" in download
    assert [words[-2] for words in conversions] == ["q8_0", "f16"]
    files = {str(path.relative_to(setup.work / "llama.cpp")) for path in (setup.work / "llama.cpp").rglob("*.*")}
    assert files == {"convert_hf_to_gguf.py", "gguf-py/gguf/vocab.py"}


def test_the_converter_is_given_a_sentencepiece_file_beside_the_checkpoints_own(setup, monkeypatch, tmp_path):
    steps = with_llama_cpp(monkeypatch, CONVERTER, tmp_path)
    gguf_model("q8_0", setup)
    given = steps[1][-1]
    assert given.keys() >= {path.name for path in setup.checkpoint.iterdir()} | {"sentencepiece.bpe.model"}
    assert spm_bytes(setup.checkpoint / "tokenizer.json").startswith(given["sentencepiece.bpe.model"])


def test_a_source_without_a_converter_is_refused(setup, monkeypatch, tmp_path):
    with_llama_cpp(monkeypatch, ("README.md",), tmp_path)
    with pytest.raises(PeerError, match="has no convert_hf_to_gguf"):
        gguf_model("q8_0", setup)
    assert not (setup.work / "llama.cpp").exists()


def test_peers_get_the_bundles_pooling_threads_and_length(setup, monkeypatch, tmp_path):
    with_llama_cpp(monkeypatch, CONVERTER, tmp_path)
    ((key, llama, reason),) = peer_contenders(["llama-q8"], setup, is_chosen=True)
    assert (key, reason, llama.heads, llama.size_bytes) == ("llama-q8", "", ("dense",), 4)
    assert llama.command.options | {"model": ""} == {
        "peer": "llama-cpp", "model": "", "pooling": "cls", "max_tokens": 512, "threads": 1,
    }  # fmt: skip
    ((_, flag, _),) = peer_contenders(["flagembedding-bf16"], setup, is_chosen=True)
    assert flag.command.options["colbert_dim"] == setup.bundle.manifest.geometry.colbert_dim
    assert flag.command.python == tmp_path / "python"


@pytest.mark.parametrize(
    ("key", "package"),
    [
        ("flagembedding-fp32", "FlagEmbedding"),
        ("st-onnx", "sentence_transformers"),
        ("llama-q8", "llama_cpp"),
    ],
)
def test_an_encoder_takes_its_options_and_lacks_nothing_but_its_package(setup, monkeypatch, tmp_path, key, package):
    with_llama_cpp(monkeypatch, CONVERTER, tmp_path)
    monkeypatch.setattr(models, "environment_of", lambda *_: Path(sys.executable))
    ((_, contender, _),) = peer_contenders([key], setup, is_chosen=True)
    with (
        pytest.raises(WorkerError, match=f"ModuleNotFoundError: No module named '{package}'"),
        WorkerProcess.start(contender.name, contender.command, 1),
    ):
        pass


def test_who_cannot_be_made_ready_is_named_and_the_others_go_on(setup, monkeypatch, tmp_path):
    def ensure(peer, *_):
        if peer == "sentence-transformers":
            raise PeerError("no network")
        return tmp_path / "python"

    monkeypatch.setattr(models, "environment_of", ensure)
    (absent, flag) = peer_contenders(["st-torch", "flagembedding-fp32"], setup, is_chosen=True)
    assert absent == ("st-torch", None, "no network")
    assert flag[1].name == "FlagEmbedding fp32"
    with pytest.raises(InputError, match="there is no peer 'vllm'"):
        list(peer_contenders(["vllm", *PEERS], setup, is_chosen=True))
