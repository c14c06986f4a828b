"""The cores that this process may use, and how many threads that makes: affinity, topology, CPU quota, NUMA nodes.

A CPU is what the system schedules on: a hardware thread. Everything is read from /proc and /sys, which containers and
virtual machines fake, cut or leave out; what contradicts itself counts as not said.
"""

import os
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_CPUS, _NODES = "sys/devices/system/cpu", "sys/devices/system/node"
_CPUINFO = "proc/cpuinfo"
_CGROUPS, _OWN_CGROUPS = "sys/fs/cgroup", "proc/self/cgroup"

# Of x86 and Arm servers. Virtual machines say otherwise when they say nothing about cores.
_MOST_HARDWARE_THREADS = 2


@dataclass(frozen=True)
class CpuQuota:
    """CPU time that a control group leaves to the processes in it and below.

    Attributes:
        cpus: seconds of CPU time per second.
        group: the control group's folder.
    """

    cpus: float
    group: str


@dataclass(frozen=True)
class UsableCores:
    """What this process may use of the machine.

    Attributes:
        machine_cpus: CPUs that the machine has, as far as can be seen.
        allowed_cpus: those that affinity and cpusets leave to this process.
        cores: physical cores among these. The hardware threads of a core share its multipliers, so they count once.
        topology: the file or folder that says so; None if none does: then every CPU counts as a core.
        quota: the least of all control groups above; None without one.
        numa_nodes: the allowed CPUs of each NUMA node that has some; empty if the system says nothing about nodes.
    """

    machine_cpus: int
    allowed_cpus: tuple[int, ...]
    cores: int
    topology: str | None
    quota: CpuQuota | None
    numa_nodes: tuple[tuple[int, ...], ...]

    @property
    def threads(self) -> int:
        """Threads that keep the cores busy and do not overrun the quota: more would be stopped together, in turn."""
        quota = self.cores if self.quota is None else int(self.quota.cpus)
        return max(1, min(self.cores, quota))


def usable_cores(root: Path = _ROOT, allowed: frozenset[int] | None = None) -> UsableCores:
    """What this process may use, by `root`'s /proc and /sys, and by affinity: `allowed`, or what the system says."""
    allowed = _affinity() if allowed is None else allowed
    topology, cores = _topology(root, allowed)
    online = _numbers(read_or_empty(root / _CPUS / "online"))
    return UsableCores(
        machine_cpus=len(online | allowed),
        allowed_cpus=tuple(sorted(allowed)),
        cores=len({cores[cpu] for cpu in allowed}) if topology else len(allowed),
        topology=topology,
        quota=_quota(root),
        numa_nodes=_nodes(root, allowed),
    )


def cpus_of_workers(workers: int, threads: int, usable: UsableCores) -> tuple[tuple[int, ...], ...]:
    """The CPUs of each of several worker processes, so that each computes on the NUMA node that has its memory.

    Args:
        workers: how many processes.
        threads: of each.
        usable: the machine.

    Returns:
        One tuple per worker, of one node or of several whole ones. They are empty, which leaves the workers to the
        system, where there is one node, where nodes differ in size or cannot be shared evenly by the workers, and where
        a node has fewer CPUs than its workers have threads.
    """
    nodes, unbound = usable.numa_nodes, ((),) * workers
    if min(workers, len(nodes)) < 2 or (workers % len(nodes) and len(nodes) % workers):
        return unbound
    shares = min(workers, len(nodes))
    together = len(nodes) // shares
    groups = [sum(nodes[i * together : (i + 1) * together], ()) for i in range(shares)]
    if len({len(group) for group in groups}) > 1 or len(groups[0]) < threads * (workers // shares):
        return unbound
    return tuple(groups[worker % shares] for worker in range(workers))


def bind_to(cpus: tuple[int, ...]) -> None:
    """Keep this thread, and those that it will start, on some CPUs, if any; memory is then taken near them.

    Where they are no longer ours, all stays as it is.
    """
    if cpus:
        with suppress(OSError):
            os.sched_setaffinity(0, cpus)


def read_or_empty(path: Path) -> str:
    """A file's text; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def field_of(text: str, key: str) -> str | None:
    """The first value of a key in `key : value` lines, as /proc/cpuinfo has them."""
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == key:
            return value.strip()
    return None


def _affinity() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _topology(root: Path, allowed: frozenset[int]) -> tuple[str | None, Mapping[int, Hashable]]:
    """What says which CPUs are one core, and of each CPU something that is equal for CPUs of one core."""
    for where, cores in ((_CPUS, _cores_by_sys(root)), (_CPUINFO, _cores_by_cpuinfo(root))):
        if _is_credible(cores, allowed):
            return f"/{where}", cores
    return None, {}


def _is_credible(cores: Mapping[int, Hashable], allowed: frozenset[int]) -> bool:
    """Whether all allowed CPUs are known and no core has too many of them, such as every CPU of the machine.

    Containers of LXC renumber the CPUs of /proc/cpuinfo, so that an allowed one is missing there. Some virtual
    machines give every CPU the same core id.
    """
    if not allowed <= cores.keys():
        return False
    sizes = Counter(cores.values())
    return len(cores) == 1 or (len(sizes) > 1 and max(sizes.values()) <= _MOST_HARDWARE_THREADS)


def _cores_by_sys(root: Path) -> dict[int, Hashable]:
    cores: dict[int, Hashable] = {}
    for folder in (root / _CPUS).glob("cpu[0-9]*/topology"):
        name = folder.parent.name.removeprefix("cpu")
        siblings = _numbers(read_or_empty(folder / "thread_siblings_list"))
        if name.isdecimal() and int(name) in siblings:
            cores[int(name)] = siblings
            continue
        # a core's number counts within its die, and that within its package; older systems know no dies
        ids = tuple(read_or_empty(folder / key).strip() for key in ("physical_package_id", "die_id", "core_id"))
        if name.isdecimal() and ids[0] and ids[2]:
            cores[int(name)] = ids
    return cores


def _cores_by_cpuinfo(root: Path) -> dict[int, Hashable]:
    cores: dict[int, Hashable] = {}
    for block in read_or_empty(root / _CPUINFO).split("\n\n"):
        number, package, core = (field_of(block, key) for key in ("processor", "physical id", "core id"))
        if number is not None and number.isdecimal() and None not in (package, core):
            cores[int(number)] = (package, core)
    return cores


def _nodes(root: Path, allowed: frozenset[int]) -> tuple[tuple[int, ...], ...]:
    folders = [f for f in (root / _NODES).glob("node[0-9]*") if f.name.removeprefix("node").isdecimal()]
    folders.sort(key=lambda folder: int(folder.name.removeprefix("node")))
    found = (_numbers(read_or_empty(folder / "cpulist")) & allowed for folder in folders)
    nodes = tuple(tuple(sorted(cpus)) for cpus in found if cpus)
    return nodes if sum(map(len, nodes)) == len(allowed) else ()


def _quota(root: Path) -> CpuQuota | None:
    """The least that this process's control groups leave it; None without a limit.

    A limit holds for all groups below it: systemd's CPUQuota= and Kubernetes' limit of a pod stand above the group that
    the process is in.
    """
    found = []
    for folder in _group_folders(root / _CGROUPS, read_or_empty(root / _OWN_CGROUPS)):
        quota, _, period = read_or_empty(folder / "cpu.max").strip().partition(" ")  # cgroup v2
        if not period:
            quota = read_or_empty(folder / "cpu.cfs_quota_us").strip()  # cgroup v1
            period = read_or_empty(folder / "cpu.cfs_period_us").strip()
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            found.append(CpuQuota(int(quota) / int(period), f"/{folder.relative_to(root)}"))
    return min(found, key=lambda one: one.cpus, default=None)


def _group_folders(mounted: Path, own_groups: str) -> Iterator[Path]:
    """The root's, which in a container is its own, and those from each of our groups up to the root."""
    yield from (mounted, mounted / "cpu")
    for line in own_groups.splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if ".." in path.split("/") or not path.startswith("/"):
            continue  # outside of what a container sees
        is_v1 = "cpu" in controllers.split(",")
        for name in ("cpu", controllers) if is_v1 else () if controllers else ("",):
            hierarchy = mounted / name
            group = hierarchy / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(hierarchy))


def _numbers(text: str) -> frozenset[int]:
    """The kernel's lists of CPUs; empty if it is none.

    >>> sorted(_numbers("0-2,8"))
    [0, 1, 2, 8]
    """
    numbers: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            return frozenset()
        numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)
