"""The clock by which this process counts. It reads no calendar."""

import time


def boot_time() -> float:
    """Seconds since boot, suspend included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
