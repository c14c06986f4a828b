import json
import os
import shutil
from pathlib import Path

import pytest

from m3_runtime import (
    Bundle,
    BundleDamagedError,
    BundleError,
    BundleFormatError,
    BundleNotFoundError,
    EngineError,
    InputError,
    M3Encoder,
    M3Error,
    VariantError,
    Verify,
)
from m3_runtime.bundle import reader as bundle_module
from m3_runtime.bundle.manifest import Manifest, check_digest
from m3_runtime.bundle.reader import sha256_of

GOLDEN = Path(__file__).parents[1] / "golden"
GRAPH = "onnx/model.onnx"


def replace_file(path: Path, content: bytes) -> None:
    path.unlink()  # a hard link: writing into it would change the original
    path.write_bytes(content)


def change_manifest(bundle: Path, change) -> None:
    path = bundle / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    replace_file(path, json.dumps(data).encode())


def test_a_whole_bundle_opens_fully_verified(tiny_bundle):
    bundle = Bundle.open(tiny_bundle, verify=Verify.FULL)
    assert {variant.name for variant in bundle.manifest.variants} == {"onnx-fp32", "onnx-int8", "openvino-int8"}
    assert set(bundle.manifest.parity) == {variant.name for variant in bundle.manifest.variants}


def test_a_bundle_older_than_packing_runs_by_length(bundle_copy):
    texts = ["What is BGE M3?", "", "Ein Satz"]

    def forget(manifest):
        for variant in manifest["variants"]:
            del variant["packed_tokens"]

    with M3Encoder.open(bundle_copy, variant="openvino-int8", threads=1) as packing:
        assert packing.variant.packed_tokens
        expected = packing.encode(texts).dense_vecs
    change_manifest(bundle_copy, forget)
    with M3Encoder.open(bundle_copy, variant="openvino-int8", threads=1) as by_length:
        assert not by_length.variant.packed_tokens
        found = by_length.encode(texts).dense_vecs
    assert (found * expected).sum(axis=1).min() > 0.999


def test_missing_folder(tmp_path):
    with pytest.raises(BundleNotFoundError, match="does not exist"):
        M3Encoder.open(tmp_path / "nowhere")


def test_a_folder_that_is_a_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BundleNotFoundError, match="m3-export"):
        M3Encoder.open(tmp_path)


def test_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleNotFoundError, match="it is a file"):
        M3Encoder.open(tmp_path / "file")


def test_cut_off_file(bundle_copy):
    path = bundle_copy / GRAPH
    replace_file(path, path.read_bytes()[:-1])
    with pytest.raises(BundleDamagedError, match=r"model\.onnx' is damaged: expected \d+ bytes, got \d+"):
        M3Encoder.open(bundle_copy)


def test_missing_file(bundle_copy):
    (bundle_copy / GRAPH).unlink()
    with pytest.raises(BundleDamagedError, match="is missing"):
        M3Encoder.open(bundle_copy)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    replace_file(path, bytes(content))


@pytest.mark.parametrize("verify", list(Verify))
def test_changes_of_small_files_are_always_found(bundle_copy, verify):
    flip_a_bit(bundle_copy / "tokenizer.json")
    with pytest.raises(BundleDamagedError, match=r"tokenizer\.json' is damaged: expected SHA-256"):
        Bundle.open(bundle_copy, verify=verify)


def test_changes_of_large_files_are_found_by_full_verification(bundle_copy, monkeypatch):
    path = bundle_copy / "tokenizer.json"
    monkeypatch.setattr(bundle_module, "SMALL_FILE_BYTES", path.stat().st_size - 1)
    flip_a_bit(path)
    Bundle.open(bundle_copy, verify="size")
    with pytest.raises(BundleDamagedError, match="expected SHA-256"):
        Bundle.open(bundle_copy, verify="full")


def test_unknown_verification(tiny_bundle):
    with pytest.raises(InputError, match="verify must be"):
        Bundle.open(tiny_bundle, verify="somewhat")


def test_newer_schema(bundle_copy):
    change_manifest(bundle_copy, lambda data: data.update(schema_version=99, something_new=1))
    with pytest.raises(BundleFormatError, match=r"schema version 99.*upgrade"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("version", [None, "1", True, 0])
def test_a_schema_version_that_is_none(bundle_copy, version):
    change_manifest(bundle_copy, lambda data: data.update(schema_version=version))
    with pytest.raises(BundleFormatError):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"null",
        b'{"schema_version": 1}',
        b"[" * 100_000,
        b'{"files": ' * 100_000,
        b'{"schema_version": 1, "files": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"schema_version": 1, "\\ud800": 1}',
    ],
    ids=lambda content: repr(content[:40]),
)
def test_a_manifest_that_is_none(bundle_copy, content):
    replace_file(bundle_copy / "manifest.json", content)
    with pytest.raises(BundleFormatError):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("surrogate", ["\ud800", "\udc80", "onnx/\udfff.onnx"])
@pytest.mark.parametrize("key", ["path", "sha256"])
def test_lone_surrogates(bundle_copy, key, surrogate):
    change_manifest(bundle_copy, lambda data: data["files"][0].update({key: surrogate}))
    with pytest.raises(BundleFormatError, match="surrogates not allowed"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("path", ["nowhere", "a" * 5000, "a/" * 5000 + "b"])
def test_paths_that_lead_nowhere(bundle_copy, path):
    change_manifest(bundle_copy, lambda data: data["files"][0].update(path=path))
    with pytest.raises(BundleDamagedError, match="is missing"):
        Bundle.open(bundle_copy)


def test_a_link_that_leads_to_itself(bundle_copy):
    path = bundle_copy / "tokenizer.json"
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(BundleDamagedError, match="is missing"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("path", ["../outside", "/etc/hostname", "a/../../b", "", "..\\outside", "C:/x", "a\0b"])
def test_paths_that_leave_the_bundle(bundle_copy, path):
    change_manifest(bundle_copy, lambda data: data["files"][0].update(path=path))
    with pytest.raises(BundleFormatError, match="not a path inside"):
        Bundle.open(bundle_copy)


def test_a_link_that_leaves_the_bundle(bundle_copy, tmp_path):
    path = bundle_copy / "tokenizer.json"
    outside = tmp_path / "outside.json"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)
    with pytest.raises(BundleFormatError, match=r"leads out of the bundle, to .*local_dir="):
        Bundle.open(bundle_copy)


def test_a_manifest_that_is_elsewhere(bundle_copy, tmp_path):
    (bundle_copy / "manifest.json").rename(tmp_path / "manifest.json")
    (bundle_copy / "manifest.json").symlink_to(tmp_path / "manifest.json")
    with pytest.raises(BundleFormatError, match=r"'manifest\.json' is a link .*local_dir="):
        Bundle.open(bundle_copy)


def test_a_graph_that_the_manifest_does_not_list(bundle_copy):
    change_manifest(bundle_copy, lambda data: data["variants"][0].update(graph="onnx/other.onnx"))
    with pytest.raises(BundleFormatError, match="does not list"):
        Bundle.open(bundle_copy)


def test_a_variant_that_is_not_there(tiny_bundle):
    with pytest.raises(VariantError, match="no variant 'onnx-int4'; it has: onnx-fp32, onnx-int8, openvino-int8"):
        M3Encoder.open(tiny_bundle, variant="onnx-int4")


def test_a_graph_that_is_garbage_of_the_right_size(bundle_copy):
    path = bundle_copy / GRAPH
    replace_file(path, b"\x00" * path.stat().st_size)

    def sign(data):
        (entry,) = (entry for entry in data["files"] if entry["path"] == GRAPH)
        entry["sha256"] = sha256_of(path)

    change_manifest(bundle_copy, sign)
    with pytest.raises(EngineError, match=r"model\.onnx"):
        M3Encoder.open(bundle_copy, variant="onnx-fp32")


def test_over_budget_is_of_variants_that_are_there(bundle_copy):
    change_manifest(bundle_copy, lambda data: data.update(over_budget={"onnx-int8": ["dense_min"]}))
    assert Bundle.open(bundle_copy).manifest.over_budget == {"onnx-int8": ("dense_min",)}
    change_manifest(bundle_copy, lambda data: data.update(over_budget={"onnx-int4": ["dense_min"]}))
    with pytest.raises(BundleFormatError, match=r"over_budget .*onnx-int4"):
        Bundle.open(bundle_copy)


def test_an_unknown_engine_property(bundle_copy):
    def change(data):
        for variant in data["variants"]:
            variant["properties"] = {"NO_SUCH_PROPERTY": "1"}

    change_manifest(bundle_copy, change)
    with pytest.raises(BundleFormatError, match="NO_SUCH_PROPERTY"):
        M3Encoder.open(bundle_copy, variant="onnx-fp32")
    with pytest.raises(M3Error, match="NO_SUCH_PROPERTY"):
        M3Encoder.open(bundle_copy, variant="openvino-int8")


def test_every_bit_of_the_manifest_counts(bundle_copy):
    path = bundle_copy / "manifest.json"
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        replace_file(path, bytes(changed))
        with pytest.raises(BundleError):
            Bundle.open(bundle_copy, verify="full")
    replace_file(path, content)
    Bundle.open(bundle_copy, verify="full")


def test_a_manifest_without_a_digest_opens(bundle_copy):
    """As older exporters wrote it."""
    change_manifest(bundle_copy, lambda data: (data.pop("manifest_sha256"), data.update(schema_version=3)))
    Bundle.open(bundle_copy, verify="full")


@pytest.mark.parametrize(
    "name", ["layers", "attention_heads", "hidden_size", "ffn_size", "vocab_size", "max_tokens", "colbert_dim"]
)
@pytest.mark.parametrize("value", [-1, 0, 2**31, 10**30, 1e30])
def test_sizes_that_no_model_has(bundle_copy, name, value):
    change_manifest(bundle_copy, lambda data: data["geometry"].update({name: value}))
    with pytest.raises(BundleFormatError, match=name):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("name", ["cls_id", "pad_id", "eos_id", "unk_id"])
@pytest.mark.parametrize("value", [-1, 2**31, 10**30])
def test_ids_outside_the_vocabulary(bundle_copy, name, value):
    change_manifest(bundle_copy, lambda data: data["tokenizer"].update({name: value}))
    with pytest.raises(BundleFormatError, match=r"expected an integer|outside the vocabulary"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e300, 10**400])
def test_figures_that_are_no_numbers(bundle_copy, value):
    change_manifest(bundle_copy, lambda data: data["parity"]["onnx-fp32"].update(padded_dense_min=value))
    with pytest.raises(BundleFormatError, match="padded_dense_min: expected a number"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize(
    "change", [{"space_id": "m3-1+0f"}, {"vocabulary": True}, {"vocabulary": True, "space_id": "b+1"}]
)
def test_a_space_of_fewer_pieces_without_what_was_dropped_and_the_other_way_round(bundle_copy, change):
    def forge(data):
        paths = {"pieces_path": "tokenizer.json", "pipeline_path": "tokenizer.json"}
        fewer = {"rows": 9, "full_space_id": data["space_id"], "chosen_by": "hand", "loss": {}, **paths}
        data.update(change | ({"vocabulary": fewer} if "vocabulary" in change else {}))

    change_manifest(bundle_copy, forge)
    with pytest.raises(BundleFormatError, match=r"space_id .* and vocabulary do not fit"):
        Bundle.open(bundle_copy)


# A snapshot in the cache of huggingface_hub; what it downloads itself is opened in tests/exporter/test_hub.py


def in_cache(bundle: Path, repo: Path) -> Path:
    """The bundle as a snapshot of links to blobs."""
    snapshot, blobs = repo / "snapshots" / "0123abc", repo / "blobs"
    blobs.mkdir(parents=True)
    bundle.rename(repo / "moved")
    for path in sorted(path for path in (repo / "moved").rglob("*") if path.is_file()):
        link = snapshot / path.relative_to(repo / "moved")
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = path.rename(blobs / sha256_of(path))
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


@pytest.fixture
def snapshot(bundle_copy, tmp_path):
    return in_cache(bundle_copy, tmp_path / "hub" / "models--me--bge-m3-cpu")


def test_a_snapshot_opens_and_every_digest_counts(snapshot, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").symlink_to(tmp_path / "hub")
    for folder in (snapshot, tmp_path / "elsewhere" / "models--me--bge-m3-cpu" / "snapshots" / "0123abc"):
        with M3Encoder.open(folder, verify="full") as encoder:
            assert encoder.encode("a text").dense_vecs.shape == (64,)
    with pytest.raises(BundleNotFoundError, match=f"did you mean '{snapshot}'"):
        Bundle.open(snapshot.parents[1])
    monkeypatch.chdir(snapshot)
    Bundle.open(".")
    for name, verify in (("tokenizer.json", "size"), ("manifest.json", "full"), ("onnx/model.onnx_data", "full")):
        blob = (snapshot / name).resolve()
        content = blob.read_bytes()
        flip_a_bit(blob)
        with pytest.raises(BundleError):
            Bundle.open(snapshot, verify=verify)
        replace_file(blob, content)


def lead(link: Path, target: Path) -> None:
    link.unlink()
    link.symlink_to(target)


@pytest.mark.parametrize("name", ["manifest.json", "onnx/model.onnx_data"])
@pytest.mark.parametrize("place", ["models--other/blobs/0", "models--me--bge-m3-cpu/0", "blobs/ab/0"])
@pytest.mark.parametrize("is_through_own", [False, True])
def test_links_out_of_the_snapshots_own_repository(snapshot, tmp_path, name, place, is_through_own):
    """Of another repository; beside the blobs; in the store that repositories of a cache share."""
    link, stranger = snapshot / name, tmp_path / "hub" / place
    stranger.parent.mkdir(parents=True, exist_ok=True)
    blob = link.resolve()
    blob.rename(stranger)
    if is_through_own:
        blob.symlink_to(stranger)
    else:
        lead(link, stranger)
    with pytest.raises(BundleFormatError, match=f"{name}' is a link that leads out of the bundle, to .*local_dir="):
        Bundle.open(snapshot)


def test_folders_that_only_look_like_a_cache(bundle_copy, tmp_path):
    with pytest.raises(BundleFormatError, match="local_dir="):
        Bundle.open(in_cache(bundle_copy, tmp_path / "my-models"))


def test_links_of_a_cache_that_lead_to_nothing(snapshot):
    blob = (snapshot / "tokenizer.json").resolve()
    blob.unlink()
    with pytest.raises(BundleDamagedError, match=r"'tokenizer\.json' is missing \(a link to '.*blobs/.*not there\)"):
        Bundle.open(snapshot)
    blob.symlink_to(snapshot / "tokenizer.json")  # and back
    with pytest.raises(BundleDamagedError, match="is missing"):
        Bundle.open(snapshot)


def test_a_copy_without_links_is_a_bundle(snapshot, tmp_path):
    Bundle.open(shutil.copytree(snapshot, tmp_path / "copy"), verify="full")


# Older bundles


@pytest.mark.parametrize("version", [2, 3])
def test_manifests_of_older_releases(version):
    text = (GOLDEN / f"manifest_v{version}.json").read_text()
    manifest = Manifest.from_text(text)
    check_digest(text)
    assert manifest.schema_version == version
    assert "onnx/model.onnx.data" in {entry.path for entry in manifest.files}


def test_weights_have_another_name_in_older_bundles(bundle_copy, tiny_bundle):
    def older(content: bytes) -> bytes:
        return content.replace(b".onnx_data", b".onnx.data")

    for path in [*bundle_copy.glob("onnx/*"), bundle_copy / "manifest.json"]:
        content = older(path.read_bytes())
        replace_file(path.rename(older(bytes(path)).decode()), content)

    def sign(data):
        data["schema_version"] = 3
        del data["manifest_sha256"]
        for entry in data["files"]:
            entry["sha256"] = sha256_of(bundle_copy / entry["path"])

    change_manifest(bundle_copy, sign)
    assert not list(bundle_copy.rglob("*_data"))
    for variant in ("onnx-fp32", "onnx-int8"):
        with (
            M3Encoder.open(bundle_copy, variant=variant, verify="full", threads=1) as old,
            M3Encoder.open(tiny_bundle, variant=variant, threads=1) as new,
        ):
            assert (old.encode("a text").dense_vecs == new.encode("a text").dense_vecs).all()
