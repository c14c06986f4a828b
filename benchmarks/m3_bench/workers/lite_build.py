"""bge-m3-lite's own two steps from the Hub's graph to what it runs: fuse, then quantize by its recipe.

Both are the package's public functions with their defaults: SmoothQuant 0.5 calibrated on the texts that come with
it, uint8 rows with a zero point, uint8 weights with zero point 128, attention and FFN in loops over 256 rows.
"""

import json
import sys
from pathlib import Path


def build(folder: str) -> None:
    """Build in a folder that holds model.onnx, model.onnx_data and sentencepiece.bpe.model."""
    from bge_m3_lite.fuse import fuse
    from bge_m3_lite.quantize import load_calibration_texts, quantize

    fuse(Path(folder) / "model.onnx")
    fused, quantized = (Path(folder) / f"model_{name}.onnx" for name in ("fused", "int8"))
    quantize(fused, quantized, calibration_texts=load_calibration_texts())


if __name__ == "__main__":
    build(**json.loads(sys.argv[1]))
