"""The exporter's branch of the error tree.

M3Error
└── ExportError             the export failed; nothing was written
    ├── SourceError         SOURCE is no folder, no known name and cannot be had from a hub
    ├── CheckpointError     a file of the checkpoint is missing or wrong; names the file
    ├── RecipeError         a recipe, budget or flag says something that cannot be
    │   └── PlanError       a precision plan that cannot be, or is for another model
    ├── TokenizerMismatchError   the runtime gives other ids than the checkpoint's own tokenizer
    └── OverBudgetError     a variant's parity is outside its budget (exit code 3)
"""

from m3_runtime.errors import M3Error


class ExportError(M3Error):
    """The export failed; nothing was written."""


class SourceError(ExportError):
    """SOURCE is no folder, no known name and cannot be had from a hub."""


class CheckpointError(ExportError):
    """A file of the checkpoint is missing or wrong."""


class RecipeError(ExportError):
    """A recipe, budget or flag says something that cannot be."""


class PlanError(RecipeError):
    """A precision plan that cannot be, or is for another model."""


class TokenizerMismatchError(ExportError):
    """The runtime gives other ids than the checkpoint's own tokenizer."""


class OverBudgetError(ExportError):
    """A variant's parity is outside its budget."""
