"""The folder of compiled forms: it is used, it changes nothing, and what is wrong in it is never run."""

import json
import logging
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino
import pytest

from m3_runtime import Bundle, InputError, M3Encoder
from m3_runtime.cpu import CpuInfo
from m3_runtime.engines import compiled_cache
from m3_runtime.engines.compiled_cache import compile_cached, variant_folder
from m3_runtime.manifest import FileEntry, Variant

NAME = "openvino-int8"
ALL = {"return_sparse": True, "return_colbert_vecs": True}


def opened(bundle: Path, cache: Path | None, **options) -> M3Encoder:
    return M3Encoder.open(bundle, variant=NAME, threads=1, cache_dir=cache, **options)


def is_from_cache(encoder: M3Encoder) -> bool:
    return encoder._engine._model.get_property("LOADED_FROM_CACHE")


def vectors(encoder: M3Encoder, texts: list[str]) -> list[np.ndarray]:
    with encoder:
        found = encoder.encode(texts, **ALL)
    return [found.dense_vecs, found.sparse.weights, *found.colbert_vecs]


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(map(np.array_equal, first, second))


def the_blob(cache: Path) -> Path:
    (blob,) = cache.glob("*/*.blob")
    return blob


def damage(path: Path, change) -> None:
    path.chmod(path.stat().st_mode | stat.S_IWUSR)
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


def flip_every_weight_bit(data: bytearray) -> None:
    """The last part of a blob holds weights."""
    for i in range(len(data) // 2, len(data)):
        data[i] ^= 0x10


def test_the_second_opening_uses_the_cache_and_gives_the_same_bits(tiny_bundle, tmp_path, texts):
    cache = tmp_path / "deep" / "cache"
    plain = vectors(opened(tiny_bundle, None), texts)
    first, second = opened(tiny_bundle, cache), opened(tiny_bundle, cache)
    assert not is_from_cache(first)
    assert is_from_cache(second)
    assert same(vectors(first, texts), plain)
    assert same(vectors(second, texts), plain)


def test_dense_alone_works_from_the_cache(tiny_bundle, tmp_path, texts):
    opened(tiny_bundle, tmp_path).close()
    with opened(tiny_bundle, tmp_path) as cached, opened(tiny_bundle, None) as plain:
        assert is_from_cache(cached)
        assert np.array_equal(cached.encode(texts).dense_vecs, plain.encode(texts).dense_vecs)


@pytest.mark.parametrize(
    "change", [flip_every_weight_bit, lambda data: data.reverse(), lambda data: data.clear(), lambda data: data.pop()]
)
def test_a_damaged_form_is_made_anew(tiny_bundle, tmp_path, texts, caplog, change):
    plain = vectors(opened(tiny_bundle, tmp_path), texts)
    damage(the_blob(tmp_path), change)
    repaired = opened(tiny_bundle, tmp_path)
    assert not is_from_cache(repaired)
    assert any("damaged" in message for message in caplog.messages)
    assert same(vectors(repaired, texts), plain)
    healthy = opened(tiny_bundle, tmp_path)
    assert is_from_cache(healthy)
    assert same(vectors(healthy, texts), plain)


@pytest.mark.parametrize("content", ["", "{}", "[", '{"release": "other", "files": {}}'])
def test_a_seal_that_says_something_else_is_not_believed(tiny_bundle, tmp_path, content):
    opened(tiny_bundle, tmp_path).close()
    (seal,) = tmp_path.glob("*/seal.json")
    seal.write_text(content)
    with opened(tiny_bundle, tmp_path) as encoder:
        assert not is_from_cache(encoder)
    assert json.loads(seal.read_text())["files"].keys() == {the_blob(tmp_path).name}


def test_a_form_of_another_release_is_not_read(tmp_path):
    seen: list[set[str]] = []

    def note(place: Path) -> None:
        seen.append({path.name for path in place.iterdir()})
        (place / "x").touch()

    for release in ("1", "1", "2", "2"):
        compile_cached(note, tmp_path / "form", release)
    assert seen == [set(), {"seal.json", "x"}, set(), {"seal.json", "x"}]


def test_what_the_form_depends_on_is_in_its_name(tiny_bundle, tmp_path, monkeypatch):
    bundle = Bundle.open(tiny_bundle)
    variant = bundle.variant(NAME)
    folder = variant_folder(tmp_path, bundle, variant, 1)
    assert folder == variant_folder(tmp_path, Bundle.open(tiny_bundle), variant, 1)

    def with_file(path: str) -> Bundle:
        files = tuple(FileEntry(f.path, f.size_bytes, "0" * 64) if f.path == path else f for f in bundle.manifest.files)
        return replace(bundle, manifest=replace(bundle.manifest, files=files))

    def with_property(changed: Variant) -> Path:
        return variant_folder(tmp_path, bundle, replace(changed, properties={"INFERENCE_PRECISION_HINT": "bf16"}), 1)

    others = {variant_folder(tmp_path, with_file(path), variant, 1) for path in variant.files}
    others |= {with_property(variant), variant_folder(tmp_path, bundle, variant, 2)}
    monkeypatch.setattr(compiled_cache, "cpu_info", lambda: CpuInfo("other", "x86_64", frozenset()))
    others.add(variant_folder(tmp_path, bundle, variant, 1))
    assert len(others) == len(variant.files) + 3
    assert folder not in others
    monkeypatch.undo()
    assert folder == variant_folder(tmp_path, with_file("tokenizer.json"), variant, 1), "it has nothing to do with it"


def word_table(graph: Path) -> bytes:
    """The largest int8 constant of an OpenVINO graph."""
    nodes = openvino.Core().read_model(graph).get_ordered_ops()
    constants = [node for node in nodes if node.get_type_name() == "Constant"]
    tables = [node.data for node in constants if node.get_element_type() == openvino.Type.i8]
    return max(tables, key=lambda table: table.size).tobytes()


def test_a_changed_bundle_is_compiled_anew(tiny_bundle, bundle_copy, tmp_path, texts):
    """The same names and sizes, other word vectors."""
    cache = tmp_path / "cache"
    first = vectors(opened(bundle_copy, cache), texts)
    bundle = Bundle.open(bundle_copy)
    weights = bundle.file(next(path for path in bundle.variant(NAME).files if path.endswith(".bin")))
    content, words = weights.read_bytes(), word_table(bundle.file(bundle.variant(NAME).graph))
    place, old = content.index(words), compiled_cache.sha256_of(weights)
    weights.unlink()
    weights.write_bytes(content[:place] + words[::-1] + content[place + len(words) :])
    manifest = bundle_copy / "manifest.json"
    text = manifest.read_text().replace(old, compiled_cache.sha256_of(weights))
    manifest.unlink()
    manifest.write_text(text)
    changed = opened(bundle_copy, cache)
    assert not is_from_cache(changed)
    changed_vectors = vectors(changed, texts)
    assert not same(changed_vectors, first)
    assert same(changed_vectors, vectors(opened(bundle_copy, None), texts))
    with opened(tiny_bundle, cache) as original:
        assert is_from_cache(original), "the form of the unchanged files is still there"


def test_an_opening_that_fails_leaves_nothing(tmp_path):
    def fail(place: Path) -> None:
        (place / "half").write_text("x")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        compile_cached(fail, tmp_path / "form", "1")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_stays(tmp_path):
    old, young = tmp_path / ".form.old", tmp_path / ".form.young"
    for folder in (old, young):
        folder.mkdir()
        (folder / "half").write_text("x")
    os.utime(old, (0, 0))
    compile_cached(lambda place: (place / "x").touch(), tmp_path / "form", "1")
    assert {path.name for path in tmp_path.iterdir()} == {".form.young", "form"}


def test_who_is_second_takes_what_is_there(tmp_path):
    """Two processes compile at once: the first to finish is kept, and neither fails."""
    folder = tmp_path / "form"

    def overtaken(place: Path) -> str:
        (place / "x").write_text("second")
        compile_cached(lambda other: (other / "x").write_text("first"), folder, "1")
        return "compiled"

    assert compile_cached(overtaken, folder, "1") == "compiled"
    assert (folder / "x").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["form"]


def test_a_place_that_is_no_folder_is_refused(tiny_bundle, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cache_dir .* cannot be used"):
        opened(tiny_bundle, tmp_path / "file")


def test_a_place_that_cannot_be_written_is_told_and_not_used(tmp_path, caplog):
    missing = tmp_path / "gone" / "form"
    with caplog.at_level(logging.WARNING):
        assert compile_cached(lambda place: place, missing, "1") is None
    assert any("nothing is kept" in message for message in caplog.messages)


def test_onnx_runtime_keeps_nothing(tiny_bundle, tmp_path, texts):
    with M3Encoder.open(tiny_bundle, variant="onnx-int8", threads=1, cache_dir=tmp_path) as encoder:
        encoder.encode(texts)
    assert list(tmp_path.iterdir()) == []
