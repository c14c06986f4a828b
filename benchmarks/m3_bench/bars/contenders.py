"""How each contender is started, and what has to be made before it can be."""

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from m3_bench.bars.gguf import convert, fetch_converter
from m3_bench.bars.rows import Contender, Planned
from m3_bench.errors import BenchError, NotApplicableError
from m3_bench.peers import Peer, PeerSource, ensure_environment
from m3_bench.worker_process import Command, run_to_end
from m3_export.progress import Progress
from m3_runtime import Bundle
from m3_runtime.cpu import CpuInfo, cpu_info
from m3_runtime.engines.select import AUTO, find_variant, unmet_needs

_PYTHON = Path(sys.executable)
_BUILT = "built.json"
_QUICK_TEXTS = 16
_LLAMA_TOKENS = 2048  # more would reserve gigabytes for scores of attention that no query needs

NEEDS_CHECKPOINT = frozenset({Contender.LITE_INT8, Contender.LITE_FP32, Contender.FLAGEMBEDDING, Contender.LLAMA_CPP})
_VARIANT_OF = {Contender.BEST: AUTO, Contender.ONNX_INT8: "onnx-int8", Contender.ONNX_FP32: "onnx-fp32"}


@dataclass(frozen=True)
class Setup:
    """What was given on the command line, opened and checked.

    Attributes:
        bundle: whose variants are ours.
        known: bundles of the same weights whose plans were given, by the name of their folder; for regret.
        checkpoint: their source, for the peers; None where no row needs it.
        work: a folder for models that are made on the way.
        peers: where the peers' environments are.
        threads: threads of every contender.
        is_quick: bge-m3-lite's int8 build may be calibrated on a few texts: its vectors change, its speed does not.
        progress: says what takes long.
    """

    bundle: Bundle
    known: Mapping[str, Bundle]
    checkpoint: Path | None
    work: Path
    peers: PeerSource
    threads: int
    is_quick: bool
    progress: Progress = field(repr=False)

    @property
    def weights(self) -> str:
        """Names the weights, for what is made of them."""
        return self.bundle.manifest.source.weights_sha256[:12]

    @property
    def pooling(self) -> str:
        """Of the dense head, for peers that must be told."""
        return self.bundle.manifest.pooling.value


def command_of(contender: Contender | Planned, setup: Setup) -> Command:
    """What starts a contender; what it needs is made first, which can take minutes.

    Raises:
        NotApplicableError: this processor cannot run it.
        M3Error: something it needs is missing or could not be made.
    """
    match contender:
        case Planned():
            return _variant(bundle_of(contender, setup), contender.variant, setup)
        case Contender.LITE_INT8 | Contender.LITE_FP32:
            return _lite(contender, setup)
        case Contender.LLAMA_CPP:
            return llama_cpp("q8_0", setup)
        case Contender.FLAGEMBEDDING:
            python = ensure_environment(Peer.FLAGEMBEDDING, setup.peers, setup.progress)
            arguments = (str(checkpoint_of(setup)), "--pooling", setup.pooling, *_threads(setup))
            return Command(python, "m3_bench.workers.flagembedding", arguments)
        case Contender.GEMM_ONNXRUNTIME | Contender.GEMM_OPENVINO:
            return _gemm(contender, cpu_info(), setup)
        case _:
            return _variant(setup.bundle, _VARIANT_OF[contender], setup)


def bundle_of(planned: Planned, setup: Setup) -> Bundle:
    """The bundle that a regret row's contender is of."""
    return setup.known.get(planned.bundle, setup.bundle)


def _variant(bundle: Bundle, name: str, setup: Setup) -> Command:
    variant = find_variant(bundle).variant if name == AUTO else bundle.variant(name)
    if unmet := unmet_needs(variant):
        raise NotApplicableError(f"{variant.name} needs {' and '.join(unmet)}, which this processor does not have")
    return Command(_PYTHON, "m3_bench.workers.ours", (str(bundle.folder), "--variant", variant.name, *_threads(setup)))


def _gemm(contender: Contender, cpu: CpuInfo, setup: Setup) -> Command:
    engine = "onnxruntime" if contender is Contender.GEMM_ONNXRUNTIME else "openvino"
    if engine == "openvino" and not cpu.has_int8_dot:
        raise NotApplicableError("no int8 dot product on this processor: OpenVINO's int8 product saturates")
    return Command(_PYTHON, "m3_bench.workers.gemm", (engine, *_threads(setup)))


def llama_cpp(precision: str, setup: Setup) -> Command:
    """llama.cpp with the checkpoint in GGUF, "q8_0" or "f16"; converted if it is not there.

    Raises:
        BenchError: it could not be installed or converted.
    """
    python, checkpoint = ensure_environment(Peer.LLAMA_CPP, setup.peers, setup.progress), checkpoint_of(setup)
    converter = _made(setup.work / "llama.cpp", "Fetching llama.cpp's converter", fetch_converter, setup)

    def make(folder: Path) -> None:
        convert(python, converter, checkpoint, precision, folder / "model.gguf")

    folder = setup.work / f"gguf-{precision}-{setup.weights}"
    model = _made(folder, f"Converting {checkpoint} to GGUF {precision}", make, setup) / "model.gguf"
    more = ("--pooling", setup.pooling, "--max-tokens", str(min(_LLAMA_TOKENS, _max_tokens(setup))), *_threads(setup))
    return Command(python, "m3_bench.workers.llama_cpp", (str(model), *more))


def hub_cache(setup: Setup) -> Path:
    """The checkpoint as BAAI/bge-m3 in a folder laid out as the hub's cache, for a peer that looks nowhere else."""
    checkpoint, revision = checkpoint_of(setup), setup.bundle.manifest.source.weights_sha256[:40]

    def make(folder: Path) -> None:
        snapshot = folder / "models--BAAI--bge-m3" / "snapshots" / revision
        snapshot.mkdir(parents=True)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text(revision)
        for path in checkpoint.iterdir():
            (snapshot / path.name).symlink_to(path)

    return _made(setup.work / f"hub-cache-{setup.weights}", f"Linking {checkpoint}", make, setup)


def _max_tokens(setup: Setup) -> int:
    return setup.bundle.manifest.geometry.max_tokens


def _lite(contender: Contender, setup: Setup) -> Command:
    python = ensure_environment(Peer.LITE, setup.peers, setup.progress)
    precision = "int8" if contender is Contender.LITE_INT8 else "fp32"
    arguments = (str(lite_model(python, setup)), "--precision", precision, *_threads(setup))
    return Command(python, "m3_bench.workers.lite", arguments)


def lite_model(python: Path, setup: Setup) -> Path:
    """The folder with bge-m3-lite's two models of the checkpoint, built with its own tools if it is not there."""

    def make(folder: Path) -> None:
        export = [str(_PYTHON), "-m", "m3_bench.bars.hub_graph", str(checkpoint_of(setup)), str(folder)]
        run_to_end("exporting the graph that bge-m3-lite starts from", export, setup.threads)
        few = ("--calibration-texts", str(_QUICK_TEXTS)) if setup.is_quick else ()
        build = Command(python, "m3_bench.workers.lite_build", (str(folder), *few))
        run_to_end("building bge-m3-lite's models", build.words(), setup.threads)

    return _made(_lite_folder(setup), f"Building bge-m3-lite's models of {setup.checkpoint}", make, setup)


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
        with setup.progress.step(title):
            make(partial)
        partial.replace(folder)
    return folder.absolute()


def checkpoint_of(setup: Setup) -> Path:
    """The source of the bundles.

    Raises:
        BenchError: it was not given.
    """
    if setup.checkpoint is None:
        raise BenchError("the peers need --checkpoint DIR, the source of the bundles")
    return setup.checkpoint.absolute()


def _threads(setup: Setup) -> tuple[str, str]:
    return "--threads", str(setup.threads)
