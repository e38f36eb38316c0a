"""The sandbox as a process: `python -m vidgen_worker.sandbox [KEY=VALUE ...]`.

Prints the environment of a worker as JSON, one line, and runs until SIGINT, SIGTERM or the end of
its standard input. The arguments are `RunwaySettings`, values as JSON. For tests and benchmarks;
people use `vidgen-worker sandbox`.
"""

import json
import os
import select
import signal
import sys

from vidgen_worker.sandbox import RunwaySettings, Sandbox


def main() -> None:
    """Run a sandbox until told to end."""
    given = (argument.partition("=") for argument in sys.argv[1:])
    settings = RunwaySettings(**{name: json.loads(value) for name, _, value in given})
    wakeup, ringer = os.pipe()
    # Only a byte in a pipe, so that no signal can interrupt the clean-up.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os.write(ringer, b"."))
    with Sandbox.start(settings=settings) as sandbox:
        os.write(1, json.dumps(sandbox.environment()).encode() + b"\n")
        while True:
            readable, _, _ = select.select([wakeup, 0], [], [])
            if wakeup in readable or not os.read(0, 4096):
                return


if __name__ == "__main__":
    main()
