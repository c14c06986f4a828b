"""How a command ends: its exit code, and what standard error says of what failed."""

import os
import sys
from collections.abc import Callable

from m3_runtime.cli.interrupt import end_without_waiting
from m3_runtime.errors import M3Error
from m3_runtime.exit_codes import FAILED, INTERRUPTED, OK, USAGE, exit_code


def run_command(
    name: str,
    run: Callable[[], int | None],
    *,
    memory_remedy: str,
    consequence: str = "",
    extras_of: Callable[[str], str] | None = None,
) -> int:
    """Run a command to its exit code; None is success.

    Args:
        name: what it is called.
        run: does it.
        memory_remedy: what helps where memory was not enough.
        consequence: what it leaves when it is interrupted, or the system fails: ", nothing was written".
        extras_of: the extras that bring a package; None where none can be missing.
    """
    try:
        code = run() or OK
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader is gone (`| head`). Python would complain when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except M3Error as error:
        said, code = str(error), exit_code(error)
    except OSError as error:
        said, code = f"{error}{consequence}", FAILED
    except MemoryError as error:  # Python's own has no words, numpy's says how much was asked for
        how_much = f" ({error})" if str(error) else ""
        said, code = f"out of memory{how_much}{consequence}; {memory_remedy}", FAILED
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if extras_of is None or package.startswith("m3_"):  # our own is a mistake of ours
            raise
        said = f'{package} is not installed; this command needs: pip install "m3-runtime[{extras_of(package)}]"'
        code = USAGE
    except KeyboardInterrupt:
        said, code = f"interrupted{consequence}", INTERRUPTED
    else:
        return code
    sys.stderr.write(f"{name}: {said}\n")
    if code == INTERRUPTED:
        end_without_waiting(code)
    return code
