"""The exporter's branch of the error tree.

M3Error
└── ExportError             the export failed; nothing was written
    ├── SourceError         SOURCE is no folder, no known name and no repository of the hub
    ├── HubError            the hub cannot be reached, or does not hand out the repository
    ├── CheckpointError     a file of the checkpoint is missing or wrong; names the file
    ├── OptionsError        an option, a budget or a file of texts is invalid
    │   └── PlanError       a precision plan is invalid, or is for another model
    ├── TokenizerMismatchError   the runtime gives other ids than the checkpoint's own tokenizer
    └── OverBudgetError     a variant's parity is outside its budget (exit code 3)
"""

from m3_runtime.errors import M3Error


class ExportError(M3Error):
    """The export failed; nothing was written."""


class SourceError(ExportError):
    """SOURCE is no folder, no known name and no repository of the hub."""

    is_of_input = True


class HubError(ExportError):
    """The hub cannot be reached, or does not hand out the repository."""


class CheckpointError(ExportError):
    """A file of the checkpoint is missing or wrong."""

    is_of_input = True


class OptionsError(ExportError):
    """An option, a budget or a file of texts is invalid."""

    is_of_input = True


class PlanError(OptionsError):
    """A precision plan is invalid, or is for another model."""


class TokenizerMismatchError(ExportError):
    """The runtime gives other ids than the checkpoint's own tokenizer."""


class OverBudgetError(ExportError):
    """A variant's parity is outside its budget."""
