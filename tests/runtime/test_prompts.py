"""A checkpoint's prompts, as the bundle keeps them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from m3_runtime import Bundle, BundleFormatError, InputError
from m3_runtime.bundle.manifest import FileEntry
from m3_runtime.bundle.prompts import PROMPTS_NAME, Prompts, read_prompts
from m3_runtime.bundle.reader import sha256_of


def with_prompts(bundle: Path, folder: Path, text: str) -> Path:
    """A copy of a bundle that holds and lists a file of prompts."""
    shutil.copytree(bundle, folder)
    path = folder / PROMPTS_NAME
    path.write_text(text, encoding="utf-8")
    manifest = Bundle.open(bundle).manifest
    entry = FileEntry(PROMPTS_NAME, path.stat().st_size, sha256_of(path))
    (folder / "manifest.json").write_text(replace(manifest, files=(*manifest.files, entry)).to_text(), encoding="utf-8")
    return folder


def test_a_bundle_without_them_has_none(tiny_bundle):
    assert read_prompts(Bundle.open(tiny_bundle)) == Prompts({}, None)


def test_a_bundle_gives_back_what_was_written(tiny_bundle, tmp_path):
    prompts = Prompts({"query": "Frage: ", "passage": ""}, "query")
    folder = with_prompts(tiny_bundle, tmp_path / "bundle", json.dumps(prompts.to_json()))
    assert read_prompts(Bundle.open(folder, verify="full")) == prompts


def test_a_file_that_is_not_listed_is_not_read(tiny_bundle, tmp_path):
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (folder / PROMPTS_NAME).write_text('{"prompts": {"query": "forged: "}}')
    assert read_prompts(Bundle.open(folder)) == Prompts()


@pytest.mark.parametrize("text", ["{", "[]", '{"prompts": {"query": 1}}'])
def test_a_malformed_file_is_named(tiny_bundle, tmp_path, text):
    folder = with_prompts(tiny_bundle, tmp_path / "bundle", text)
    with pytest.raises(BundleFormatError, match="export the bundle again"):
        read_prompts(Bundle.open(folder))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected an object"),
        ({"prompts": ["query"]}, "expected an object"),
        ({"prompts": {"query": None}}, "prompt 'query' must be a text"),
        ({"prompts": {"query": ""}, "default_prompt_name": "passage"}, "which is none of"),
        ({"default_prompt_name": "query"}, "which is none of"),
    ],
)
def test_what_they_cannot_be(data, message):
    with pytest.raises(InputError, match=message):
        Prompts.from_json(data)


@pytest.mark.parametrize("data", [{}, {"prompts": None}, {"prompts": {}, "similarity_fn_name": "cosine"}])
def test_a_file_may_have_other_keys_and_no_prompts(data):
    assert Prompts.from_json(data) == Prompts()
