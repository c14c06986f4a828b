"""Where, with what, and from which files."""

from m3_bench.compare.figures import Board, Place
from m3_bench.compare.machines import is_same
from m3_bench.machine import Machine
from m3_bench.report.inputs import Inputs
from m3_bench.report.page import Cell, Section, Table

_TELLING_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "sve",
)


def section(inputs: Inputs) -> Section | None:
    """Machines and contenders; None without runs."""
    board = inputs.board
    if not board.whos:
        return None
    return Section(
        anchor="facts",
        title="Machines and contenders",
        intro=_models(inputs),
        tables=(_machines(board), _contenders(board)),
    )


def _models(inputs: Inputs) -> str:
    model = inputs.model
    if model is None:
        return ""
    return (
        f"Everything ran {model.name}: vector space {model.space_id[:16]}, weights SHA-256 {model.weights_sha256[:16]}…"
    )


def _machines(board: Board) -> Table:
    rows = tuple(_machine_row(machine, *_where(machine, board)) for machine in board.machines)
    head = ("", "accelerator", "logical CPUs", "threads", "memory", "telling flags", "system", "Python", "load before")
    return Table("Machines", head, rows)


def _where(machine: Machine, board: Board) -> tuple[Place, str]:
    """The first run on a machine, and the threads of all."""
    runs = [who.placed for who in board.whos if is_same(who.placed.run.machine, machine)]
    threads = sorted({placed.run.threads for placed in runs})
    return runs[0].place, ", ".join(str(count) if count else "–" for count in threads)


def _machine_row(machine: Machine, place: Place, threads: str) -> tuple[Cell, ...]:
    below = place.below("machine")
    return (
        Cell(machine.cpu),
        Cell(machine.accelerator or "–"),
        Cell(str(machine.logical_cpus), below.below("logical_cpus")),
        Cell(threads, place.below("threads")),
        Cell(f"{machine.memory_bytes / 2**30:.0f} GiB" if machine.memory_bytes else "–", below.below("memory_bytes")),
        Cell(", ".join(flag for flag in _TELLING_FLAGS if flag in machine.flags) or "–"),
        Cell(f"{machine.system}, {machine.architecture}"),
        Cell(machine.python),
        Cell(f"{machine.load_before:.2f}", below.below("load_before")),
    )


def _contenders(board: Board) -> Table:
    rows = []
    for who in board.whos:
        versions = ", ".join(f"{name} {version}" for name, version in sorted(who.contender.versions.items()))
        kind = "reference" if who.placed.is_reference else "ours" if who.is_ours else "peer"
        rows.append(
            (
                Cell(who.label),
                Cell(kind),
                Cell(who.contender.engine),
                Cell(who.contender.precision),
                Cell(", ".join(who.contender.heads)),
                Cell(versions or "–"),
                Cell(who.machine),
                Cell(who.placed.source, who.place),
            )
        )
    return Table(
        "Contenders", ("", "is", "engine", "precision", "heads", "releases", "machine", "measured in"), tuple(rows)
    )
