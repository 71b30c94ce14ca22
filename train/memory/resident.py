"""What a process holds in memory, as the kernel counts it."""

import re
from pathlib import Path


def peak_rss_bytes() -> int | None:
    """The kernel's high-water mark of this process; None where there is no /proc."""
    try:
        found = re.search(
            r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE
        )
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def reset_peak_rss() -> bool:
    """Lower the mark to what is used now; False where that is not permitted."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
