"""The peers as candidates: each in its own environment, on the bundle's own checkpoint."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from m3_bench.bars.contenders import Setup, command_of
from m3_bench.bars.rows import ALL_HEADS, Contender
from m3_bench.errors import BenchError
from m3_bench.peers import Peer, ensure_environment
from m3_bench.run.candidates import Candidate
from m3_bench.worker_process import Command
from m3_runtime.cpu import cpu_info
from m3_runtime.errors import InputError

Make = Callable[[Setup], Candidate]
_DENSE = ("dense",)


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
        more = ("--colbert-dim", str(setup.balanced.manifest.geometry.colbert_dim or -1))
        return _on_torch(f"FlagEmbedding {precision}", Peer.FLAGEMBEDDING, "flagembedding", precision, more, setup)

    return make


def _sentence_transformers(backend: str, precision: str) -> Make:
    def make(setup: Setup) -> Candidate:
        name, more = f"sentence-transformers {backend} {precision}, dense only", ("--backend", backend)
        peer = Peer.SENTENCE_TRANSFORMERS
        return _on_torch(name, peer, "sentence_transformers", precision, more, setup)

    return make


def _on_torch(name: str, peer: Peer, module: str, precision: str, more: Sequence[str], setup: Setup) -> Candidate:
    assert setup.checkpoint is not None
    python = ensure_environment(peer, setup.peers, setup.progress)
    pooling, threads = setup.balanced.manifest.pooling.value, str(setup.threads)
    arguments = (str(setup.checkpoint.absolute()), "--precision", precision, "--pooling", pooling, *more)
    return Candidate(
        name=name,
        is_ours=False,
        engine="onnxruntime" if "onnx" in more else "torch",
        precision=precision,
        heads=ALL_HEADS if peer is Peer.FLAGEMBEDDING else _DENSE,
        size_bytes=sum(path.stat().st_size for path in setup.checkpoint.glob("*.safetensors")),
        command=Command(python, f"m3_bench.workers.{module}", (*arguments, "--threads", threads)),
    )


PEERS: Mapping[str, Make] = {
    "lite-int8": _lite("int8"),
    "lite-fp32": _lite("fp32"),
    "flagembedding-fp32": _flagembedding("fp32"),
    "flagembedding-bf16": _flagembedding("bf16"),
    "st-torch": _sentence_transformers("torch", "fp32"),
    "st-torch-bf16": _sentence_transformers("torch", "bf16"),
    "st-onnx": _sentence_transformers("onnx", "fp32"),
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
