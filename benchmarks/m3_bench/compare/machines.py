"""Whether two runs were on one machine, and what to call it."""

from collections.abc import Sequence

from m3_bench.machine import Machine

_GIB = 2**30


def differences(a: Machine, b: Machine) -> tuple[str, ...]:
    """What tells two machines apart, in words; empty if they are one.

    Load, Python and kernel may differ from run to run. Memory counts in whole GiB: kernels keep some for themselves.
    """
    facts = [
        ("processor", a.cpu, b.cpu),
        ("architecture", a.architecture, b.architecture),
        ("accelerator", a.accelerator or "none", b.accelerator or "none"),
        ("logical CPUs", str(a.logical_cpus), str(b.logical_cpus)),
        ("memory", _gib(a.memory_bytes), _gib(b.memory_bytes)),
    ]
    told = [f"{name} {one} and {other}" for name, one, other in facts if one != other]
    if flags := set(a.flags) ^ set(b.flags):
        told.append(f"processor flags ({', '.join(sorted(flags)[:5])}{', …' * (len(flags) > 5)} in one only)")
    return tuple(told)


def is_same(a: Machine, b: Machine) -> bool:
    """Whether they are one machine, or of one build."""
    return not differences(a, b)


def distinct(machines: Sequence[Machine]) -> tuple[Machine, ...]:
    """One of each, in the order they appear."""
    found: list[Machine] = []
    for machine in machines:
        if not any(is_same(machine, other) for other in found):
            found.append(machine)
    return tuple(found)


def name_of(machine: Machine, others: Sequence[Machine]) -> str:
    """A short name, with a number where several of `others`, which are distinct, would share it."""
    namesakes = [other for other in others if _plain_name(other) == _plain_name(machine)]
    number = next((n for n, other in enumerate(namesakes, 1) if is_same(other, machine)), 1)
    return _plain_name(machine) if len(namesakes) < 2 else f"{_plain_name(machine)} (machine {number})"


def described(machine: Machine) -> str:
    """Processor, logical CPUs, memory, and the accelerator if there is one."""
    parts = [machine.cpu, f"{machine.logical_cpus} logical CPUs"]
    parts += [f"{_gib(machine.memory_bytes)} memory"] if machine.memory_bytes else []
    parts += [machine.accelerator] if machine.accelerator else []
    return ", ".join(parts)


def _plain_name(machine: Machine) -> str:
    return machine.accelerator.split(",")[0].strip() or machine.cpu


def _gib(count: int) -> str:
    return f"{round(count / _GIB)} GiB"
