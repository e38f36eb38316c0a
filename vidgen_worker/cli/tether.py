"""Run a Python program that dies with the program that started it, even if that is killed.

Used as a script: `python tether.py PARENT_PID ARGUMENTS…` becomes `python ARGUMENTS…`. It imports
nothing but the standard library, and does nothing on systems that can't tell a child of its
parent's death.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent = int(sys.argv[1])
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked to be told
            sys.exit(1)
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])  # noqa: S606 - our own interpreter
