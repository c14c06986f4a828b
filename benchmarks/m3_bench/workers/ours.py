"""A variant of a bundle, through `M3Encoder`; or another graph of the same model on OpenVINO, for comparison."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m3_bench.workers.serve import serve
from m3_runtime import Bundle, Encoding, M3Encoder
from m3_runtime.engines.openvino import OpenVinoEngine
from m3_runtime.manifest import EngineName
from m3_runtime.tokenizer import M3Tokenizer


class BundleEncoder:
    """`M3Encoder.encode`, whole texts up to the model's limit."""

    def __init__(self, encoder: M3Encoder) -> None:
        self._encoder = encoder

    def run(self, texts: Sequence[str], heads: Sequence[str]) -> Encoding:
        """See `serve.Encoder.run`."""
        return self._encoder.encode(
            list(texts),
            max_length=self._encoder.max_tokens,
            return_dense="dense" in heads,
            return_sparse="sparse" in heads,
            return_colbert_vecs="colbert" in heads,
        )

    def inspect(self, result: Encoding) -> tuple[float, Sequence[float]]:
        """See `serve.Encoder.inspect`."""
        dense = result.dense_vecs
        return float(np.sum(result.token_counts)), [] if dense is None else dense[0].tolist()


def encoder_of_graph(bundle: Bundle, graph: Path, properties: dict[str, str], threads: int) -> M3Encoder:
    """The bundle's tokenizer and heads around another graph."""
    info = bundle.manifest.tokenizer
    tokenizer = M3Tokenizer.open(bundle.file(info.path), info)
    engine = OpenVinoEngine.open(graph, properties, threads)
    stand_in = next((v for v in bundle.manifest.variants if v.engine is EngineName.OPENVINO), None)
    return M3Encoder(bundle, stand_in or bundle.manifest.variants[0], tokenizer, engine)


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", default="auto")
    parser.add_argument("--graph", type=Path)
    parser.add_argument("--property", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()

    def open_encoder() -> BundleEncoder:
        if args.graph is None:
            return BundleEncoder(M3Encoder.open(args.bundle, variant=args.variant, threads=args.threads))
        properties = dict(item.split("=", 1) for item in args.property)
        return BundleEncoder(encoder_of_graph(Bundle.open(args.bundle), args.graph, properties, args.threads))

    on_openvino = args.graph is not None or args.variant.startswith("openvino")
    serve(open_encoder, ("openvino" if on_openvino else "onnxruntime", "tokenizers", "numpy"))


if __name__ == "__main__":
    main()
