"""The graphs that others are given compute what the checkpoint says."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.fusion_options import FusionOptions

from m3_bench.peers.hub_graph import write_hub_graph
from m3_export.checkpoint.folder import Checkpoint
from m3_export.verify.reference import encoder_of

IDS = np.array([[0, 5, 6, 7, 2], [0, 9, 2, 1, 1]])


@pytest.fixture(scope="module")
def hub_graph(tiny_random_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    write_hub_graph(tiny_random_checkpoint, folder)
    return folder / "model.onnx"


def test_the_hub_graph_is_transformers_encoder(hub_graph, tiny_random_checkpoint):
    mask = (IDS != 1).astype(np.int64)
    session = onnxruntime.InferenceSession(str(hub_graph), providers=["CPUExecutionProvider"])
    (got,) = session.run(["token_embeddings"], {"input_ids": IDS, "attention_mask": mask})
    encoder = encoder_of(Checkpoint.open(tiny_random_checkpoint))
    with torch.inference_mode():
        inputs = {"input_ids": torch.from_numpy(IDS), "attention_mask": torch.from_numpy(mask)}
        expected = encoder(**inputs).last_hidden_state.numpy()
    np.testing.assert_allclose(got[mask == 1], expected[mask == 1], atol=1e-4)


def test_bge_m3_lites_fusion_finds_its_patterns_in_the_hub_graph(hub_graph):
    """It runs onnxruntime's BERT fusion and refuses a graph whose every layer did not fuse."""
    fused = optimizer.optimize_model(
        str(hub_graph),
        model_type="bert",
        num_heads=4,
        hidden_size=64,
        optimization_options=FusionOptions("bert"),
        opt_level=0,
    )
    found = fused.get_fused_operator_statistics()
    assert (found["Attention"], found["SkipLayerNormalization"], found["BiasGelu"]) == (2, 4, 2)
    names = {node.name for node in fused.model.graph.node}
    wanted = ("attention/output/dense/MatMul", "intermediate/dense/MatMul", "layer.1/output/dense/MatMul")
    for ending in wanted:  # by which it finds what to smooth
        assert any(name.endswith(ending) for name in names), ending
