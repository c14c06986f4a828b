"""The peers as contenders: each in its own environment, on the bundle's own checkpoint."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from m3_bench.errors import BenchError
from m3_bench.peers.environments import Peer
from m3_bench.peers.models import Setup, gguf_model, lite_model
from m3_bench.run.contenders import ContenderSpec
from m3_bench.scenarios import ALL_HEADS, SCORE
from m3_bench.worker_process import Command
from m3_runtime import Bundle
from m3_runtime.cpu import cpu_info
from m3_runtime.errors import InputError

_LLAMA_TOKENS = 2048  # more would reserve gigabytes for scores of attention that no query needs


def _lite(key: str, setup: Setup, precision: str) -> ContenderSpec:
    folder = lite_model(setup)
    # its fused graph holds new Q/K/V weights, and takes the others from the file it was made of
    files = ("model_int8.onnx*",) if precision == "int8" else ("model_fused.onnx*", "model.onnx_data")
    size = sum(path.stat().st_size for name in files for path in folder.glob(name))
    command = _command(Peer.LITE, setup, folder=str(folder), precision=precision)
    return ContenderSpec(key, f"bge-m3-lite {precision}", False, "onnxruntime", precision, ALL_HEADS, size, command)


def _flagembedding(key: str, setup: Setup, precision: str) -> ContenderSpec:
    width, size = setup.bundle.manifest.geometry.colbert_dim or -1, _weights_bytes(setup)
    command = _command(Peer.FLAGEMBEDDING, setup, precision=precision, colbert_dim=width, **_checkpoint_options(setup))
    return ContenderSpec(key, f"FlagEmbedding {precision}", False, "torch", precision, ALL_HEADS, size, command)


def _flagreranker(key: str, setup: Setup) -> ContenderSpec:
    options = {"peer": f"{Peer.FLAGEMBEDDING} reranker", "checkpoint": str(setup.checkpoint.absolute())}
    command = _command(Peer.FLAGEMBEDDING, setup, **options)
    return ContenderSpec(key, "FlagReranker fp32", False, "torch", "fp32", (SCORE,), _weights_bytes(setup), command)


def _sentence_transformers(key: str, setup: Setup, backend: str, precision: str) -> ContenderSpec:
    # OpenVINO's own default, which the backend leaves as it is
    computes = "bf16" if backend == "openvino" and cpu_info().has_bf16 else precision
    more = _checkpoint_options(setup)
    command = _command(Peer.SENTENCE_TRANSFORMERS, setup, backend=backend, precision=precision, **more)
    name = f"sentence-transformers {backend} {computes}, dense only"
    engine = "onnxruntime" if backend == "onnx" else backend
    return ContenderSpec(key, name, False, engine, computes, ("dense",), _weights_bytes(setup), command)


def _llama_cpp(key: str, setup: Setup, precision: str) -> ContenderSpec:
    model, manifest = gguf_model(precision, setup), setup.bundle.manifest
    longest, pooling = min(_LLAMA_TOKENS, manifest.geometry.max_tokens), manifest.pooling.value
    command = _command(Peer.LLAMA_CPP, setup, model=str(model), pooling=pooling, max_tokens=longest)
    name, size = f"llama.cpp {precision}, dense only", model.stat().st_size
    return ContenderSpec(key, name, False, "llama.cpp", precision, ("dense",), size, command)


def _command(peer: Peer, setup: Setup, /, **options: Any) -> Command:
    options = {"peer": peer.value, "threads": setup.threads} | options
    return Command(setup.environment(peer), "m3_bench.workers.peers", options)


def _checkpoint_options(setup: Setup) -> dict[str, str]:
    """Options of peers that read the checkpoint itself."""
    return {"checkpoint": str(setup.checkpoint.absolute()), "pooling": setup.bundle.manifest.pooling.value}


def _weights_bytes(setup: Setup) -> int:
    return sum(path.stat().st_size for path in setup.checkpoint.glob("*.safetensors"))


PEERS: Mapping[str, Callable[[str, Setup], ContenderSpec]] = {
    "lite-int8": partial(_lite, precision="int8"),
    "lite-fp32": partial(_lite, precision="fp32"),
    "flagembedding-fp32": partial(_flagembedding, precision="fp32"),
    "flagembedding-bf16": partial(_flagembedding, precision="bf16"),
    "st-torch": partial(_sentence_transformers, backend="torch", precision="fp32"),
    "st-torch-bf16": partial(_sentence_transformers, backend="torch", precision="bf16"),
    "st-onnx": partial(_sentence_transformers, backend="onnx", precision="fp32"),
    "st-openvino": partial(_sentence_transformers, backend="openvino", precision="fp32"),
    "llama-q8": partial(_llama_cpp, precision="q8_0"),
    "llama-f16": partial(_llama_cpp, precision="f16"),
    "flagreranker-fp32": _flagreranker,
}
RERANKERS = ("flagreranker-fp32",)
"""Those of `PEERS` that run a reranker's checkpoint; the others run an encoder's."""


def peers_of(bundle: Bundle) -> list[str]:
    """Names of the peers that run a model of this kind."""
    return [key for key in PEERS if (key in RERANKERS) == bundle.manifest.is_reranker]


def peer_contenders(
    names: Sequence[str], setup: Setup, *, is_chosen: bool
) -> Iterator[tuple[str, ContenderSpec | None, str]]:
    """Yield each peer's key, and the contender, or why it could not be made ready.

    What is slow on this processor runs only if a person chose it.

    Raises:
        InputError: there is no such peer, or it runs no such model.
    """
    if unknown := sorted(set(names) - PEERS.keys()):
        raise InputError(f"there is no peer {unknown[0]!r}; peers are {', '.join(PEERS)} (candding is gone)")
    if others := [key for key in names if key not in peers_of(setup.bundle)]:
        kind = "a reranker" if setup.bundle.manifest.is_reranker else "an encoder"
        raise InputError(f"{others[0]} does not run {kind}; peers that do are {', '.join(peers_of(setup.bundle))}")
    for key in names:
        if key.endswith("bf16") and not is_chosen and not cpu_info().has_bf16:
            yield key, None, "this processor has no bf16 (name it in --peers to run it all the same)"
            continue
        try:
            yield key, PEERS[key](key, setup), ""
        except BenchError as error:
            yield key, None, str(error)
