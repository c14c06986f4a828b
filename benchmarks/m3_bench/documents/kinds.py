"""What kinds of documents there are, and which schema they are of."""

from enum import StrEnum

SCHEMA_VERSION = 1


class Kind(StrEnum):
    """What a document holds."""

    RUN = "run"
    ROOFLINE = "roofline"
    COMPARISON = "comparison"
    RETRIEVAL = "retrieval"
    MARGINS = "margins"
    LOAD = "load"
