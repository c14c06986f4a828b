"""What this machine's processor is and can do, as far as choosing a variant needs to know."""

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from m3_runtime.bundle.manifest import CpuFeature
from m3_runtime.cores import field_of, read_or_empty, usable_cores

FEATURE_MEANS = {CpuFeature.INT8_DOT: "VNNI or AMX on x86, the dot product on Arm"}
"""What to look for on a processor, in words."""

_CPUINFO = Path("/proc/cpuinfo")

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
    return described(read_or_empty(_CPUINFO), platform.machine())


def described(cpuinfo: str, architecture: str) -> CpuInfo:
    """The processor that a /proc/cpuinfo tells of.

    Args:
        cpuinfo: the file's text; emulators show that of the machine below, whose flags are not those of `architecture`.
        architecture: as `platform.machine` says it.
    """
    name = field_of(cpuinfo, "model name") or platform.processor() or architecture or "unknown"
    key = "flags" if architecture.lower() in _X86 else "Features"
    flags = frozenset((field_of(cpuinfo, key) or "").split())
    return CpuInfo(name=name, architecture=architecture, flags=flags & _KNOWN_FLAGS)


def default_threads() -> int:
    """Threads to use when none are asked for: one for each core that affinity, topology and CPU quota leave us."""
    return usable_cores().threads
