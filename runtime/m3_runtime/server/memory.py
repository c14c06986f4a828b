"""What a process holds in memory, as Linux tells it."""

from dataclasses import dataclass
from pathlib import Path

from m3_runtime.server.settings import MIB


@dataclass(frozen=True)
class Memory:
    """All that is resident, and its share where pages are held together with others; in bytes. 0 where nobody tells."""

    resident_bytes: int
    share_bytes: int

    def noted(self) -> dict[str, float]:
        """For a log line; nothing where nobody tells."""
        if not self.resident_bytes:
            return {}
        return {"resident_mib": round(self.resident_bytes / MIB, 1), "share_mib": round(self.share_bytes / MIB, 1)}


def memory_of(process: int | None = None) -> Memory:
    """The memory of a process; None is this one."""
    try:
        text = Path(f"/proc/{process or 'self'}/smaps_rollup").read_text(encoding="ascii", errors="replace")
    except OSError:
        return Memory(0, 0)
    fields = dict(line.split(":", 1) for line in text.splitlines() if line.endswith("kB"))
    resident, share = (1024 * int(fields.get(key, "0 kB").split()[0]) for key in ("Rss", "Pss"))
    return Memory(resident, share)
