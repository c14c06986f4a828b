"""Inputs to a page: which sections there are, and in which order."""

from m3_bench.report import summary
from m3_bench.report.choice import all_parity, choose
from m3_bench.report.inputs import Inputs
from m3_bench.report.page import Page, Section, SourceRow
from m3_bench.report.sections import accuracy, facts, margins, resources, retrieval, speed
from m3_runtime.version import __version__


def build(inputs: Inputs) -> Page:
    """Compute every figure and draw every picture."""
    choice, parity = choose(inputs), all_parity(inputs)
    sections: tuple[Section | None, ...] = (
        speed.section(inputs.board, choice),
        accuracy.section(inputs, parity, choice),
        resources.cost(inputs, choice),
        resources.memory(inputs.board),
        resources.ceiling(inputs),
        retrieval.section(inputs),
        margins.section(inputs),
        facts.section(inputs),
    )
    return Page(
        title=_title(inputs),
        subtitle=_subtitle(inputs),
        summary=summary.sentences(inputs, choice),
        tiles=summary.tiles(inputs, choice),
        doubts=summary.doubts(inputs, choice),
        sections=tuple(section for section in sections if section is not None),
        files=tuple(SourceRow(file.name, file.document.kind.value, file.sha256) for file in inputs.files),
        version=__version__,
    )


def _title(inputs: Inputs) -> str:
    name = inputs.model.name if inputs.model is not None else "Retrieval" if inputs.retrievals else "Measurements"
    if any(who.placed.is_reference and who.placed.run.machine.accelerator for who in inputs.board.whos):
        return f"{name}: can the CPU replace the GPU?"
    return f"{name} on CPU" if inputs.model is not None else name


def _subtitle(inputs: Inputs) -> str:
    board = inputs.board
    parts = [f"{len(board.whos)} contenders", f"{len(board.scenarios)} scenarios"] if board.whos else []
    parts += [machine.accelerator or machine.cpu for machine in board.machines]
    parts += [f"dataset {one.document.dataset.name}" for one in inputs.retrievals]
    return " · ".join(parts)
