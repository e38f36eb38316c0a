"""Runs `bench.on_chancy` under its own name: its jobs find their function by import."""

import asyncio
import sys

from bench import on_chancy

asyncio.run({"work": on_chancy.work, "enqueue": on_chancy.enqueue}[sys.argv[1]]())
