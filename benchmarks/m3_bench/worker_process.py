"""The parent's side of the protocol: a contender's process, asked for work one line at a time."""

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

from m3_bench.errors import WorkerError
from m3_bench.workers.messages import Failure, Keep, Kept, Ready, Reply, Request, from_line, to_line

M = TypeVar("M", Ready, Reply, Kept)

_PACKAGE = Path(__file__).parent
# Makes `m3_bench.workers` importable without putting our whole site-packages on a peer's path.
_BOOT = (
    "import runpy, sys, types; package = types.ModuleType('m3_bench'); package.__path__ = [sys.argv.pop(1)]; "
    "sys.modules['m3_bench'] = package; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
_LAST_WORDS = 15  # lines of a dead worker's stderr that are shown
_END_S = 10


@dataclass(frozen=True)
class Command:
    """A worker's program: the Python to run it with, the module, its arguments."""

    python: Path
    module: str
    arguments: tuple[str, ...]

    def words(self) -> list[str]:
        """The command line."""
        return [str(self.python), "-c", _BOOT, str(_PACKAGE), self.module, *self.arguments]


def environment(threads: int) -> dict[str, str]:
    """Ours, with the thread counts of libraries that only listen to it, and nothing to be fetched from a hub."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    counts = dict.fromkeys(names, str(threads))
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "BGE_M3_LITE_OFFLINE": "1"}
    offline["ORT_DISABLE_TELEMETRY"] = "1"  # peers import ONNX Runtime as it comes
    # A worker must not find our packages through a variable: peers have their own.
    rest = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "BGE_M3_LITE"))}
    return rest | counts | offline


class WorkerProcess:
    """A contender, loaded, asleep until it is asked. A context manager: leaving ends the process."""

    def __init__(self, name: str, process: subprocess.Popen[str], errors: IO[str]) -> None:
        """Take over a running process; see `start`."""
        self._name = name
        self._process = process
        self._errors = errors
        self.ready = self._read(Ready)

    @classmethod
    def start(cls, name: str, command: Command, threads: int, errors: IO[str]) -> "WorkerProcess":
        """Start a process and wait until its model is loaded.

        Args:
            name: the contender, for messages.
            command: its program.
            threads: threads of libraries that take them from the environment.
            errors: a file for its stderr, open for writing and reading; shown when it fails.

        Raises:
            WorkerError: it failed to start or to load.
        """
        try:
            process = subprocess.Popen(  # noqa: S603 - our own programs
                command.words(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(threads),
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is the parent's; it ends its workers itself
            )
        except OSError as error:
            raise WorkerError(f"{name} does not start: {error}") from error
        try:
            return cls(name, process, errors)
        except BaseException:
            _end(process)
            raise

    def ask(self, request: Request) -> Reply:
        """Have work done.

        Raises:
            WorkerError: it failed, or the process died.
        """
        self._say(request)
        return self._read(Reply)

    def keep(self, keep: Keep) -> Kept:
        """Have vectors written to a file.

        Raises:
            WorkerError: it failed, or the process died.
        """
        self._say(keep)
        return self._read(Kept)

    def _say(self, message: Request | Keep) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(to_line(message))
            self._process.stdin.flush()
        except OSError as error:
            raise self._death() from error

    def close(self) -> None:
        """End the process."""
        _end(self._process)

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, kind: type[M]) -> M:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        try:
            message = from_line(line)
        except ValueError as error:
            raise WorkerError(f"{self._name} broke the protocol: {error}") from error
        if isinstance(message, Failure):
            raise WorkerError(f"{self._name}: {message.message}")
        if not isinstance(message, kind):
            raise WorkerError(f"{self._name} broke the protocol: expected a {kind.__name__}, got {message!r:.200}")
        return message

    def _death(self) -> WorkerError:
        code = self._process.wait()
        self._errors.seek(0)
        words = "\n  ".join(self._errors.read().splitlines()[-_LAST_WORDS:])
        return WorkerError(f"{self._name} {_in_words(code)}" + (f"\n  {words}" if words else ""))


def _in_words(code: int) -> str:
    """An exit code, or the signal that it stands for."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + ("; is there enough memory?" if name == "SIGKILL" else "")


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.close()  # which is its word to end
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
        raise WorkerError(f"{name} failed with exit code {done.returncode}; what it said is above")
