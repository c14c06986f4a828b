"""The machine that something was measured on."""

import os
import platform
from dataclasses import dataclass

import psutil

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

    @property
    def memory(self) -> str:
        """In whole GiB: kernels keep some for themselves."""
        return f"{round(self.memory_bytes / 2**30)} GiB"

    @property
    def short_name(self) -> str:
        """The accelerator, or without one the processor."""
        return self.accelerator.split(",")[0].strip() or self.cpu


def this_machine() -> Machine:
    """Ask the system."""
    cpu = cpu_info()
    return Machine(
        cpu=cpu.name,
        architecture=cpu.architecture,
        flags=tuple(sorted(cpu.flags)),
        logical_cpus=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        load_before=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
    )


def differences(a: Machine, b: Machine) -> tuple[str, ...]:
    """What distinguishes two machines, in words; empty if they are one, or of one build.

    Load, Python and kernel may differ from run to run.
    """
    facts = [
        ("processor", a.cpu, b.cpu),
        ("architecture", a.architecture, b.architecture),
        ("accelerator", a.accelerator or "none", b.accelerator or "none"),
        ("logical CPUs", str(a.logical_cpus), str(b.logical_cpus)),
        ("memory", a.memory, b.memory),
    ]
    found = [f"{name} {one} and {other}" for name, one, other in facts if one != other]
    if flags := sorted(set(a.flags) ^ set(b.flags)):
        found.append(f"processor flags ({', '.join(flags[:5])}{', …' * (len(flags) > 5)} in one only)")
    return tuple(found)


def described(machine: Machine) -> str:
    """Processor, logical CPUs, memory, and the accelerator if there is one."""
    memory = f"{machine.memory} memory" if machine.memory_bytes else ""
    return ", ".join(filter(None, (machine.cpu, f"{machine.logical_cpus} logical CPUs", memory, machine.accelerator)))
