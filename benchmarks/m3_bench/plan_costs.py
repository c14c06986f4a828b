"""What precisions cost on this processor, measured as the planner does it and kept for planning elsewhere."""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from m3_export.calibration.statistics import gather_statistics
from m3_export.checkpoint.folder import Checkpoint
from m3_export.graph.model import M3Model
from m3_export.options import VariantName
from m3_export.plan.costs import Costs
from m3_export.plan.simulation import QuantizedModel
from m3_export.plan.timing import LAYERS, SmallModels, measure_costs
from m3_runtime.io.progress import Progress

VARIANTS = (VariantName.ONNX_INT8, VariantName.OPENVINO_INT8)
_ROWS, _TOKENS = 4, 64


def plan_costs(checkpoint: Path, progress: Progress, variants: Sequence[VariantName] = VARIANTS) -> tuple[Costs, ...]:
    """Time every precision of every kind of projection on each engine, in models of a checkpoint's first layers.

    Times do not depend on values, so a few rows of noise stand in for calibration texts.

    Raises:
        M3Error: it is no checkpoint, or an engine failed.
    """
    with progress.step(f"Reading the first layers of {checkpoint}"):
        opened = Checkpoint.open(checkpoint)
        model = M3Model(opened, ())
        model.layers = torch.nn.ModuleList(list(model.layers)[:LAYERS])
        rows = np.random.default_rng(0).integers(5, len(model.words), (_ROWS, _TOKENS))
        statistics = gather_statistics(model, list(rows), lambda batches: batches)
    small = SmallModels(QuantizedModel(model, lambda: statistics))
    found = []
    for name in variants:
        track = partial(progress.bar, title=name.value, unit="model")
        with progress.step(f"Timing the precisions of {name.value}"), tempfile.TemporaryDirectory() as work:
            found.append(measure_costs(small, name, opened.geometry, Path(work), track))
    return tuple(found)
