"""What a command takes: `python -m bench.taken COMMAND…` prints its CPU seconds and peak memory.

A small process of its own: the peak of a child counts that of the process it was copied from.
"""

import json
import resource
import subprocess
import sys


def main() -> int:
    """Run it with this standard input, its output thrown away; exit status 1 where it failed."""
    ended = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=False)  # noqa: S603 - our own words
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = {
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "mb": round(used.ru_maxrss * 1024 / 1e6, 1),  # kilobytes, by getrusage(2)
    }
    sys.stdout.write(json.dumps(found) + "\n")
    return int(ended.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
