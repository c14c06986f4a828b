"""A reference recorded: PyTorch's vectors of fixed texts, and its time in every scenario, by the engine of `run`."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from m3_bench.documents import Model, Run, ScenarioRun
from m3_bench.machine import Machine, this_machine
from m3_bench.recording import Recording, digest_of, write_recording
from m3_bench.run.contenders import ContenderSpec, flop_per_token
from m3_bench.run.run import grouped, unmeasured, usable_cpus, vectors_of
from m3_bench.run.turns import is_asked, measure_group
from m3_bench.scenarios import Plan
from m3_bench.texts import TextMaker
from m3_bench.worker_process import own
from m3_bench.workers.torch_reference import Dtype, tokenizer_of
from m3_export.checkpoint.folder import Checkpoint
from m3_export.checkpoint.source import HUB_ID, Source, resolve
from m3_runtime.bundle.manifest import Pooling
from m3_runtime.errors import InputError
from m3_runtime.io.progress import Progress


@dataclass(frozen=True)
class RecordSpec:
    """What is to be recorded. `texts` are those whose vectors are kept; `threads` are PyTorch's on CPU.

    `ids` are those of the texts; empty where they have none.
    """

    source: str
    device: str
    dtype: Dtype
    texts: tuple[str, ...]
    plan: Plan
    rounds: int
    threads: int
    pooling: str | None
    output: Path
    ids: tuple[str, ...] = ()


def record(spec: RecordSpec, progress: Progress) -> Recording:
    """Keep vectors, time scenarios, write.

    Raises:
        InputError: the device is not there, or cannot do the dtype; it is a reranker, or no scenario is for it.
        ExportError: the checkpoint is not one of BGE-M3's layout.
        BenchError: PyTorch failed on the texts, out of memory for instance, or the file cannot be written.
    """
    check_device(spec.device, spec.dtype)
    with tempfile.TemporaryDirectory(prefix="m3-bench-") as scratch:  # for a checkpoint that has to be made
        found = resolve(spec.source, Path(scratch), revision=None, progress=progress.say)
        with progress.step(f"Reading {found.name}"):
            checkpoint = Checkpoint.open(found.folder, pooling=Pooling(spec.pooling) if spec.pooling else None)
            if checkpoint.classifier is not None:
                raise InputError(f"{spec.source!r} is a reranker, which has no vectors to record; expected an encoder")
            contender = _contender(spec, found.folder, checkpoint)
            scenarios = replace(spec.plan, targets=()).within(checkpoint.geometry.max_tokens).scenarios
            asked = [one for one in scenarios if is_asked(contender, one)]
            left = [one.name for one in spec.plan.scenarios if one not in asked]
            if left:
                reason = f"{', '.join(left)} left out: too long for the model, or for others than PyTorch"
                if not asked:
                    raise InputError(f"--scenarios: {reason}")
                progress.say(reason)
            model, maker = _described(found, checkpoint)
            del checkpoint  # the worker reads it again, and both need not fit
        with progress.step(f"Vectors of {len(spec.texts)} texts on {spec.device} in {spec.dtype}"):
            outputs, versions = vectors_of(contender, spec.texts, spec.threads)
        done: list[ScenarioRun] = []
        for group in grouped(asked):
            with progress.step(" and ".join(f"{one.name}: {one.title}" for one in group)):
                done += measure_group(group, [contender], maker, spec.rounds, spec.threads).values()
    run = Run(
        machine=_machine(spec.device),
        model=model,
        threads=spec.threads if spec.device == "cpu" else 0,
        cpus=usable_cpus(),
        texts_sha256=digest_of(spec.texts),
        scenarios=scenarios,
        contenders=(replace(unmeasured(contender), versions=versions, scenarios=tuple(done)),),
    )
    recording = Recording(run, spec.texts, outputs, spec.ids)
    write_recording(recording, spec.output)
    return recording


def check_device(device: str, dtype: Dtype) -> None:
    """Before minutes are spent loading.

    Raises:
        InputError: the device is not there, or cannot do the dtype.
    """
    if device == "cpu":
        if dtype in (Dtype.TF32, Dtype.FP16):
            raise InputError(f"--dtype {dtype} is for GPUs; on cpu choose fp32 or bf16")
    elif not re.fullmatch(r"cuda(:\d{1,9})?", device, re.ASCII):
        raise InputError(f"--device must be cpu, cuda, or cuda:N, got {device!r}")
    elif not torch.cuda.is_available():
        raise InputError(
            f"--device {device}: this PyTorch ({torch.__version__}) sees no CUDA device; install a CUDA build of torch "
            "on a machine with an NVIDIA GPU, or record with --device cpu"
        )
    elif ":" in device and int(device.split(":")[1]) >= torch.cuda.device_count():
        raise InputError(f"--device {device}: there are {torch.cuda.device_count()} CUDA devices")


def _described(found: Source, checkpoint: Checkpoint) -> tuple[Model, TextMaker]:
    """What is known of the model, and what makes texts for it."""
    tokenizer, source = tokenizer_of(found.folder, checkpoint)
    weights, geometry = checkpoint.weights_sha256(), checkpoint.geometry
    model = Model(
        name=model_name(found, checkpoint.config),
        space_id=checkpoint.space_id(weights, source.ids_sha256),
        weights_sha256=weights,
        flop_per_token=flop_per_token(geometry.layers, geometry.hidden_size, geometry.ffn_size),
    )
    return model, TextMaker(tokenizer)


def model_name(found: Source, config: Mapping[str, Any]) -> str:
    """What a model is called: a folder's name comes after that of the model that config.json names, if it does.

    >>> model_name(Source("ckpt-7", Path("out/ckpt-7"), None), {"_name_or_path": "BAAI/bge-m3"})
    'BAAI/bge-m3 (ckpt-7)'
    """
    base = config.get("_name_or_path")
    is_hub_id = isinstance(base, str) and HUB_ID.fullmatch(base) and not Path(base).exists()
    return f"{base} ({found.name})" if is_hub_id and found.revision is None else found.name


def _contender(spec: RecordSpec, folder: Path, checkpoint: Checkpoint) -> ContenderSpec:
    device = "CPU" if spec.device == "cpu" else torch.cuda.get_device_name(spec.device)
    options = {"device": spec.device, "dtype": spec.dtype.value, "pooling": spec.pooling, "threads": spec.threads}
    values = sum(tensor.numel() for tensor in checkpoint.encoder.values())
    name = f"PyTorch {spec.dtype} on {device}"
    return ContenderSpec(
        key=name,
        name=name,
        is_ours=False,
        engine="torch",
        precision=spec.dtype.value,
        heads=("dense", "sparse", "colbert") if checkpoint.sparse else ("dense",),
        size_bytes=values * spec.dtype.torch.itemsize,
        command=own("torch_reference", checkpoint=str(folder.absolute()), **options),
    )


def _machine(device: str) -> Machine:
    machine = this_machine()
    if device == "cpu":
        return machine
    facts = torch.cuda.get_device_properties(device)
    return replace(
        machine, accelerator=f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    )
