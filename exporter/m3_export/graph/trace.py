"""M3Model to an ONNX graph with an output for each head."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from m3_export.graph.model import M3Model

OPSET = 20  # the first with Gelu as one operator


def trace(model: M3Model) -> ir.Model:
    """Trace with dynamic batch and length, and name what the passes look for.

    Weights stay PyTorch's memory until the graph is saved. What PyTorch's exporter notes about itself is dropped.
    """
    ids = torch.tensor([[0, 5, 6, 7, 2], [0, 5, 2, model.pad_id, model.pad_id]], dtype=torch.int64)
    mask = (ids != model.pad_id).to(torch.int64)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            model,
            (ids, mask),
            dynamo=True,
            opset_version=OPSET,
            input_names=["input_ids", "attention_mask"],
            output_names=[head.output_name for head in model.outputs],
            dynamic_shapes=(axes, axes),
            verbose=False,
        )
    assert program is not None
    return _without_metadata(program.model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's exporter prints its own progress and warns about itself; our users see ours."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def _without_metadata(model: ir.Model) -> ir.Model:
    """Clears doc strings and metadata (source lines, paths of this machine): bytes depend on the weights alone."""
    model.doc_string = None
    model.metadata_props.clear()
    ClearMetadataAndDocStringPass()(model)
    for values in (model.graph.inputs, model.graph.initializers.values(), *(node.outputs for node in model.graph)):
        for value in values:
            value.metadata_props.clear()
    return model
