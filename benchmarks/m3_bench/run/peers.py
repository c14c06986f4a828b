"""The peers as candidates: each in its own environment, on the bundle's own checkpoint."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from m3_bench.bars.contenders import Setup, checkpoint_of, command_of, hub_cache, llama_cpp
from m3_bench.bars.rows import ALL_HEADS, Contender
from m3_bench.errors import BenchError
from m3_bench.peers import Peer, ensure_environment
from m3_bench.run.candidates import Candidate
from m3_bench.worker_process import Command
from m3_runtime.cpu import cpu_info
from m3_runtime.errors import InputError

Make = Callable[[Setup], Candidate]
_DENSE = ("dense",)
_ENGINE = {"torch": "torch", "onnx": "onnxruntime", "openvino": "openvino"}


def _lite(precision: str) -> Make:
    contender = Contender.LITE_INT8 if precision == "int8" else Contender.LITE_FP32

    def make(setup: Setup) -> Candidate:
        command = command_of(contender, setup)
        # its fused graph holds new Q/K/V weights, and takes the others from the file it was made of
        files = ("model_int8.onnx*",) if precision == "int8" else ("model_fused.onnx*", "model.onnx_data")
        size = sum(path.stat().st_size for name in files for path in Path(command.arguments[0]).glob(name))
        return Candidate(contender.value, False, "onnxruntime", precision, ALL_HEADS, size, command)

    return make


def _flagembedding(precision: str) -> Make:
    def make(setup: Setup) -> Candidate:
        more = ("--precision", precision, "--colbert-dim", str(setup.bundle.manifest.geometry.colbert_dim or -1))
        name = f"FlagEmbedding {precision}"
        return _of_checkpoint(name, Peer.FLAGEMBEDDING, "torch", precision, more, setup)

    return make


def _sentence_transformers(backend: str, precision: str) -> Make:
    def make(setup: Setup) -> Candidate:
        # OpenVINO's own default, which the backend leaves as it is
        computes = "bf16" if backend == "openvino" and cpu_info().has_bf16 else precision
        name = f"sentence-transformers {backend} {computes}, dense only"
        more = ("--precision", precision, "--backend", backend)
        return _of_checkpoint(name, Peer.SENTENCE_TRANSFORMERS, _ENGINE[backend], computes, more, setup)

    return make


def _of_checkpoint(name: str, peer: Peer, engine: str, precision: str, more: Sequence[str], setup: Setup) -> Candidate:
    """A peer that reads the checkpoint itself."""
    python, module = ensure_environment(peer, setup.peers, setup.progress), peer.value.replace("-", "_")
    arguments = (str(checkpoint_of(setup)), "--pooling", setup.pooling, *more, "--threads", str(setup.threads))
    heads = ALL_HEADS if peer is Peer.FLAGEMBEDDING else _DENSE
    command = Command(python, f"m3_bench.workers.{module}", arguments)
    return Candidate(name, False, engine, precision, heads, _weights_bytes(setup), command)


def _llama_cpp(precision: str) -> Make:
    def make(setup: Setup) -> Candidate:
        command = llama_cpp(precision, setup)
        size = Path(command.arguments[0]).stat().st_size
        return Candidate(f"llama.cpp {precision}, dense only", False, "llama.cpp", precision, _DENSE, size, command)

    return make


def _candding(setup: Setup) -> Candidate:
    python = ensure_environment(Peer.CANDDING, setup.peers, setup.progress)
    command = Command(python, "m3_bench.workers.candding", (str(hub_cache(setup)),))
    return Candidate("candding fp32", False, "candle", "fp32", ALL_HEADS, _weights_bytes(setup), command)


def _weights_bytes(setup: Setup) -> int:
    return sum(path.stat().st_size for path in checkpoint_of(setup).glob("*.safetensors"))


PEERS: Mapping[str, Make] = {
    "lite-int8": _lite("int8"),
    "lite-fp32": _lite("fp32"),
    "flagembedding-fp32": _flagembedding("fp32"),
    "flagembedding-bf16": _flagembedding("bf16"),
    "st-torch": _sentence_transformers("torch", "fp32"),
    "st-torch-bf16": _sentence_transformers("torch", "bf16"),
    "st-onnx": _sentence_transformers("onnx", "fp32"),
    "st-openvino": _sentence_transformers("openvino", "fp32"),
    "llama-q8": _llama_cpp("q8_0"),
    "llama-f16": _llama_cpp("f16"),
    "candding": _candding,
}


def peer_candidates(names: Sequence[str], setup: Setup) -> Iterator[Candidate]:
    """Yield the peers that could be made ready; the others are named and left out.

    Args:
        names: of `PEERS`; all if empty.
        setup: where the bundle, its checkpoint and the environments are.

    Raises:
        InputError: there is no such peer.
    """
    if unknown := sorted(set(names) - PEERS.keys()):
        raise InputError(f"there is no peer {unknown[0]!r}; peers are {', '.join(PEERS)}")
    for name in names or PEERS:
        if name.endswith("bf16") and not names and not cpu_info().has_bf16:
            setup.progress.say(
                f"{name} is left out: this processor has no bf16 (name it in --peers to run it all the same)"
            )
            continue
        try:
            yield PEERS[name](setup)
        except BenchError as error:
            setup.progress.say(f"{name} is left out: {error}")
