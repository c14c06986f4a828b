"""What is made for peers before they run; the peers themselves live in environments that tests do not have."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from m3_bench.bars import contenders, gguf
from m3_bench.bars.contenders import hub_cache
from m3_bench.bars.spm_file import spm_bytes
from m3_bench.errors import PeerError


def source(path, names) -> None:
    """A source archive, laid out as llama-cpp-python's."""
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            info = tarfile.TarInfo(f"llama_cpp_python-0.3.36/{name}")
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))


def test_the_converter_is_taken_from_the_source_of_the_pinned_release(tmp_path, monkeypatch):
    asked = []

    def download(name, words, threads):
        asked.extend(words)
        names = ("README.md", "vendor/llama.cpp/src/llama.cpp")
        names += ("vendor/llama.cpp/convert_hf_to_gguf.py", "vendor/llama.cpp/gguf-py/gguf/vocab.py")
        source(tmp_path / "llama_cpp_python-0.3.36.tar.gz", names)

    monkeypatch.setattr(gguf, "run_to_end", download)
    gguf.fetch_converter(tmp_path)
    assert "llama_cpp_python==0.3.36" in asked
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"convert_hf_to_gguf.py", "gguf-py/gguf/vocab.py"}


def test_a_source_without_a_converter_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf, "run_to_end", lambda *_, **__: source(tmp_path / "x.tar.gz", ("README.md",)))
    with pytest.raises(PeerError, match="has no convert_hf_to_gguf"):
        gguf.fetch_converter(tmp_path)


def test_the_hubs_cache_points_to_the_checkpoint(setup, tiny_random_checkpoint):
    cache = hub_cache(replace(setup, checkpoint=tiny_random_checkpoint))
    revision = (cache / "models--BAAI--bge-m3" / "refs" / "main").read_text()
    snapshot = cache / "models--BAAI--bge-m3" / "snapshots" / revision
    for path in tiny_random_checkpoint.iterdir():
        assert (snapshot / path.name).resolve() == path.resolve()


def test_a_checkpoint_is_converted_once_for_each_precision(setup, tiny_random_checkpoint, monkeypatch, tmp_path):
    made = []

    def convert(python, converter, checkpoint, precision, model):
        made.append((checkpoint, precision))
        model.write_bytes(b"GGUF")

    monkeypatch.setattr(contenders, "ensure_environment", lambda *_: tmp_path / "python")
    monkeypatch.setattr(contenders, "fetch_converter", lambda folder: None)
    monkeypatch.setattr(contenders, "convert", convert)
    given = replace(setup, checkpoint=tiny_random_checkpoint)
    first, again, other = (contenders.llama_cpp(precision, given) for precision in ("q8_0", "q8_0", "f16"))
    assert first == again != other
    assert [precision for _, precision in made] == ["q8_0", "f16"]
    assert first.arguments[1:] == ("--pooling", "cls", "--max-tokens", "512", "--threads", "1")


def test_the_converter_is_given_a_sentencepiece_file_beside_the_checkpoints_own(
    mini_m3_checkpoint, monkeypatch, tmp_path
):
    seen = {}

    def run(name, words, threads):
        seen.update({path.name: path.read_bytes()[:64] if path.is_file() else b"" for path in Path(words[2]).iterdir()})
        Path(words[4]).write_bytes(b"GGUF")

    monkeypatch.setattr(gguf, "run_to_end", run)
    gguf.convert(tmp_path / "python", tmp_path, mini_m3_checkpoint, "q8_0", tmp_path / "model.gguf")
    assert seen.keys() >= {path.name for path in mini_m3_checkpoint.iterdir()} | {"sentencepiece.bpe.model"}
    assert spm_bytes(mini_m3_checkpoint / "tokenizer.json").startswith(seen["sentencepiece.bpe.model"])
