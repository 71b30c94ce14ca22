"""Peak resident memory of this process, as the Linux kernel counts it."""

import re
from pathlib import Path


def peak_rss_bytes() -> int | None:
    """The kernel's high-water mark of this process; None where there is no /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    if match is None:
        return None
    return int(match[1]) * 1024


def reset_peak_rss() -> bool:
    """Lower the mark to what is used now; False where that is not permitted."""
    try:
        # 5 resets VmHWM (man 5 proc_pid_clear_refs).
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
