"""The files of compiled forms: they are used, they change nothing, and what is wrong in them is never run."""

import logging
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino
import pytest

from m3_runtime import Bundle, InputError, M3Encoder
from m3_runtime.bundle.manifest import FileEntry, Variant
from m3_runtime.bundle.reader import sha256_of
from m3_runtime.cpu import CpuInfo
from m3_runtime.engines import compiled_cache
from m3_runtime.engines.compiled_cache import CompiledForm, cache_file, keep_form, kept_form

NAME = "openvino-int8"
ALL = {"return_sparse": True, "return_colbert_vecs": True}
FORM = CompiledForm(b"\nsome\nbytes\0", {"kept_tokens": np.array([1 << 30])})


def opened(bundle: Path, cache: Path | None, **options) -> M3Encoder:
    return M3Encoder.open(bundle, variant=NAME, threads=1, cache_dir=cache, **options)


@pytest.fixture
def is_compiled(monkeypatch) -> Callable[[], bool]:
    """Whether OpenVINO has compiled anything since the last call."""
    calls: list[str] = []
    compile_model = openvino.Core.compile_model

    def noted(*arguments, **options):
        calls.append("compile")
        return compile_model(*arguments, **options)

    monkeypatch.setattr(openvino.Core, "compile_model", noted)

    def ask() -> bool:
        found = bool(calls)
        calls.clear()
        return found

    return ask


def vectors(encoder: M3Encoder, texts: list[str]) -> list[np.ndarray]:
    """All heads, and the dense head alone, which takes another way through the graph."""
    with encoder:
        found = encoder.encode(texts, **ALL)
        return [found.dense_vecs, found.sparse.weights, *found.colbert_vecs, encoder.encode(texts).dense_vecs]


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(map(np.array_equal, first, second))


def the_file(cache: Path) -> Path:
    (file,) = cache.iterdir()
    return file


def damage(path: Path, change) -> None:
    path.chmod(path.stat().st_mode | stat.S_IWUSR)
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def flip_bits(data: bytearray) -> None:
    for i in range(len(data) // 2, len(data)):
        data[i] ^= 0x10


def test_the_second_opening_uses_the_cache_and_gives_the_same_bits(tiny_bundle, tmp_path, texts, is_compiled):
    cache = tmp_path / "deep" / "cache"
    plain = vectors(opened(tiny_bundle, None), texts)
    is_compiled()
    assert same(vectors(opened(tiny_bundle, cache), texts), plain)
    assert is_compiled()
    assert same(vectors(opened(tiny_bundle, cache), texts), plain)
    assert not is_compiled()


def test_real_weights_are_not_kept_twice_and_give_the_same_bits(mini_bundle, tmp_path, texts, is_compiled):
    compiled = vectors(opened(mini_bundle, tmp_path), texts)
    is_compiled()
    assert the_file(tmp_path).stat().st_size < (mini_bundle / "openvino" / "openvino_model.bin").stat().st_size / 4
    assert same(vectors(opened(mini_bundle, tmp_path), texts), compiled)
    assert not is_compiled()


@pytest.mark.parametrize(
    "change",
    [flip_bits, bytearray.reverse, bytearray.clear, bytearray.pop, lambda data: data.insert(0, ord("\n"))],
)
def test_a_damaged_form_is_made_anew(tiny_bundle, tmp_path, texts, caplog, change, is_compiled):
    plain = vectors(opened(tiny_bundle, tmp_path), texts)
    damage(the_file(tmp_path), change)
    is_compiled()
    assert same(vectors(opened(tiny_bundle, tmp_path), texts), plain)
    assert is_compiled()
    assert any("damaged" in message for message in caplog.messages)
    assert same(vectors(opened(tiny_bundle, tmp_path), texts), plain)
    assert not is_compiled()


def test_what_is_kept_is_what_comes_back(tmp_path):
    for form in (FORM, CompiledForm(b"", {})):
        keep_form(tmp_path / "form", form, "1")
        kept = kept_form(tmp_path / "form", "1")
        assert kept is not None
        assert (kept.export, kept.defaults) == (form.export, form.defaults)
        assert kept_form(tmp_path / "form", "2") is None
    assert kept_form(tmp_path / "other", "1") is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[\n", b"1\n", b'{"release": "1", "defaults": {}, "sha256": ""}\nx'])
def test_a_file_that_says_something_else_is_not_believed(tmp_path, content, caplog):
    (tmp_path / "form").write_bytes(content)
    assert kept_form(tmp_path / "form", "1") is None
    assert any("damaged" in message for message in caplog.messages)


def test_a_form_that_answers_otherwise_is_not_kept(tiny_bundle, tmp_path, texts, monkeypatch, caplog):
    """OpenVINO reads back another graph than it wrote: here that of another bundle's weights."""
    plain = vectors(opened(tiny_bundle, None), texts)
    weights = tmp_path / "weights.bin"
    weights.write_bytes((tiny_bundle / "openvino" / "openvino_model.bin").read_bytes()[::-1])
    import_model = openvino.Core.import_model

    def misled(core, form, device, config):
        return import_model(core, form, device, {**config, "WEIGHTS_PATH": str(weights)})

    monkeypatch.setattr(openvino.Core, "import_model", misled)
    cache = tmp_path / "cache"
    assert same(vectors(opened(tiny_bundle, cache), texts), plain)
    assert list(cache.iterdir()) == []
    assert any("nothing is kept" in message for message in caplog.messages)


def test_what_the_form_depends_on_is_in_its_name(tiny_bundle, tmp_path, monkeypatch):
    bundle = Bundle.open(tiny_bundle)
    variant = bundle.variant(NAME)
    file = cache_file(tmp_path, bundle, variant, 1)
    assert file == cache_file(tmp_path, Bundle.open(tiny_bundle), variant, 1)

    def with_file(path: str) -> Bundle:
        files = tuple(FileEntry(f.path, f.size_bytes, "0" * 64) if f.path == path else f for f in bundle.manifest.files)
        return replace(bundle, manifest=replace(bundle.manifest, files=files))

    def with_property(changed: Variant) -> Path:
        return cache_file(tmp_path, bundle, replace(changed, properties={"INFERENCE_PRECISION_HINT": "bf16"}), 1)

    others = {cache_file(tmp_path, with_file(path), variant, 1) for path in variant.files}
    others |= {with_property(variant), cache_file(tmp_path, bundle, variant, 2)}
    monkeypatch.setattr(compiled_cache, "cpu_info", lambda: CpuInfo("other", "x86_64", frozenset()))
    others.add(cache_file(tmp_path, bundle, variant, 1))
    assert len(others) == len(variant.files) + 3
    assert file not in others
    monkeypatch.undo()
    assert file == cache_file(tmp_path, with_file("tokenizer.json"), variant, 1), "it has nothing to do with it"


def word_table(graph: Path, weights: Path) -> bytes:
    """The largest int8 constant of an OpenVINO graph."""
    nodes = openvino.Core().read_model(graph, weights).get_ordered_ops()
    constants = [node for node in nodes if node.get_type_name() == "Constant"]
    tables = [node.data for node in constants if node.get_element_type() == openvino.Type.i8]
    return max(tables, key=lambda table: table.size).tobytes()


def test_a_changed_bundle_is_compiled_anew(tiny_bundle, bundle_copy, tmp_path, texts, is_compiled):
    """The same names and sizes, other word vectors."""
    cache = tmp_path / "cache"
    first = vectors(opened(bundle_copy, cache), texts)
    bundle = Bundle.open(bundle_copy)
    weights = bundle.file(next(path for path in bundle.variant(NAME).files if path.endswith(".bin")))
    content, words = weights.read_bytes(), word_table(bundle.file(bundle.variant(NAME).graph), weights)
    place, old = content.index(words), sha256_of(weights)
    weights.unlink()
    weights.write_bytes(content[:place] + words[::-1] + content[place + len(words) :])
    manifest = bundle_copy / "manifest.json"
    text = manifest.read_text().replace(old, sha256_of(weights))
    manifest.unlink()
    manifest.write_text(text)
    is_compiled()
    changed_vectors = vectors(opened(bundle_copy, cache), texts)
    assert is_compiled()
    assert not same(changed_vectors, first)
    assert same(changed_vectors, vectors(opened(bundle_copy, None), texts))
    is_compiled()
    opened(tiny_bundle, cache).close()
    assert not is_compiled(), "the form of the unchanged files is still there"


def test_a_place_that_is_no_folder_is_refused(tiny_bundle, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cache_dir .* cannot be used"):
        opened(tiny_bundle, tmp_path / "file")


def test_a_place_that_cannot_be_written_is_named_and_not_used(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        keep_form(tmp_path / "gone" / "form", FORM, "1")
    assert any("nothing is kept" in message for message in caplog.messages)


def test_onnx_runtime_keeps_nothing(tiny_bundle, tmp_path, texts):
    with M3Encoder.open(tiny_bundle, variant="onnx-int8", threads=1, cache_dir=tmp_path) as encoder:
        encoder.encode(texts)
    assert list(tmp_path.iterdir()) == []
