"""Graphs that several tests look at, traced once: a trace takes seconds, however small the model."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from test_graph import UNUSED, checkpoint_of

from m3_export.graph import passes
from m3_export.graph.model import M3Model
from m3_export.graph.trace import trace
from made_once import made_once


@pytest.fixture(scope="session")
def portable_graph(shared_folder: Path) -> Callable[..., ir.Model]:
    """The portable graph of `checkpoint_of(**options)`, a copy for each caller; name no option that is the default."""

    def graph_of(**options: object) -> ir.Model:
        def write(path: Path) -> None:
            ir.save(passes.portable(trace(M3Model(checkpoint_of(**options), UNUSED))), path)

        name = "-".join(["graph", *(f"{key}={value}" for key, value in sorted(options.items()))])
        return ir.load(made_once(shared_folder / "graphs" / f"{name}.onnx", write))

    return graph_of
