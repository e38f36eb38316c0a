"""Who is measured: this worker and three libraries, each in an environment of its own."""

import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from bench.ground import ROOT, Site
from bench.lines import Process

ENVIRONMENTS = ROOT / ".bench"
CONCURRENCY = 20

# What is not our own business comes from the machine's environment: PATH, TMPDIR, LANG.
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR")


@dataclass(frozen=True, slots=True)
class Contender:
    """`module` is run by `python`; `requirements` are pinned and installed into .bench/<name>."""

    name: str
    module: str
    requirements: tuple[str, ...] = ()
    settings: str = ""

    @property
    def folder(self) -> Path:
        """Its environment."""
        return ENVIRONMENTS / self.name

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.folder / "bin" / "python") if self.requirements else sys.executable

    def install(self) -> None:
        """Make its environment, once; it sees the product's packages behind its own."""
        if not self.requirements or (self.folder / ".installed").exists():
            return
        subprocess.run(  # noqa: S603 - our own words
            [sys.executable, "-m", "venv", "--without-pip", str(self.folder)],
            check=True,
        )
        # Both run the same official clients, in the very same versions.
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        site = self.folder / "lib" / version / "site-packages"
        (site / "product.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
        subprocess.run(  # noqa: S603 - our own words
            [sys.executable, "-m", "pip", "--python", self.python, "install", "-q",
             "--disable-pip-version-check", *self.requirements],
            check=True,
        )  # fmt: skip
        (self.folder / ".installed").touch()

    def start(self, verb: str, site: Site, machine: Mapping[str, str], **more: str) -> Process:
        """Run it as worker (`work`) or as producer (`enqueue`)."""
        environment = {name: machine[name] for name in _KEPT if name in machine}
        return Process(
            [self.python, "-m", self.module, verb],
            environment | site.environment(**more),
            site.folder / f"{self.name}-{verb}.log",
            ROOT,
        )


OURS = Contender(
    "vidgen-worker", "bench.ours", settings=f"VIDGEN_CONCURRENCY={CONCURRENCY}, else defaults"
)
PEERS = (
    Contender(
        "procrastinate", "bench.on_procrastinate", ("procrastinate==3.10.0",),
        f"concurrency {CONCURRENCY}",
    ),
    Contender(
        "pgqueuer", "bench.on_pgqueuer", ("pgqueuer[asyncpg]==1.6.0", "uvloop==0.23.0"),
        f"asyncpg pool, uvloop, batch {CONCURRENCY // 2}, at most {CONCURRENCY} tasks",
    ),
    Contender(
        "chancy", "bench.on_chancy_main", ("chancy==0.26.0",),
        f"asyncio executor, concurrency {CONCURRENCY}, eager polling",
    ),
)  # fmt: skip
ALL: tuple[Contender, ...] = (OURS, *PEERS)
BY_NAME: Mapping[str, Contender] = MappingProxyType({one.name: one for one in ALL})
