"""The clock of this process: seconds since boot. The calendar is not read."""

import time


def boot_time() -> float:
    """Seconds since boot, suspend included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
