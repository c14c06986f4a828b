"""The whole graph: M3Model, its trace and its fused form against transformers' XLM-R and FlagEmbedding's heads."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from graphs import optimised

from m3_export.checkpoint.classifier import ClassifierWeights
from m3_export.checkpoint.folder import Checkpoint, encoder_shapes
from m3_export.checkpoint.heads import HeadWeights
from m3_export.checkpoint.pooling import PoolingChoice
from m3_export.graph import passes
from m3_export.verify.reference import reference_outputs
from m3_runtime.bundle.manifest import ENCODER_HEADS, Geometry, Pooling
from m3_runtime.engines import KEPT_TOKENS
from m3_runtime.engines.ort import session_config

UNUSED = (0, 1, 2, 3)
POOLINGS = ({"pooling": Pooling.MEAN}, {"pooling": Pooling.LAST_TOKEN}, {"normalize": False})
CONFIG = {
    "model_type": "xlm-roberta",
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "type_vocab_size": 1,
    "hidden_act": "gelu",
}


def checkpoint_of(
    *,
    positions: int = 80,
    layers: int = 2,
    pooling=Pooling.CLS,
    normalize=True,
    dense_only=False,
    reranker=False,
    twins=False,
    seed=0,
) -> Checkpoint:
    """A tiny random checkpoint in memory: H 32, 2 heads, C 12, 50 ids; or a reranker of that size.

    Twins are keys and queries with the same weights.
    """
    dense_only = dense_only or reranker
    geometry = Geometry(layers, 2, 32, 64, 50, positions - 2, None if dense_only else 12)
    generator = torch.Generator().manual_seed(seed)

    def noise(shape):
        return torch.randn(shape, generator=generator)

    encoder = {
        name: 1 + 0.1 * noise(shape) if name.endswith("LayerNorm.weight") else 0.3 * noise(shape)
        for name, shape in encoder_shapes(geometry, positions).items()
    }
    for name in ("weight", "bias") if twins else ():
        prefix = "encoder.layer.0.attention.self"
        encoder[f"{prefix}.key.{name}"] = encoder[f"{prefix}.query.{name}"].clone()
    sizes = {
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "vocab_size": 50,
        "max_position_embeddings": positions,
    }
    return Checkpoint(
        folder=None,  # type: ignore[arg-type]  # nothing here reads files
        config={**CONFIG, **sizes},
        encoder=encoder,
        sparse=None if dense_only else HeadWeights(noise((1, 32)), noise((1,))),
        colbert=None if dense_only else HeadWeights(noise((12, 32)), noise((12,))),
        pooling=PoolingChoice(pooling, "flag", normalize, "flag"),
        geometry=geometry,
        pad_id=1,
        classifier=ClassifierWeights(
            HeadWeights(0.2 * noise((32, 32)), 0.1 * noise((32,))), HeadWeights(noise((1, 32)), noise((1,)))
        )
        if reranker
        else None,
    )


def session_of(model: ir.Model, folder) -> ort.InferenceSession:
    ir.save(model, folder / "model.onnx", external_data="model.onnx.data")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for key, value in session_config({}, is_int8=True).items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(folder / "model.onnx", options)


def texts_of(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(sum(lengths))
    # ids below 4 occur too: literal specials and unknowns inside a text carry no lexical weight
    return [np.array([0, *rng.integers(2, 50, length - 2), 2]) for length in lengths]


def padded(texts: list[np.ndarray]) -> dict[str, np.ndarray]:
    longest = max(map(len, texts))
    ids = np.full((len(texts), longest), 1, np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text
    lengths = np.array([len(text) for text in texts])
    return {"input_ids": ids, "attention_mask": (np.arange(longest)[None] < lengths[:, None]).astype(np.int64)}


def assert_equals_reference(session: ort.InferenceSession, checkpoint: Checkpoint, texts: list[np.ndarray]) -> None:
    """The bounds of an FP32 export: dense and token weights 1e-5, ColBERT 1e-4."""
    reference = reference_outputs(checkpoint, texts, UNUSED, lambda rows: rows)
    batch = padded(texts)
    outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, batch), strict=True))
    np.testing.assert_allclose(outputs["dense_vecs"], reference.dense, atol=1e-5, rtol=0)
    if reference.lexical is None:
        assert set(outputs) == {"dense_vecs"}
        return
    for i, text in enumerate(texts):
        got: dict[int, float] = {}
        for token, weight in zip(batch["input_ids"][i], outputs["token_weights"][i], strict=True):
            if weight > 0:
                got[int(token)] = max(got.get(int(token), 0.0), float(weight))
        assert got.keys() == reference.lexical[i].keys()
        assert all(abs(got[k] - w) <= 1e-5 for k, w in reference.lexical[i].items())
        rows = outputs["colbert_vecs"][i]
        np.testing.assert_allclose(rows[: len(text) - 1], reference.colbert[i], atol=1e-4, rtol=0)
        assert not rows[len(text) - 1 :].any()


@pytest.fixture(scope="module")
def sessions(portable_graph, tmp_path_factory):
    """The traced and the fused graph of one checkpoint."""
    graph = portable_graph()
    fused = passes.for_onnxruntime(graph)
    return checkpoint_of(), {
        "portable": session_of(graph, tmp_path_factory.mktemp("portable")),
        "fused": session_of(fused, tmp_path_factory.mktemp("fused")),
    }


@pytest.mark.parametrize("form", ["portable", "fused"])
@pytest.mark.parametrize("lengths", [(3,), (2,), (78,), (9, 9, 9), (11, 4), (3, 78, 20, 5), (2, 3)])
def test_equals_pytorch(sessions, form, lengths):
    checkpoint, by_form = sessions
    assert_equals_reference(by_form[form], checkpoint, texts_of(*lengths))


@pytest.mark.parametrize("form", ["portable", "fused"])
def test_inputs_and_outputs_are_as_documented(sessions, form):
    _, by_form = sessions
    session = by_form[form]
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("input_ids", "tensor(int64)", ["batch", "tokens"]),
        ("attention_mask", "tensor(int64)", ["batch", "tokens"]),
    ]
    assert [o.name for o in session.get_outputs()] == [head.output_name for head in ENCODER_HEADS]


def test_unused_ids_and_padding_have_no_weight(sessions):
    _, by_form = sessions
    batch = padded([np.array([0, 3, 9, 3, 2, 9, 2]), np.array([0, 9, 2])])
    weights = by_form["fused"].run(["token_weights"], batch)[0]
    assert not weights[np.isin(batch["input_ids"], UNUSED)].any()
    assert (weights >= 0).all()


@pytest.mark.parametrize("options", [{}, *({"layers": 1, **options} for options in POOLINGS)])
def test_pooling_and_normalisation(portable_graph, options, tmp_path):
    checkpoint, model = checkpoint_of(**options), passes.for_onnxruntime(portable_graph(**options))
    session = session_of(model, tmp_path)
    is_cls = checkpoint.pooling.pooling is Pooling.CLS
    assert (KEPT_TOKENS in model.graph.initializers) == is_cls  # the others read every row
    if checkpoint.pooling.normalize:
        assert_equals_reference(session, checkpoint, texts_of(9, 5, 30))
        lengths = np.linalg.norm(session.run(["dense_vecs"], padded(texts_of(9, 5)))[0], axis=1)
        np.testing.assert_allclose(lengths, 1, atol=1e-6)
    else:  # the bounds are for unit vectors; here they scale with the vectors
        reference = reference_outputs(checkpoint, texts_of(9, 5, 30), UNUSED, lambda rows: rows)
        dense, _, colbert = session.run(None, padded(texts_of(9, 5, 30)))
        np.testing.assert_allclose(dense, reference.dense, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(colbert[1, :4], reference.colbert[1], rtol=1e-4, atol=1e-3)


def test_dense_only_has_one_output(portable_graph, tmp_path):
    checkpoint = checkpoint_of(layers=1, dense_only=True)
    session = session_of(passes.for_onnxruntime(portable_graph(layers=1, dense_only=True)), tmp_path)
    assert_equals_reference(session, checkpoint, texts_of(6, 12))


def test_8192_tokens(portable_graph, tmp_path):
    """To the end of BGE-M3's position table, on one layer: the flash branch alone, the masked branch in a batch."""
    options = {"positions": 8194, "layers": 1}
    session = session_of(passes.for_onnxruntime(portable_graph(**options)), tmp_path)
    assert_equals_reference(session, checkpoint_of(**options), texts_of(8192))
    assert_equals_reference(session, checkpoint_of(**options), texts_of(4096, 17))


def test_what_onnxruntime_runs(portable_graph, tmp_path):
    checkpoint, graph = checkpoint_of(), portable_graph()
    found = optimised(passes.for_onnxruntime(graph), tmp_path)
    layers = checkpoint.geometry.layers
    assert found["MultiHeadAttention"] == 2 * layers  # a branch with and one without padding
    assert found["LayerNormalization"] == 2 * layers + 1
    assert found["BiasGelu"] == layers  # fused by ONNX Runtime itself
    assert not {"Softmax", "SkipLayerNormalization", "Gelu"} & found.keys()
    assert "com.microsoft" not in graph.opset_imports  # the portable graph is left as it was


def test_fusing_leaves_the_portable_graph_runnable(portable_graph, tmp_path):
    graph = portable_graph()
    passes.for_onnxruntime(graph)
    assert_equals_reference(session_of(graph, tmp_path), checkpoint_of(), texts_of(5, 9))


def test_the_graph_names_no_file_of_the_exporting_machine(portable_graph, tmp_path):
    session_of(passes.for_onnxruntime(portable_graph()), tmp_path)
    content = (tmp_path / "model.onnx").read_bytes()
    assert b".py" not in content
    assert b"stack_trace" not in content


def test_weights_that_are_equal_stay_correct(portable_graph, tmp_path):
    """The exporter merges equal initializers; projections that share their weights must still be told apart."""
    options = {"layers": 1, "twins": True}
    session = session_of(passes.for_onnxruntime(portable_graph(**options)), tmp_path)
    assert_equals_reference(session, checkpoint_of(**options), texts_of(7, 20))
