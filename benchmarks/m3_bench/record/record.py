"""A reference recorded: vectors of fixed texts, and the time of every scenario, by PyTorch in this process."""

import gc
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import torch

from m3_bench.bars.stats import flop_per_token
from m3_bench.documents import Contender, Model, Round, Run, Scenario, ScenarioRun
from m3_bench.errors import BenchError
from m3_bench.machine import Machine, this_machine
from m3_bench.record.torch_model import Dtype, TorchModel
from m3_bench.recording import Recording, digest_of, write_recording
from m3_bench.scenarios import within
from m3_bench.texts import TextMaker
from m3_bench.workers.serve import resident_memory
from m3_export.checkpoint.folder import Checkpoint
from m3_export.checkpoint.source import resolve
from m3_export.checkpoint.tokenizer import CheckpointTokenizer
from m3_export.progress import Progress
from m3_runtime.bundle.manifest import Pooling
from m3_runtime.errors import InputError
from m3_runtime.tokenizer import M3Tokenizer


@dataclass(frozen=True)
class Wish:
    """The command line, parsed. `texts` are those whose vectors are kept; `threads` are PyTorch's on CPU."""

    source: str
    device: str
    dtype: Dtype
    texts: tuple[str, ...]
    scenarios: tuple[Scenario, ...]
    rounds: int
    threads: int
    pooling: Pooling | None
    output: Path


@dataclass(frozen=True)
class _Opened:
    """The model on its device, what it is, and what makes texts for it."""

    model: TorchModel
    what: Model
    tokenizer: M3Tokenizer
    size_bytes: int
    load_s: float


def record(wish: Wish, progress: Progress) -> Recording:
    """Load, keep vectors, time scenarios, write.

    Raises:
        InputError: the device is not there, or cannot do the dtype.
        ExportError: the checkpoint is not one of BGE-M3's layout.
        BenchError: the device ran out of memory for the texts, or the disk said no.
    """
    check_device(wish.device, wish.dtype)
    torch.set_num_threads(wish.threads)
    opened = _open(wish, progress)
    scenarios = within(wish.scenarios, opened.model.max_tokens)
    with progress.step(f"Vectors of {len(wish.texts)} texts"), _memory_errors(f"the {len(wish.texts)} texts"):
        singles = [(text,) for text in progress.bar(wish.texts, "texts")]
        outputs = opened.model.outputs(singles)  # each alone: padding cannot hide anything
    maker, done = TextMaker(opened.tokenizer), []
    for number, scenario in enumerate(scenarios, 1):
        with progress.step(f"Scenario {number} of {len(scenarios)}, {scenario.name}: {scenario.title}"):
            done.append(_measured(scenario, opened, maker, wish))
    run = Run(
        machine=_machine(wish.device),
        model=opened.what,
        threads=wish.threads if wish.device == "cpu" else 0,
        cpus=tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else (),
        texts_sha256=digest_of(wish.texts),
        scenarios=scenarios,
        contenders=(_contender(wish, opened, tuple(done)),),
    )
    recording = Recording(run, wish.texts, outputs)
    write_recording(recording, wish.output)
    return recording


def check_device(device: str, dtype: Dtype) -> None:
    """Before minutes are spent loading.

    Raises:
        InputError: the device is not there, or cannot do the dtype.
    """
    if device == "cpu":
        if dtype in (Dtype.TF32, Dtype.FP16):
            raise InputError(f"--dtype {dtype} is for GPUs; on cpu choose fp32 or bf16")
    elif not device.startswith("cuda"):
        raise InputError(f"--device must be cpu, cuda, or cuda:N, got {device!r}")
    elif not torch.cuda.is_available():
        raise InputError(
            f"--device {device}: this PyTorch ({torch.__version__}) sees no CUDA device; install a CUDA build of torch "
            "on a machine with an NVIDIA GPU, or record with --device cpu"
        )
    elif ":" in device and not 0 <= int(device.split(":")[1]) < torch.cuda.device_count():
        raise InputError(f"--device {device}: there are {torch.cuda.device_count()} CUDA devices")


def _open(wish: Wish, progress: Progress) -> _Opened:
    with tempfile.TemporaryDirectory(prefix="m3-bench-") as scratch:
        found = resolve(wish.source, Path(scratch), revision=None, progress=progress.say)
        with progress.step(f"Loading {found.name} on {wish.device} in {wish.dtype}"):
            started_s = time.perf_counter()
            checkpoint = Checkpoint.open(found.folder, pooling=wish.pooling)
            source = CheckpointTokenizer.open(found.folder, checkpoint.geometry.vocab_size)
            source.save(Path(scratch))
            tokenizer = M3Tokenizer.open(Path(scratch) / source.info.path, source.info)
            with _memory_errors("the weights"):
                model = TorchModel(checkpoint, tokenizer, source.info, wish.device, wish.dtype)
            load_s = time.perf_counter() - started_s
        weights, geometry = checkpoint.weights_sha256(), checkpoint.geometry
        what = Model(
            name=found.name,
            space_id=checkpoint.space_id(weights, source.ids_sha256),
            weights_sha256=weights,
            flop_per_token=flop_per_token(geometry.layers, geometry.hidden_size, geometry.ffn_size),
        )
        values = sum(tensor.numel() for tensor in checkpoint.encoder.values())
    return _Opened(model, what, tokenizer, values * wish.dtype.torch.itemsize, load_s)


def _measured(scenario: Scenario, opened: _Opened, maker: TextMaker, wish: Wish) -> ScenarioRun:
    """A first call, a round that does not count, then the rounds that do."""
    batches = maker.batches((scenario.lengths,) * scenario.calls)
    is_gpu = wish.device != "cpu"
    if is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(wish.device)
    gc.collect()
    first_s, rounds, error = 0.0, [], ""
    try:
        with _memory_errors(scenario.title):
            first_s = _call(opened.model, batches[0], scenario.heads)
            rounds = [_round(opened.model, batches, scenario, wish.device) for _ in range(wish.rounds + 1)][1:]
    except BenchError as failure:
        error = str(failure)
    return ScenarioRun(scenario.name, opened.load_s, first_s, tuple(rounds), error)


def _round(model: TorchModel, batches: Sequence[Sequence[str]], scenario: Scenario, device: str) -> Round:
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    if scenario.clients == 1:
        seconds = [_call(model, texts, scenario.heads) for texts in batches]
    else:
        with ThreadPoolExecutor(scenario.clients) as clients:
            seconds = list(clients.map(lambda texts: _call(model, texts, scenario.heads), batches))
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    resident_bytes, peak_bytes = _memory(device)
    return Round(tuple(seconds), (), (), wall_s, cpu_s, resident_bytes, peak_bytes)


def _call(model: TorchModel, texts: Sequence[str], heads: Sequence[str]) -> float:
    """Seconds from texts to numbers on the host, so a GPU has finished."""
    started_s = time.perf_counter()
    model.run(texts, heads)
    return time.perf_counter() - started_s


def _memory(device: str) -> tuple[int, int]:
    if device == "cpu":
        return resident_memory()
    return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)


def _machine(device: str) -> Machine:
    machine = this_machine()
    if device == "cpu":
        return machine
    facts = torch.cuda.get_device_properties(device)
    return replace(
        machine, accelerator=f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    )


def _contender(wish: Wish, opened: _Opened, done: tuple[ScenarioRun, ...]) -> Contender:
    device = "CPU" if wish.device == "cpu" else torch.cuda.get_device_name(wish.device)
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "tokenizers")}
    return Contender(
        name=f"PyTorch {wish.dtype} on {device}",
        is_ours=False,
        engine="torch",
        precision=wish.dtype.value,
        versions=versions | {"python": platform.python_version()},
        heads=opened.model.heads,
        size_bytes=opened.size_bytes,
        outputs=None,
        scenarios=done,
    )


@contextmanager
def _memory_errors(what: str) -> Iterator[None]:
    """Out of memory, on a device or the host, is a thing to be told."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise BenchError(f"not enough memory for {what}: {str(error).splitlines()[0]}") from error
