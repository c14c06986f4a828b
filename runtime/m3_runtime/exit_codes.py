"""Exit codes, one meaning each in all three commands."""

from m3_runtime.errors import M3Error

OK, FAILED, USAGE, OVER_LIMIT, TOO_MANY_REJECTED, INTERRUPTED = 0, 1, 2, 3, 4, 130


def exit_code(error: BaseException) -> int:
    """How a command ends that fails with an error: USAGE if what it was given is wrong, else FAILED.

    >>> from m3_runtime.errors import BundleNotFoundError, EngineError
    >>> exit_code(BundleNotFoundError("no bundle")), exit_code(EngineError("no memory")), exit_code(OSError("no room"))
    (2, 1, 1)
    """
    return USAGE if isinstance(error, M3Error) and error.is_of_input else FAILED
