import sys
import threading
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest

from m3_runtime import (
    Bundle,
    BundleFormatError,
    EngineError,
    EngineNotInstalledError,
    InputError,
    M3Encoder,
    VariantError,
)
from m3_runtime.bundle.manifest import ENCODER_HEADS, EngineName, Head, Manifest, Pooling, Variant
from m3_runtime.cpu import CpuInfo, cpu_info, default_threads
from m3_runtime.encode.batching import pack_batch
from m3_runtime.engines import KEPT_TOKENS, Engine, Opening, TokenBatch, ort, select
from m3_runtime.engines import openvino as openvino_engine
from m3_runtime.engines.openvino import compile_properties

VARIANTS = ["onnx-fp32", "onnx-int8", "openvino-int8"]
X86 = CpuInfo("x", "x86_64", frozenset({"avx2", "avx512f", "avx512_vnni"}))
OLD_X86 = CpuInfo("o", "x86_64", frozenset({"avx2"}))
ARM = CpuInfo("a", "aarch64", frozenset({"asimddp"}))


@pytest.fixture(scope="module")
def bundle(tiny_bundle) -> Bundle:
    return Bundle.open(tiny_bundle)


def without(monkeypatch, *engines: EngineName) -> None:
    monkeypatch.setattr(select, "is_installed", lambda engine: engine not in engines)


@pytest.mark.parametrize(
    ("cpu", "missing", "chosen"),
    [
        (X86, (), "openvino-int8"),
        (X86, (EngineName.OPENVINO,), "onnx-int8"),
        (OLD_X86, (), "onnx-int8"),
        (OLD_X86, (EngineName.ONNXRUNTIME,), "openvino-int8"),
        (ARM, (), "onnx-int8"),
    ],
)
def test_the_automatic_choice(bundle, monkeypatch, cpu, missing, chosen):
    without(monkeypatch, *missing)
    monkeypatch.setattr(select, "cpu_info", lambda: cpu)
    elsewhere = replace(bundle.manifest, recipe={**bundle.manifest.recipe, "processor": "another"})
    assert select.choose_variant(Bundle(bundle.folder, _without_needs(elsewhere))).name == chosen


@pytest.mark.parametrize("first", ["onnx-int8", "openvino-int8"])
def test_the_automatic_choice_is_what_the_export_found_fastest_on_such_a_processor(bundle, monkeypatch, first):
    monkeypatch.setattr(select, "cpu_info", lambda: X86)
    order = sorted(["onnx-int8", "openvino-int8"], key=lambda name: name != first)
    recipe = {**bundle.manifest.recipe, "fastest_first": ",".join(order), "processor": X86.multipliers}
    measured = replace(bundle.manifest, recipe=recipe)
    assert select.choose_variant(Bundle(bundle.folder, measured)).name == first
    monkeypatch.setattr(select, "cpu_info", lambda: OLD_X86)
    assert select.choose_variant(Bundle(bundle.folder, _without_needs(measured))).name == "onnx-int8"


def _without_needs(manifest: Manifest) -> Manifest:
    """As a plan without static projections leaves them."""
    return replace(manifest, variants=tuple(replace(variant, needs=()) for variant in manifest.variants))


def over_budget(bundle: Bundle, *names: str) -> Bundle:
    figures = dict.fromkeys(names, ("dense_min 0.9 is below 0.998",))
    return replace(bundle, manifest=replace(bundle.manifest, over_budget=figures))


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("openvino-int8",), "onnx-int8"),
        (("openvino-int8", "onnx-int8"), "onnx-fp32"),
        (("openvino-int8", "onnx-int8", "onnx-fp32"), "openvino-int8"),
    ],
)
def test_variants_over_their_budget_come_last(bundle, monkeypatch, names, chosen):
    monkeypatch.setattr(select, "cpu_info", lambda: X86)
    assert select.choose_variant(over_budget(bundle, *names)).name == chosen


def test_a_variant_over_its_budget_runs_when_it_is_asked_for_or_alone(bundle):
    bundle = over_budget(bundle, "openvino-int8")
    assert select.choose_variant(bundle, "openvino-int8").name == "openvino-int8"
    assert select.choose_variant(bundle, engine="openvino").name == "openvino-int8"


def test_an_engine_narrows_the_choice(bundle):
    assert select.choose_variant(bundle, engine="onnxruntime").name == "onnx-int8"
    assert select.choose_variant(bundle, engine="openvino").name == "openvino-int8"


def test_a_variant_on_another_engine(bundle):
    with pytest.raises(VariantError, match="'onnx-int8' runs on onnxruntime, not on openvino"):
        select.choose_variant(bundle, "onnx-int8", "openvino")


def test_an_engine_that_does_not_exist(bundle):
    with pytest.raises(InputError, match="'onnxruntime', 'openvino', got 'tensorrt'"):
        select.choose_variant(bundle, engine="tensorrt")


@pytest.mark.parametrize("ask", [("openvino-int8", "auto"), ("auto", "openvino")])
def test_a_missing_engine_names_its_extra(bundle, monkeypatch, ask):
    without(monkeypatch, EngineName.OPENVINO)
    with pytest.raises(EngineNotInstalledError, match=r'pip install "m3-runtime\[openvino\]"'):
        select.choose_variant(bundle, *ask)


def test_an_engine_that_cannot_be_imported(tiny_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    without(monkeypatch)
    with pytest.raises(EngineNotInstalledError, match=r"m3-runtime\[openvino\]"):
        M3Encoder.open(tiny_bundle, variant="openvino-int8")


def test_signed_weights_are_converted_only_where_they_would_saturate(monkeypatch):
    for cpu, is_int8, expected in (
        (OLD_X86, True, True),
        (OLD_X86, False, False),
        (X86, True, False),
        (ARM, True, False),
    ):
        monkeypatch.setattr(ort, "cpu_info", lambda cpu=cpu: cpu)
        assert ("session.x64quantprecision" in ort.session_config({}, is_int8=is_int8)) == expected


def test_a_variant_may_change_our_options():
    config = ort.session_config({"session.intra_op.allow_spinning": "1"}, is_int8=False)
    assert config["session.intra_op.allow_spinning"] == "1"
    assert compile_properties({"PERFORMANCE_HINT": "THROUGHPUT"}, 3)["PERFORMANCE_HINT"] == "THROUGHPUT"


def kept(monkeypatch, owner, name: str) -> list:
    """What a callable of an engine's own library returns from now on."""
    real, found = getattr(owner, name), []

    def call(*arguments, **options):
        found.append(real(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(owner, name, call)
    return found


def test_openvino_is_given_our_options(bundle, monkeypatch):
    models = kept(monkeypatch, openvino.Core, "compile_model")
    select.open_engine(bundle, bundle.variant("openvino-int8"), 1).close()
    (compiled,) = models
    hint = compile_properties(bundle.variant("openvino-int8").properties, 1)["INFERENCE_PRECISION_HINT"]
    assert compiled.get_property("ENABLE_CPU_PINNING") is False
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == hint


def test_onnxruntime_is_given_our_options(bundle, monkeypatch):
    sessions = kept(monkeypatch, onnxruntime, "InferenceSession")
    select.open_engine(bundle, bundle.variant("onnx-int8"), 1).close()
    options = sessions[0].get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize(
    ("cpu", "runs_as"),
    [
        (X86, "f32"),
        (ARM, "f32"),
        (replace(X86, flags=X86.flags | {"avx512_bf16"}), "bf16"),
        (replace(X86, flags=X86.flags | {"amx_bf16"}), "bf16"),
        (replace(ARM, flags=ARM.flags | {"bf16"}), "bf16"),
    ],
)
def test_bf16_runs_where_it_is_multiplied(monkeypatch, caplog, cpu, runs_as):
    caplog.set_level("INFO", "m3_runtime")
    cpu = replace(cpu, name=f"of {monkeypatch} {sorted(cpu.flags)}")  # said once a text: this test's own
    monkeypatch.setattr(openvino_engine, "cpu_info", lambda: cpu)
    for _ in range(2):
        assert compile_properties({"INFERENCE_PRECISION_HINT": "bf16"}, 1)["INFERENCE_PRECISION_HINT"] == runs_as
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (runs_as == "f32")
    assert all(cpu.name in line and "bf16" in line and "f32" in line for line in said)


@pytest.mark.parametrize("properties", [{}, {"INFERENCE_PRECISION_HINT": "f32"}])
def test_what_asks_for_no_bf16_gets_none(properties):
    """OpenVINO would take bf16 by itself where the processor has it."""
    assert compile_properties(properties, 1)["INFERENCE_PRECISION_HINT"] == "f32"


@pytest.mark.parametrize("name", VARIANTS)
def test_only_what_is_asked_for_comes_back(bundle, name):
    engine = select.open_engine(bundle, bundle.variant(name), 1, Opening(takes_padded=True))
    batch = TokenBatch(np.array([[0, 5, 2], [0, 2, 1]]), np.array([[1, 1, 1], [1, 1, 0]]))
    raw = engine.run(batch, [Head.SPARSE])
    assert raw.dense_vecs is raw.colbert_vecs is None
    assert raw.token_weights is not None
    assert raw.token_weights.shape == (2, 3)
    everything = engine.run(batch, list(ENCODER_HEADS))
    assert everything.dense_vecs is not None
    assert everything.colbert_vecs is not None
    assert everything.dense_vecs.shape == (2, bundle.manifest.geometry.hidden_size)
    assert everything.colbert_vecs.shape == (2, 2, bundle.manifest.geometry.colbert_dim)
    engine.close()


def batch_of(*lengths: int, vocabulary: int) -> TokenBatch:
    """Texts of noise, padded to the longest; the first and last token of each are special."""
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(sum(lengths)).integers(4, vocabulary - 1, mask.shape)
    ids[:, 0] = 0
    for row, length in zip(ids, lengths, strict=True):
        row[length - 1], row[length:] = 2, 1
    return TokenBatch(ids, mask)


@pytest.fixture(scope="module", params=VARIANTS)
def engine_and_noise(request, bundle):
    """Each variant's engine, and how far two ways to one result may differ: an INT8 step may fall to the other side."""
    opened = select.open_engine(bundle, bundle.variant(request.param), 1, Opening(takes_padded=True))
    yield opened, 1e-6 if request.param == "onnx-fp32" else 2e-3
    opened.close()


@pytest.mark.parametrize("lengths", [(2,), (40,), (512,), (17, 17, 17), (30, 4, 11)])
def test_dense_alone_is_dense_of_all_heads(bundle, engine_and_noise, lengths):
    engine, noise = engine_and_noise
    batch = batch_of(*lengths, vocabulary=bundle.manifest.geometry.vocab_size)
    alone, everything = engine.run(batch, [Head.DENSE]), engine.run(batch, list(ENCODER_HEADS))
    assert alone.token_weights is alone.colbert_vecs is None
    assert everything.token_weights.shape == batch.input_ids.shape
    np.testing.assert_allclose(alone.dense_vecs, everything.dense_vecs, rtol=0, atol=noise)


def test_padded_rows_are_refused_where_their_attention_is_left_out(bundle):
    engine = select.open_engine(bundle, bundle.variant("openvino-int8"), 1)
    with pytest.raises(EngineError, match="padded"):
        engine.run(batch_of(3, 2, vocabulary=bundle.manifest.geometry.vocab_size), list(ENCODER_HEADS))
    engine.close()


def test_dense_alone_of_a_text_and_of_a_batch(bundle, engine_and_noise):
    engine, noise = engine_and_noise
    batch = batch_of(25, 25, 25, 25, vocabulary=bundle.manifest.geometry.vocab_size)
    together = engine.run(batch, [Head.DENSE]).dense_vecs
    for i in range(4):
        single = TokenBatch(batch.input_ids[i : i + 1], batch.attention_mask[i : i + 1])
        alone = engine.run(single, [Head.DENSE]).dense_vecs
        np.testing.assert_allclose(alone[0], together[i], rtol=0, atol=noise)


def test_all_heads_are_whole_again_after_a_dense_call(bundle, engine_and_noise):
    engine, noise = engine_and_noise
    batch = batch_of(25, 25, vocabulary=bundle.manifest.geometry.vocab_size)
    before = engine.run(batch, list(ENCODER_HEADS))
    engine.run(batch, [Head.DENSE])
    after = engine.run(batch, list(ENCODER_HEADS))
    for name in ("dense_vecs", "token_weights", "colbert_vecs"):
        np.testing.assert_allclose(getattr(after, name), getattr(before, name), rtol=0, atol=noise)


@pytest.mark.parametrize("name", VARIANTS)
def test_others_see_two_inputs_and_get_every_token(bundle, name):
    """Whoever runs the file without this runtime need not know of `kept_tokens`."""
    variant = bundle.variant(name)
    path = bundle.file(variant.graph)
    batch = batch_of(30, 30, vocabulary=bundle.manifest.geometry.vocab_size)
    feeds = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if variant.engine is EngineName.OPENVINO:
        core = openvino.Core()
        read = core.read_model(path, bundle.file(next(file for file in variant.files if file.endswith(".bin"))))
        optional = {node.get_friendly_name() for node in read.get_ordered_ops() if node.get_type_name() == "Constant"}
        model = core.compile_model(read, "CPU", dict(variant.properties))
        required = [value.any_name for value in model.inputs]
        found = {value.any_name: array for value, array in model(feeds).items()}
    else:
        options = ort.session_options(variant.properties, 1, is_int8=variant.precision != "fp32")
        session = onnxruntime.InferenceSession(path, options)
        optional = {value.name for value in session.get_overridable_initializers()}
        required = [value.name for value in session.get_inputs()]
        found = dict(zip([head.output_name for head in ENCODER_HEADS], session.run(None, feeds), strict=True))
    assert sorted(required) == ["attention_mask", "input_ids"]
    assert KEPT_TOKENS in optional
    engine = select.open_engine(bundle, variant, 1)
    ours = engine.run(batch, list(ENCODER_HEADS))
    engine.close()
    for head in ENCODER_HEADS:
        wanted = getattr(ours, head.output_name)
        assert found[head.output_name].shape == wanted.shape
        np.testing.assert_allclose(found[head.output_name], wanted, rtol=0, atol=2e-3)


def some_batch(rng: np.random.Generator, vocabulary: int) -> TokenBatch:
    """Texts of noise, packed or not."""
    texts = [rng.integers(4, vocabulary - 1, rng.integers(2, 64)).astype(np.int32) for _ in range(rng.integers(1, 20))]
    if rng.integers(2):
        return pack_batch([texts[::2], texts[1::2]] if len(texts) > 1 else [texts], 1, Pooling.CLS)
    return batch_of(*[int(rng.integers(2, 200))] * int(rng.integers(1, 5)), vocabulary=vocabulary)


def test_what_a_packing_engine_has_run_before_changes_nothing(bundle):
    """OpenVINO lets tensors share memory that grows with the shapes that come: the first run of each must be right."""
    rng, variant = np.random.default_rng(0), bundle.variant("openvino-int8")
    assert variant.packed_tokens
    for _ in range(4):
        engine = select.open_engine(bundle, variant, 1)
        for _ in range(10):
            batch = some_batch(rng, bundle.manifest.geometry.vocab_size)
            heads = list(ENCODER_HEADS) if rng.integers(2) else [Head.DENSE]
            first, again = engine.run(batch, heads), engine.run(batch, heads)
            for head in heads:
                np.testing.assert_array_equal(getattr(first, head.output_name), getattr(again, head.output_name))
        engine.close()


SHOWS_KEPT = """<ir_version: 10, opset_import: ["" : 20]>
g (int64[B,T] input_ids, int64[B,T] attention_mask{}) => (float[B,K] dense_vecs, float[B,M] token_weights)
<int64[1] first = {{0}}, int64[1] axis = {{1}}, int64[1] kept_tokens = {{1000}}> {{
    rows = Slice(input_ids, first, {}, axis)
    dense_vecs = Cast<to=1>(rows)
    marks = Slice(attention_mask, first, {}, axis)
    token_weights = Cast<to=1>(marks)
}}
"""


def variant_of(engine: str, packed_tokens: int = 0) -> Variant:
    return Variant("a", EngineName(engine), "fp32", "graph", (), {}, (), packed_tokens=packed_tokens)


@pytest.fixture(params=["onnxruntime", "openvino"])
def open_graph(request, tmp_path):
    """Opens a graph, given as ONNX text, with an engine."""

    def opened(text: str) -> Engine:
        path = tmp_path / "graph.onnx"
        onnx.save(onnx.parser.parse_model(text), path)
        if request.param == "onnxruntime":
            return select.open_graph(path, variant_of("onnxruntime"), 1)
        openvino.save_model(openvino.convert_model(path), tmp_path / "graph.xml", compress_to_fp16=False)
        return select.open_graph(tmp_path / "graph.xml", variant_of("openvino"), 1)

    return opened


def widths(engine: Engine, *heads: Head) -> list[int]:
    batch = TokenBatch(np.full((2, 9), 5), np.ones((2, 9), np.int64))
    raw = engine.run(batch, heads)
    return [array.shape[1] for array in (raw.dense_vecs, raw.token_weights) if array is not None]


def test_one_token_is_kept_when_dense_alone_is_asked_for(open_graph):
    engine = open_graph(SHOWS_KEPT.format(", int64[1] kept_tokens", "kept_tokens", "kept_tokens"))
    assert widths(engine, Head.DENSE) == [1]
    assert widths(engine, Head.SPARSE) == [9]
    assert widths(engine, Head.DENSE, Head.SPARSE) == [9, 9]
    assert widths(engine, Head.DENSE) == [1]
    engine.close()


def test_a_variant_that_is_said_to_pack_and_cannot(tmp_path):
    onnx.save(onnx.parser.parse_model(SHOWS_KEPT.format("", "kept_tokens", "kept_tokens")), tmp_path / "graph.onnx")
    openvino.save_model(openvino.convert_model(tmp_path / "graph.onnx"), tmp_path / "graph.xml")
    with pytest.raises(BundleFormatError, match="cannot pack"):
        select.open_graph(tmp_path / "graph.xml", variant_of("openvino", packed_tokens=64), 1)


def test_a_graph_that_knows_no_kept_tokens(open_graph):
    """Mean pooling needs every row; so does a bundle that an older exporter wrote."""
    ends = "int64[1] kept_tokens = {1000}", "int64[1] all = {1000}"
    engine = open_graph(SHOWS_KEPT.format("", "all", "all").replace(*ends))
    assert widths(engine, Head.DENSE) == [9]
    assert widths(engine, Head.DENSE, Head.SPARSE) == [9, 9]
    engine.close()


@pytest.mark.parametrize("name", VARIANTS)
def test_results_are_not_written_over_by_the_next_run(bundle, name):
    engine = select.open_engine(bundle, bundle.variant(name), 1)
    ones = np.ones((1, 3), np.int64)
    first = engine.run(TokenBatch(np.array([[0, 5, 2]]), ones), list(ENCODER_HEADS))
    kept = [array.copy() for array in (first.dense_vecs, first.token_weights, first.colbert_vecs) if array is not None]
    engine.run(TokenBatch(np.array([[0, 9, 2]]), ones), list(ENCODER_HEADS))
    for array, copy in zip((first.dense_vecs, first.token_weights, first.colbert_vecs), kept, strict=True):
        assert array is not None
        assert np.array_equal(array, copy)
    engine.close()


@pytest.mark.parametrize("name", VARIANTS)
def test_the_engines_own_errors_are_translated(bundle, name):
    engine = select.open_engine(bundle, bundle.variant(name), 1)
    wrong = TokenBatch(np.array([0, 5, 2]), np.ones(3, np.int64))  # one axis too few
    with pytest.raises(EngineError, match="failed on a batch") as caught:
        engine.run(wrong, list(ENCODER_HEADS))
    assert caught.value.__cause__ is not None
    engine.close()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_closed_engine_says_so(bundle, name):
    engine = select.open_engine(bundle, bundle.variant(name), 1)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(TokenBatch(np.array([[0, 2]]), np.ones((1, 2), np.int64)), list(ENCODER_HEADS))


@pytest.mark.parametrize("name", VARIANTS)
def test_eight_threads_get_the_same_results_as_one(tiny_bundle, name, texts):
    with M3Encoder.open(tiny_bundle, variant=name, threads=1) as encoder:
        alone = encoder.encode(texts, return_sparse=True, return_colbert_vecs=True)
        different: list[str] = []

        def work() -> None:
            for _ in range(5):
                result = encoder.encode(texts, return_sparse=True, return_colbert_vecs=True)
                if not np.array_equal(result["dense_vecs"], alone["dense_vecs"]):
                    different.append("dense")
                if result["lexical_weights"] != alone["lexical_weights"]:
                    different.append("sparse")
                if not all(map(np.array_equal, result["colbert_vecs"], alone["colbert_vecs"])):
                    different.append("colbert")

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not different


def test_this_machine():
    assert cpu_info().name
    assert 1 <= default_threads() <= 4096
