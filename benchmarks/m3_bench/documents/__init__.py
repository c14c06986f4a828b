"""What measurements are written to: JSON documents, one kind a command, every raw value kept.

A document is a frozen value. `write` puts it on the disk whole or not at all, `read` refuses what it does not know.
Figures that can be computed from raw values (percentiles, ratios, costs) are not stored: `stats` computes them.
"""

from m3_bench.documents.comparisons import Compared, Comparison, Prices, SourceFile, TextParity
from m3_bench.documents.files import KINDS, Document, from_text, read, read_as, to_text, write
from m3_bench.documents.kinds import SCHEMA_VERSION, Kind
from m3_bench.documents.loads import Direct, Load, Stage
from m3_bench.documents.runs import Ceiling, Contender, Model, OutputsFile, Roofline, Round, Run, Scenario, ScenarioRun
from m3_bench.documents.searches import BadLine, DatasetFacts, Margins, MethodRun, PairScoresOf, Retrieval

__all__ = [
    "KINDS",
    "SCHEMA_VERSION",
    "BadLine",
    "Ceiling",
    "Compared",
    "Comparison",
    "Contender",
    "DatasetFacts",
    "Direct",
    "Document",
    "Kind",
    "Load",
    "Margins",
    "MethodRun",
    "Model",
    "OutputsFile",
    "PairScoresOf",
    "Prices",
    "Retrieval",
    "Roofline",
    "Round",
    "Run",
    "Scenario",
    "ScenarioRun",
    "SourceFile",
    "Stage",
    "TextParity",
    "from_text",
    "read",
    "read_as",
    "to_text",
    "write",
]
