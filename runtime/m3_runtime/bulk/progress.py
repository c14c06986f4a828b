"""How a job goes, on standard error."""

import sys
from types import TracebackType
from typing import Any

from m3_runtime.bulk.encode import StepDone
from m3_runtime.errors import ExtraNotInstalledError

_FORMAT = "{percentage:3.0f}%|{bar}| {postfix} [{elapsed}, left {remaining}]"
_EVERY_S, _EVERY_IN_A_FILE_S = 0.2, 30.0


class ProgressBar:
    """A bar over the bytes of the inputs, with rows, tokens/s of this run, and the time that is left.

    Where standard error is no terminal, a line every half minute.
    """

    def __init__(self, *, is_shown: bool) -> None:
        """Nothing is shown before `begin`.

        Args:
            is_shown: show anything at all.

        Raises:
            ExtraNotInstalledError: tqdm is not installed.
        """
        try:
            from tqdm import tqdm
        except ImportError as error:
            raise ExtraNotInstalledError(
                'the progress bar needs tqdm; pip install "m3-runtime[bulk]", or pass --quiet'
            ) from error
        self._tqdm, self._is_shown = tqdm, is_shown
        self._bar: Any = None
        self._rows = self._tokens = 0

    def begin(self, total_bytes: int, done_bytes: int) -> None:
        """Show the bar; so much was done by earlier runs."""
        is_terminal = sys.stderr.isatty()
        self._bar = self._tqdm(
            total=total_bytes,
            initial=done_bytes,
            disable=not self._is_shown,
            bar_format=_FORMAT if is_terminal else _FORMAT.replace("|{bar}|", "") + "\n",
            mininterval=_EVERY_S if is_terminal else _EVERY_IN_A_FILE_S,
            miniters=1,
            smoothing=0,  # steps come in bursts: the mean since the start tells the time that is left best
        )

    def step(self, done: StepDone) -> None:
        """Some rows are encoded."""
        self._rows += done.rows
        self._tokens += done.tokens
        tokens_per_s = self._tokens / max(self._bar.format_dict["elapsed"], 1e-9)
        self._bar.set_postfix_str(f"{self._rows} rows, {tokens_per_s:.0f} tokens/s", refresh=False)
        self._bar.update(done.input_bytes)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
