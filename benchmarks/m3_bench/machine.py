"""What a report must say about where it was measured."""

import os
import platform
from dataclasses import dataclass

from m3_runtime.cpu import cpu_info


@dataclass(frozen=True)
class Machine:
    """This machine. `memory_bytes` is 0 where the system does not say; the load is what it was before the run.

    `accelerator` names the device that computed where it was not the processor, with its memory and driver.
    """

    cpu: str
    architecture: str
    flags: tuple[str, ...]
    logical_cpus: int
    memory_bytes: int
    system: str
    python: str
    load_before: float
    accelerator: str = ""


def this_machine() -> Machine:
    """Ask the system."""
    cpu = cpu_info()
    return Machine(
        cpu=cpu.name,
        architecture=cpu.architecture,
        flags=tuple(sorted(cpu.flags)),
        logical_cpus=os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        load_before=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
    )


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
