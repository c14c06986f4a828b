"""bge-m3-lite's own two steps from the Hub's graph to what it runs: fuse, then quantize by its recipe.

Both are the package's public functions with their defaults: SmoothQuant 0.5 calibrated on the texts that come with
it, uint8 rows with a zero point, uint8 weights with zero point 128, attention and FFN in loops over 256 rows.
"""

import argparse
import json
import sys
from pathlib import Path


def main() -> None:
    """Build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds model.onnx, model.onnx_data and sentencepiece.bpe.model")
    parser.add_argument("--calibration-texts", type=int, help="only so many, evenly chosen (default: all)")
    args = parser.parse_args()

    from bge_m3_lite.fuse import fuse
    from bge_m3_lite.quantize import load_calibration_texts, quantize

    texts = load_calibration_texts()
    available = len(texts)
    if args.calibration_texts is not None:
        texts = texts[:: max(1, len(texts) // args.calibration_texts)]
    print("bge-m3-lite: fusing", file=sys.stderr, flush=True)
    fuse(args.folder / "model.onnx")
    print(f"bge-m3-lite: quantizing, calibrated on {len(texts)} texts", file=sys.stderr, flush=True)
    quantize(args.folder / "model_fused.onnx", args.folder / "model_int8.onnx", calibration_texts=texts)
    (args.folder / "built.json").write_text(json.dumps({"calibration_texts": len(texts), "of": available}))


if __name__ == "__main__":
    main()
