"""A contender's vectors of the recorded texts, kept beside the run."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from m3_bench.documents import OutputsFile
from m3_bench.recording import write_outputs
from m3_bench.run.candidates import Candidate
from m3_bench.worker_process import WorkerProcess
from m3_bench.workers.messages import Keep
from m3_bench.workers.vectors import read_vectors
from m3_export.verify.parity import Outputs
from m3_runtime.bundle.reader import sha256_of


def keep_outputs(
    candidate: Candidate, texts: Sequence[str], run: Path, threads: int
) -> tuple[OutputsFile, dict[str, str]]:
    """Encode the texts with a candidate and write its vectors beside `run`.

    Returns:
        The file, and the releases of the packages that computed.

    Raises:
        BenchError: the candidate failed, or the disk said no.
    """
    path = run.with_name(f"{run.stem}.{slug(candidate.name)}.safetensors")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        npz = Path(folder) / "vectors.npz"
        with WorkerProcess.start(candidate.name, candidate.command, threads, errors) as worker:
            worker.keep(Keep(tuple(texts), candidate.heads, str(npz)))
            versions = worker.ready.versions
        vectors = read_vectors(npz)
    write_outputs(Outputs(vectors.dense, vectors.lexical, vectors.colbert), path)
    return OutputsFile(path.name, sha256_of(path)), versions


def slug(name: str) -> str:
    """A name as part of a file's name.

    >>> slug("bge-m3-lite int8")
    'bge-m3-lite-int8'
    """
    return "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in name)
