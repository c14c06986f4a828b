"""How an engine is opened: what of memory, start and speed is traded for what."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Opening:
    """What the caller wants of an engine besides its results, which do not depend on it.

    `low_memory`: hold less in memory and take longer for it. `cache_folder`: where this variant's compiled form is kept
    from one opening to the next (OpenVINO only), or None.
    """

    low_memory: bool = False
    cache_folder: Path | None = None


DEFAULT_OPENING = Opening()
