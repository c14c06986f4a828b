"""The files by which others open a bundle: transformers, Optimum, sentence-transformers (see tests/environment)."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import openvino
import pytest
import transformers
from tokenizers import AddedToken, Tokenizer

from m3_export.checkpoint.folder import Checkpoint
from m3_export.checkpoint.tokenizer import HARD_TEXTS, CheckpointTokenizer
from m3_export.errors import CheckpointError
from m3_export.library_files import write_library_files
from m3_runtime import Bundle
from m3_runtime.bundle.manifest import Pooling
from m3_runtime.bundle.prompts import Prompts
from m3_runtime.engines.ort import session_config
from m3_runtime.tokenizer import M3Tokenizer

GRAPHS = {"model.onnx": "last_hidden_state.onnx", "model_int8.onnx": "last_hidden_state_int8.onnx"}
WRITTEN = {
    "tokenizer_config.json", "special_tokens_map.json", "modules.json", "1_Pooling/config.json",
    "sentence_bert_config.json", "onnx/last_hidden_state.onnx", "onnx/last_hidden_state_int8.onnx",
}  # fmt: skip
OPENVINO = ("model_int8.xml", "openvino_model.bin")
IDS = np.array([[0, 7, 8, 9, 10, 2], [0, 11, 2, 1, 1, 1]])
BATCH = {"input_ids": IDS, "attention_mask": (IDS != 1).astype(np.int64)}


def session_of(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for key, value in session_config({}, is_int8="int8" in path.name).items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(path, options)


def json_of(path: Path) -> object:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def tokenizer(tiny_random_checkpoint: Path, tiny_bundle: Path) -> CheckpointTokenizer:
    return CheckpointTokenizer.open(tiny_random_checkpoint, Bundle.open(tiny_bundle).manifest.geometry.vocab_size)


def written(
    folder: Path,
    bundle: Path,
    tokenizer: CheckpointTokenizer,
    *graphs: str,
    prompts: Prompts | None = None,
    **changed: object,
) -> Path:
    """A folder that holds some of tiny-random's graphs, and what is written beside them."""
    (folder / "onnx").mkdir()
    for graph in graphs:
        for name in (graph, f"{graph}_data"):
            shutil.copyfile(bundle / "onnx" / name, folder / "onnx" / name)
    model = replace(Bundle.open(bundle).manifest, **changed)
    write_library_files(folder, model, tokenizer, prompts or Prompts())
    return folder


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", ["tiny_bundle", "mini_bundle"])
def test_the_rows_pool_to_the_dense_vectors(request, name, graph):
    bundle = request.getfixturevalue(name)
    (dense,) = session_of(bundle / "onnx" / graph).run(["dense_vecs"], BATCH)
    session = session_of(bundle / "onnx" / GRAPHS[graph])
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [value.name for value in session.get_outputs()] == ["last_hidden_state"]
    np.testing.assert_allclose(pooled(bundle, session.run(None, BATCH)[0]), dense, atol=1e-6)


def pooled(bundle: Path, rows: np.ndarray) -> np.ndarray:
    weights = BATCH["attention_mask"][:, :, None]
    is_cls = Bundle.open(bundle).manifest.pooling is Pooling.CLS
    vectors = rows[:, 0] if is_cls else (rows * weights).sum(axis=1) / weights.sum(axis=1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("name", ["tiny_bundle", "mini_bundle"])
def test_openvinos_rows_pool_to_the_dense_vectors_and_its_weights_are_there_once(request, name):
    bundle = request.getfixturevalue(name)
    folder, core = bundle / "openvino", openvino.Core()
    graphs = core.read_model(folder / "openvino_model.xml"), core.read_model(*(folder / file for file in OPENVINO))
    encoder, heads = (core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}) for graph in graphs)
    assert [[port.any_name for port in ports] for ports in (encoder.inputs, encoder.outputs)] == [
        ["input_ids", "attention_mask"],
        ["last_hidden_state"],
    ]
    np.testing.assert_allclose(pooled(bundle, encoder(BATCH)[0]), heads(BATCH)["dense_vecs"], atol=1e-6)
    assert {path.name for path in folder.iterdir()} == {"openvino_model.xml", *OPENVINO}


@pytest.mark.parametrize("graph", GRAPHS)
def test_no_weight_is_there_twice(tiny_bundle, graph):
    encoder = tiny_bundle / "onnx" / GRAPHS[graph]
    assert encoder.stat().st_size < (tiny_bundle / "onnx" / graph).stat().st_size
    tensors = [value.const_value for value in ir.load(encoder).graph.initializers.values()]
    outside = {tensor.location for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    assert outside == {f"{graph}_data"}
    assert all(tensor.nbytes <= 1024 for tensor in tensors if not isinstance(tensor, ir.ExternalTensor))


@pytest.mark.parametrize("name", ["tiny_bundle", "mini_bundle"])
def test_transformers_reads_the_ids_of_the_runtime(request, name):
    """This environment has transformers 5, tests/environment has 4."""
    bundle = Bundle.open(request.getfixturevalue(name))
    theirs = transformers.AutoTokenizer.from_pretrained(str(bundle.folder), local_files_only=True)
    limit = bundle.manifest.geometry.max_tokens
    texts = [*HARD_TEXTS, "far longer than the model takes " * 200]
    ours = M3Tokenizer.open(bundle.file("tokenizer.json"), bundle.manifest.tokenizer).encode_batch(texts, limit).ids
    assert [theirs(text, truncation=True)["input_ids"] for text in texts] == [ids.tolist() for ids in ours]
    assert theirs.model_max_length == limit
    assert set(theirs("a")) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("pooling", "flag"),
    [
        (Pooling.CLS, "pooling_mode_cls_token"),
        (Pooling.MEAN, "pooling_mode_mean_tokens"),
        (Pooling.LAST_TOKEN, "pooling_mode_lasttoken"),
    ],
)
@pytest.mark.parametrize("normalize", [True, False])
def test_pooling_and_normalisation_are_the_models(tmp_path, tiny_bundle, tokenizer, pooling, flag, normalize):
    folder = written(tmp_path, tiny_bundle, tokenizer, "model.onnx", pooling=pooling, normalize=normalize)
    config = json_of(folder / "1_Pooling/config.json")
    assert [name for name, value in config.items() if value is True] == [flag]
    assert config["word_embedding_dimension"] == 64
    kinds = [module["type"].rpartition(".")[2] for module in json_of(folder / "modules.json")]
    assert kinds == ["Transformer", "Pooling", *["Normalize"] * normalize]


@pytest.mark.parametrize(
    ("graphs", "chosen"), [(tuple(GRAPHS), "model.onnx"), (("model_int8.onnx",), "model_int8.onnx")]
)
def test_fp32_is_what_opens_and_int8_where_there_is_no_other(tmp_path, tiny_bundle, tokenizer, graphs, chosen):
    folder = written(tmp_path, tiny_bundle, tokenizer, *graphs)
    assert json_of(folder / "sentence_bert_config.json") == {
        "max_seq_length": 512,
        "model_args": {"file_name": f"onnx/{GRAPHS[chosen]}"},
    }
    assert {GRAPHS[graph] for graph in graphs} == {path.name for path in folder.glob("onnx/last_hidden_state*")}


def test_without_an_onnx_variant_there_is_a_tokenizer_to_open_and_no_more(tmp_path, tiny_bundle, tokenizer):
    folder = written(tmp_path, tiny_bundle, tokenizer)
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {
        "tokenizer_config.json",
        "special_tokens_map.json",
    }


def test_special_tokens_have_the_rules_of_the_pipeline(tiny_bundle):
    """A library that adds them to the pipeline once more must change nothing there."""
    pipeline = Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
    expected = [pipeline.encode(text).ids for text in HARD_TEXTS]
    special = json_of(tiny_bundle / "special_tokens_map.json")
    assert {name: token["content"] for name, token in special.items()} == {
        "bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>",
        "unk_token": "<unk>", "mask_token": "<mask>",
    }  # fmt: skip
    for token in special.values():
        pipeline.add_special_tokens([AddedToken(**token)])
    assert [pipeline.encode(text).ids for text in HARD_TEXTS] == expected


def test_prompts_are_written_where_there_are_some(tmp_path, tiny_bundle, tokenizer):
    prompts = Prompts({"query": "Frage: ", "passage": ""}, "query")
    folder = written(tmp_path, tiny_bundle, tokenizer, prompts=prompts)
    assert json_of(folder / "config_sentence_transformers.json") == {
        "prompts": {"query": "Frage: ", "passage": ""},
        "default_prompt_name": "query",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompts": {"query": 7}}', "prompt 'query' must be a text"),
        ('{"prompts": {}, "default_prompt_name": "query"}', "which is none of"),
        ("{", "config_sentence_transformers.json: "),
    ],
)
def test_prompts_that_are_none_are_refused(tmp_path, tiny_random_checkpoint, text, message):
    folder = Path(shutil.copytree(tiny_random_checkpoint, tmp_path / "checkpoint"))
    (folder / "config_sentence_transformers.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


def test_a_bundle_without_them_opens_all_the_same(tmp_path, tiny_bundle):
    """As exporters before these files wrote it."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    manifest = json_of(folder / "manifest.json")
    assert {entry["path"] for entry in manifest["files"]} >= WRITTEN
    for path in WRITTEN:
        (folder / path).unlink()
    del manifest["manifest_sha256"]  # they wrote none
    kept = [entry for entry in manifest["files"] if entry["path"] not in WRITTEN]
    (folder / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 3, "files": kept}))
    assert len(Bundle.open(folder, verify="full").manifest.files) == len(kept)
