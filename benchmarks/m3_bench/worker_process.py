"""The parent's side of the protocol: a contender's process, asked for work one message at a time."""

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from m3_bench.errors import WorkerError
from m3_bench.workers.serve import Failure, Reply, Request, VectorsRequest
from m3_bench.workers.vectors import Vectors, from_arrays

_Answer = TypeVar("_Answer")

_PACKAGE = Path(__file__).parent
# Makes `m3_bench.workers` importable without putting our whole site-packages on a peer's path.
_BOOT = (
    "import runpy, sys, types; package = types.ModuleType('m3_bench'); package.__path__ = [sys.argv.pop(1)]; "
    "sys.modules['m3_bench'] = package; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
_STDERR_LINES = 15  # lines of a dead worker's stderr that are shown
_END_S = 10


@dataclass(frozen=True)
class Command:
    """A worker's program: the Python to run it with, the module, its options."""

    python: Path
    module: str
    options: Mapping[str, Any]

    def words(self) -> list[str]:
        """The command line."""
        return [str(self.python), "-c", _BOOT, str(_PACKAGE), self.module, json.dumps(self.options)]


def own(module: str, **options: Any) -> Command:
    """A program of `m3_bench.workers`, run by this Python."""
    return Command(Path(sys.executable), f"m3_bench.workers.{module}", options)


def environment(threads: int) -> dict[str, str]:
    """Ours, with the thread counts of libraries that only listen to it, and nothing to be fetched from a hub."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    switched_off = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "BGE_M3_LITE_OFFLINE", "ORT_DISABLE_TELEMETRY")
    # A worker must not find our packages through a variable: peers have their own.
    rest = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "BGE_M3_LITE"))}
    return rest | dict.fromkeys(names, str(threads)) | dict.fromkeys(switched_off, "1")


class WorkerProcess:
    """A contender, loaded, idle until it is asked. `versions` are the releases of the packages that compute."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], errors: IO[str]) -> None:
        """Take over a running process; see `start`."""
        self._name, self._process, self._errors = name, process, errors
        self.versions: dict[str, str] = self._read(dict)

    @classmethod
    @contextmanager
    def start(cls, name: str, command: Command, threads: int) -> Iterator["WorkerProcess"]:
        """Start a process and wait until its model is loaded; the process ends with the block.

        Raises:
            WorkerError: it failed to start or to load; what it wrote to stderr last is in the message.
        """
        with tempfile.TemporaryFile("w+") as errors:
            try:
                process = subprocess.Popen(  # noqa: S603 - our own programs
                    command.words(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=environment(threads),
                    start_new_session=True,  # Ctrl-C is the parent's; it ends its workers itself
                )
            except OSError as error:
                raise WorkerError(f"{name} does not start: {error}") from error
            try:
                yield cls(name, process, errors)
            except KeyboardInterrupt:
                process.kill()  # whatever it computes is not needed
                raise
            finally:
                _end(process)

    def ask(self, request: Request) -> Reply:
        """Have work done.

        Raises:
            WorkerError: it failed, or the process died.
        """
        return self._answer(request, Reply)

    def vectors(self, texts: Sequence[str], heads: Sequence[str]) -> Vectors:
        """The vectors of texts.

        Raises:
            WorkerError: it failed, or the process died.
        """
        return from_arrays(self._answer(VectorsRequest(tuple(texts), tuple(heads)), dict))

    def stderr(self) -> str:
        """What the process has written to stderr so far."""
        self._errors.seek(0)
        return self._errors.read()

    def _answer(self, request: Request | VectorsRequest, kind: type[_Answer]) -> _Answer:
        assert self._process.stdin is not None
        try:
            pickle.dump(request, self._process.stdin)
            self._process.stdin.flush()
        except OSError as error:
            raise self._death() from error
        return self._read(kind)

    def _read(self, kind: type[_Answer]) -> _Answer:
        assert self._process.stdout is not None
        try:
            message = pickle.load(self._process.stdout)  # noqa: S301 - from our own program
        except EOFError as error:
            raise self._death() from error
        except Exception as error:  # whatever bytes may mean to pickle
            raise WorkerError(f"{self._name} broke the protocol: {error!r}") from error
        if isinstance(message, Failure):
            raise WorkerError(f"{self._name}: {message.message}")
        if not isinstance(message, kind):
            raise WorkerError(f"{self._name} broke the protocol: expected a {kind.__name__}, got {message!r:.200}")
        return message

    def _death(self) -> WorkerError:
        """An error that says how the process ended: by an exit code or a signal, and its last lines."""
        code = self._process.wait()
        how = f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            how += "; is there enough memory?"
        return WorkerError("\n  ".join([f"{self._name} {how}", *self.stderr().splitlines()[-_STDERR_LINES:]]))


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.close()  # which ends its loop
        process.wait(_END_S)
    except (OSError, subprocess.TimeoutExpired):
        process.kill()
        process.wait()
    finally:
        process.stdout.close()


def run_to_end(name: str, words: Sequence[str], threads: int) -> None:
    """Run a long step in a process of its own, its output on our stderr.

    Raises:
        WorkerError: it failed.
    """
    done = subprocess.run(words, stdout=2, env=environment(threads), check=False)  # noqa: S603 - our own programs
    if done.returncode != 0:
        raise WorkerError(f"{name} failed with exit code {done.returncode}; its output is above")
