"""Everything that can go wrong when a named checkpoint is written.

```
ModelError
├── UnknownModelError      (KeyError)      no such name
├── MissingPackageError    (ImportError)   an optional package is not installed
├── WeightsFileError       (ValueError)    the 4-bit file is damaged, cut off or another release's
└── FolderNotEmptyError    (FileExistsError) the target folder already holds something
```
"""


class ModelError(Exception):
    """Base of every error that `m3_models` raises on purpose."""


class UnknownModelError(ModelError, KeyError):
    """The name is not one of `m3_models.names()`."""

    def __str__(self) -> str:
        # KeyError prints the repr of its argument, quotes and all: show the sentence itself.
        return str(self.args[0]) if self.args else ""


class MissingPackageError(ModelError, ImportError):
    """A package that the chosen checkpoint is built from is not installed."""


class WeightsFileError(ModelError, ValueError):
    """The 4-bit weights file cannot be what it should be."""


class FolderNotEmptyError(ModelError, FileExistsError):
    """The folder to write to exists and is not empty."""
