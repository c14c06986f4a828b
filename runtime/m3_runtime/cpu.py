"""What this machine's processor is and can do, as far as choosing a variant needs to know."""

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from m3_runtime.bundle.manifest import CpuFeature
from m3_runtime.cores import field_of, read_or_empty, usable_cores
from m3_runtime.errors import EngineError

FEATURE_MEANS = {
    CpuFeature.INT8_DOT: "VNNI or AMX on x86, the dot product on Arm",
    CpuFeature.X86: "Intel or AMD: on Arm, OpenVINO's vectors were wrong where they were tried",
}
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

    Attributes:
        name: as its maker calls it.
        architecture: as `platform.machine` says it.
        flags: those that decide what runs here, and how fast.
        x86_level: 1 to 3, the highest of the levels x86-64, x86-64-v2 (SSE4.2) and x86-64-v3 (AVX2) that it reaches
            (the psABI's; v4 counts as v3); None if it is no x86 processor or cannot be read.
    """

    name: str
    architecture: str
    flags: frozenset[str]
    x86_level: int | None = None

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

    @property
    def flags_in_words(self) -> str:
        """The flags, or why there are none."""
        return ", ".join(sorted(self.flags)) or ("no AVX" if self.x86_level else "no flags that can be read")

    def has(self, feature: CpuFeature) -> bool:
        """Whether the processor can do what a variant needs."""
        return {CpuFeature.INT8_DOT: self.has_int8_dot, CpuFeature.X86: self.is_x86}[feature]


@cache
def cpu_info() -> CpuInfo:
    """This machine's processor."""
    return described(read_or_empty(_CPUINFO), platform.machine())


def described(cpuinfo: str, architecture: str) -> CpuInfo:
    """The processor that the text of /proc/cpuinfo and `platform.machine` describe.

    Emulators show the file of the machine below, whose flags are not those of `architecture`.
    """
    name = field_of(cpuinfo, "model name") or platform.processor() or architecture or "unknown"
    key = "flags" if architecture.lower() in _X86 else "Features"
    flags = frozenset((field_of(cpuinfo, key) or "").split())
    return CpuInfo(name, architecture, flags & _KNOWN_FLAGS, _x86_level(flags))


def check_processor(cpu: CpuInfo) -> None:
    """Refuse a processor on which an import would end the process by an illegal instruction.

    Raises:
        EngineError: it does not reach x86-64-v2, which NumPy's wheels need since 2.4, and OpenVINO as well.
    """
    if cpu.x86_level == 1:
        raise EngineError(
            f"this processor ({cpu.name}) has no SSE4.2 (x86-64-v2), without which NumPy and OpenVINO do not run; "
            "a virtual machine may hide it: give it the CPU type 'host', or 'x86-64-v3'"
        )


def _x86_level(flags: frozenset[str]) -> int | None:
    if "sse2" not in flags:  # which every one has
        return None
    if not flags >= {"ssse3", "sse4_1", "sse4_2", "popcnt"}:
        return 1
    return 3 if flags >= {"avx", "avx2", "fma"} else 2


def default_threads() -> int:
    """Threads to use when none are asked for: one for each core that affinity, topology and CPU quota leave us."""
    return usable_cores().threads
