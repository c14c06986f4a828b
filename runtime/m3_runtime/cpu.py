"""What this machine's processor is and can do, as far as choosing a variant needs to know."""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from m3_runtime.bundle.manifest import CpuFeature

FEATURE_MEANS = {CpuFeature.INT8_DOT: "VNNI or AMX on x86, the dot product on Arm"}
"""What to look for on a processor, in words."""

_CPUINFO = Path("/proc/cpuinfo")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")

# What the engines look at; the rest of the flags says nothing here.
_KNOWN_FLAGS = frozenset(
    {"avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16"}
    | {"amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve"}
)
# Best first.
_INT8_MULTIPLIERS = {
    "amx_int8": "amx",
    "avx512_vnni": "vnni",
    "avx_vnni": "vnni",
    "i8mm": "i8mm",
    "asimddp": "dotprod",
}
_X86 = frozenset({"x86_64", "amd64", "i386", "i686"})


@dataclass(frozen=True)
class CpuInfo:
    """A processor: name, architecture (as `platform.machine` says it), instruction sets that matter.

    Where the flags cannot be read (anything but Linux), `flags` is empty: no instruction set is assumed.
    """

    name: str
    architecture: str
    flags: frozenset[str]

    @property
    def is_x86(self) -> bool:
        """An Intel or AMD processor."""
        return self.architecture.lower() in _X86

    @property
    def has_int8_dot(self) -> bool:
        """Multiplies int8 without saturating on the way (VNNI or AMX on x86, dot product on Arm)."""
        return bool(self.flags & _INT8_MULTIPLIERS.keys())

    @property
    def has_bf16(self) -> bool:
        """Multiplies bf16 (AVX512-BF16 or AMX on x86, the BF16 extension on Arm)."""
        return bool(self.flags & {"avx512_bf16", "amx_bf16", "bf16"})

    @property
    def multipliers(self) -> str:
        """What decides which variant is fastest: the best int8 product, and whether bf16 is multiplied.

        >>> CpuInfo("Zen 4", "x86_64", frozenset({"avx2", "avx512_vnni", "avx512_bf16"})).multipliers
        'vnni+bf16'
        """
        int8 = next((name for flag, name in _INT8_MULTIPLIERS.items() if flag in self.flags), "none")
        return int8 + ("+bf16" if self.has_bf16 else "")

    def has(self, feature: CpuFeature) -> bool:
        """Whether the processor can do what a variant needs."""
        return {CpuFeature.INT8_DOT: self.has_int8_dot}[feature]


@cache
def cpu_info() -> CpuInfo:
    """This machine's processor."""
    text = _read(_CPUINFO)
    architecture = platform.machine()
    name = _field(text, "model name") or platform.processor() or architecture or "unknown"
    flags = frozenset((_field(text, "flags") or _field(text, "Features") or "").split())
    return CpuInfo(name=name, architecture=architecture, flags=flags & _KNOWN_FLAGS)


def default_threads() -> int:
    """Threads to use when none are asked for: the cores that affinity and container quota leave us.

    Two hardware threads of one core share its multipliers, so they count once.
    """
    allowed = _allowed_cpus()
    cores = _physical_cores(_read(_CPUINFO), allowed) or len(allowed)
    quota = _cgroup_quota(_CGROUPS, _read(_OWN_CGROUPS))
    return max(1, min(cores, quota) if quota is not None else cores)


def _allowed_cpus() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _physical_cores(cpuinfo: str, allowed: frozenset[int]) -> int:
    """Distinct (socket, core) pairs among the allowed processors; 0 where the file does not say."""
    cores = set()
    for block in cpuinfo.split("\n\n"):
        number, socket, core = (_field(block, key) for key in ("processor", "physical id", "core id"))
        if number is None or socket is None or core is None:
            continue
        if number.isdigit() and int(number) in allowed:
            cores.add((socket, core))
    return len(cores)


def _cgroup_quota(root: Path, own_groups: str) -> int | None:
    """Whole processors that this process's control groups leave it, rounded up; None without a limit.

    A limit holds for all groups below it, so the least of them counts: systemd's CPUQuota= and Kubernetes' limit of a
    pod stand above the group that the process is in.

    Args:
        root: where control groups are mounted.
        own_groups: the text of /proc/self/cgroup.
    """
    quotas = [quota for folder in _group_folders(root, own_groups) if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def _group_folders(root: Path, own_groups: str) -> Iterator[Path]:
    """The root's, which in a container is its own, and those from each group up to the root."""
    yield from (root, root / "cpu")
    for line in own_groups.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if ".." in path or not path.startswith("/"):
            continue  # outside of what a container sees
        mounted = root / "cpu" if "cpu" in controllers.split(",") else root if not controllers else None
        if mounted is not None:
            group = mounted / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mounted))


def _quota_of(folder: Path) -> int | None:
    quota, _, period = _read(folder / "cpu.max").strip().partition(" ")  # cgroup v2
    if not period:
        quota = _read(folder / "cpu.cfs_quota_us").strip()  # cgroup v1
        period = _read(folder / "cpu.cfs_period_us").strip()
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return max(1, -(-int(quota) // int(period)))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(text: str, key: str) -> str | None:
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == key:
            return value.strip()
    return None
