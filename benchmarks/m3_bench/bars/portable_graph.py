"""Our FP32 graph in standard operators, before anything is fused or quantized: what OpenVINO gets for its bf16 row.

python -m m3_bench.bars.portable_graph CHECKPOINT BUNDLE FILE
"""

import argparse
from pathlib import Path

import onnx_ir as ir

from m3_export import passes
from m3_export.checkpoint import Checkpoint
from m3_export.model import M3Model
from m3_export.recipe import Recipe
from m3_export.trace import trace
from m3_runtime import Bundle


def write_portable_graph(checkpoint: Path, bundle: Bundle, path: Path) -> None:
    """Trace a checkpoint as `m3-export` does and save the graph, its weights beside it.

    Raises:
        M3Error: the checkpoint is not what it must be.
    """
    model = M3Model(Checkpoint.open(checkpoint, Recipe()), bundle.manifest.tokenizer.unused_ids)
    ir.save(passes.portable(trace(model)), path, external_data=f"{path.name}.data", size_threshold_bytes=1024)


def main() -> None:
    """Write the graph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    args.file.parent.mkdir(parents=True, exist_ok=True)
    write_portable_graph(args.checkpoint, Bundle.open(args.bundle), args.file)


if __name__ == "__main__":
    main()
