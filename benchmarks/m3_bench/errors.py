"""The benchmark's branch of the error tree.

M3Error
└── BenchError              something could not be measured; the message names it and the remedy
    ├── PeerError           a peer's environment or model could not be made
    ├── WorkerError         a contender's process failed, died, or did other work than it was asked for
    ├── DocumentError       a result file cannot be read, or does not fit the others
    └── DatasetError        texts or labels are not what they must be; file and line are named
"""

from m3_runtime.errors import M3Error


class BenchError(M3Error):
    """Something could not be measured."""


class PeerError(BenchError):
    """A peer's environment or model could not be made."""


class WorkerError(BenchError):
    """A contender's process failed, died, or did other work than it was asked for."""


class DocumentError(BenchError):
    """A result file cannot be read, or does not fit the others."""

    is_of_input = True


class DatasetError(BenchError):
    """Texts or labels are not what they must be."""

    is_of_input = True
