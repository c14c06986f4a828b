"""How each contender is started, and what has to be made before it can be."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from m3_bench.bars.rows import Contender
from m3_bench.errors import BenchError, NotApplicableError
from m3_bench.peers import Peer, PeerSource, ensure_environment
from m3_bench.worker_process import Command, run_to_end
from m3_export.progress import Progress
from m3_runtime import Bundle
from m3_runtime.cpu import CpuInfo, cpu_info
from m3_runtime.engines.select import unmet_needs

_PYTHON = Path(sys.executable)
_BUILT = "built.json"
_QUICK_TEXTS = 16

_PEER_OF = {
    Contender.LITE_INT8: Peer.LITE,
    Contender.LITE_FP32: Peer.LITE,
    Contender.FLAGEMBEDDING: Peer.FLAGEMBEDDING,
}
_VARIANT_OF = {
    Contender.BALANCED: "openvino-int8",
    Contender.STRICT: "openvino-int8",
    Contender.ONNX_INT8: "onnx-int8",
    Contender.ONNX_FP32: "onnx-fp32",
}
NEEDS_STRICT = frozenset({Contender.STRICT})
NEEDS_CHECKPOINT = frozenset({*_PEER_OF, Contender.OPENVINO_BF16})


@dataclass(frozen=True)
class Setup:
    """What was given on the command line, opened and checked.

    Attributes:
        balanced: the bundle that most rows measure.
        strict: another bundle of the same weights; None where no row needs it.
        checkpoint: their source, for the peers; None where no row needs it.
        work: a folder for models that are made on the way.
        peers: where the peers' environments are.
        threads: threads of every contender.
        is_quick: bge-m3-lite's int8 build may be calibrated on a few texts: its vectors change, its speed does not.
        progress: says what takes long.
    """

    balanced: Bundle
    strict: Bundle | None
    checkpoint: Path | None
    work: Path
    peers: PeerSource
    threads: int
    is_quick: bool
    progress: Progress = field(repr=False)

    @property
    def weights(self) -> str:
        """Names the weights, for what is made of them."""
        return self.balanced.manifest.source.weights_sha256[:12]


def command_of(contender: Contender, setup: Setup) -> Command:
    """What starts a contender; what it needs is made first, which can take minutes.

    Raises:
        NotApplicableError: this processor cannot run it.
        M3Error: something it needs is missing or could not be made.
    """
    match contender:
        case Contender.LITE_INT8 | Contender.LITE_FP32:
            return _lite(contender, setup)
        case Contender.FLAGEMBEDDING:
            python = ensure_environment(Peer.FLAGEMBEDDING, setup.peers, setup.progress)
            return Command(python, "m3_bench.workers.flagembedding", (str(_checkpoint(setup)), *_threads(setup)))
        case Contender.GEMM_ONNXRUNTIME | Contender.GEMM_OPENVINO:
            return _gemm(contender, cpu_info(), setup)
        case Contender.OPENVINO_BF16:
            return _openvino_bf16(cpu_info(), setup)
        case _:
            return _variant(contender, setup)


def _variant(contender: Contender, setup: Setup) -> Command:
    bundle = setup.strict if contender in NEEDS_STRICT else setup.balanced
    if bundle is None:
        raise BenchError(f"{contender} needs --strict BUNDLE")
    variant = bundle.variant(_VARIANT_OF[contender])
    if unmet := unmet_needs(variant):
        raise NotApplicableError(f"{contender} needs {' and '.join(unmet)}, which this processor does not have")
    return Command(_PYTHON, "m3_bench.workers.ours", (str(bundle.folder), "--variant", variant.name, *_threads(setup)))


def _gemm(contender: Contender, cpu: CpuInfo, setup: Setup) -> Command:
    engine = "onnxruntime" if contender is Contender.GEMM_ONNXRUNTIME else "openvino"
    if engine == "openvino" and not cpu.has_int8_dot:
        raise NotApplicableError("no int8 dot product on this processor: OpenVINO's int8 product saturates")
    return Command(_PYTHON, "m3_bench.workers.gemm", (engine, *_threads(setup)))


def _openvino_bf16(cpu: CpuInfo, setup: Setup) -> Command:
    if not cpu.has_bf16:
        raise NotApplicableError("no bf16 on this processor")
    graph = portable_graph(setup)
    hint = ("--graph", str(graph), "--property", "INFERENCE_PRECISION_HINT=bf16")
    return Command(_PYTHON, "m3_bench.workers.ours", (str(setup.balanced.folder), *hint, *_threads(setup)))


def _lite(contender: Contender, setup: Setup) -> Command:
    python = ensure_environment(Peer.LITE, setup.peers, setup.progress)
    precision = "int8" if contender is Contender.LITE_INT8 else "fp32"
    arguments = (str(lite_model(python, setup)), "--precision", precision, *_threads(setup))
    return Command(python, "m3_bench.workers.lite", arguments)


def portable_graph(setup: Setup) -> Path:
    """The checkpoint's FP32 graph in standard operators, traced if it is not there."""

    def make(folder: Path) -> None:
        words = (str(_checkpoint(setup)), str(setup.balanced.folder), str(folder / "model.onnx"))
        run_to_end(
            "tracing the FP32 graph", [str(_PYTHON), "-m", "m3_bench.bars.portable_graph", *words], setup.threads
        )

    return _made(setup.work / f"portable-{setup.weights}", "Tracing the FP32 graph", make, setup) / "model.onnx"


def lite_model(python: Path, setup: Setup) -> Path:
    """The folder with bge-m3-lite's two models of the checkpoint, built with its own tools if it is not there."""

    def make(folder: Path) -> None:
        export = [str(_PYTHON), "-m", "m3_bench.bars.hub_graph", str(_checkpoint(setup)), str(folder)]
        run_to_end("exporting the graph that bge-m3-lite starts from", export, setup.threads)
        few = ("--calibration-texts", str(_QUICK_TEXTS)) if setup.is_quick else ()
        build = Command(python, "m3_bench.workers.lite_build", (str(folder), *few))
        run_to_end("building bge-m3-lite's models", build.words(), setup.threads)

    return _made(_lite_folder(setup), "Building bge-m3-lite's models", make, setup)


def lite_build_facts(setup: Setup) -> dict[str, object]:
    """What the build of bge-m3-lite's models says about itself; empty before it."""
    path = _lite_folder(setup) / _BUILT
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _lite_folder(setup: Setup) -> Path:
    """The whole build if it is there or wanted; a quick run is content with a quick one."""
    whole = setup.work / f"bge-m3-lite-{setup.weights}"
    return whole if whole.is_dir() or not setup.is_quick else whole.with_name(f"{whole.name}-quick")


def _made(folder: Path, title: str, make: Callable[[Path], None], setup: Setup) -> Path:
    """A folder that is complete or absent: made beside its place and renamed."""
    if not folder.is_dir():
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with setup.progress.step(f"{title} of {setup.checkpoint}"):
            make(partial)
        partial.replace(folder)
    return folder.absolute()


def _checkpoint(setup: Setup) -> Path:
    if setup.checkpoint is None:
        raise BenchError("the peers and the bf16 graph need --checkpoint DIR, the source of the bundles")
    return setup.checkpoint.absolute()


def _threads(setup: Setup) -> tuple[str, str]:
    return "--threads", str(setup.threads)
