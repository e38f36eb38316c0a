"""Rows of films: CPU, memory, bytes and quality of what is rendered, beside what others take.

CPU seconds and ratios only: wall time is the machine's.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av

from bench import tools
from bench.clips import FPS, FRAMES, TESTED, Clip, write
from bench.ground import ROOT
from vidgen_worker.films.job import Job, Scene, to_json
from vidgen_worker.films.presets import FORMATS
from vidgen_worker.films.render.files import Encoding, Writer
from vidgen_worker.films.render.outputs import make
from vidgen_worker.films.render.quality import SCALES, TARGETS
from vidgen_worker.films.render.scenes import film
from vidgen_worker.films.rendering import CHILD

if TYPE_CHECKING:
    from collections.abc import Callable

Result = dict[str, Any]

SCENES = ("bigbuckbunny.mp4", "bikes.mp4", "bigbuckbunny.mp4")
SECONDS, FADE, RATE = 5, 0.48, 25
SIZE = (1280, 720)
WITHIN = 1.5
"""How much VMAF a result may miss its target by."""
PLENTY = {"memory": 8 * 2**30, "bytes": 2 * 2**30, "cpu": 3600}
RATE_FACTORS = (24, 32, 40, 48, 56)
"""Of the AV1 encodes whose bytes at another film's VMAF are looked up."""


# CPU and memory


def cpu(rounds: int) -> Result:
    """CPU seconds and peak memory of a film of three scenes, ours, FFmpeg's and MoviePy's."""
    tools.install()
    clips = [tools.films() / name for name in SCENES]
    with tempfile.TemporaryDirectory(prefix="vidgen-bench-") as name:
        folder = Path(name)
        ways: dict[str, Callable[[], Result]] = {
            "vidgen-worker": lambda: _rendered(_film(SCENES, SECONDS, FADE), folder),
            "ffmpeg": lambda: _taken(_command(clips, folder / "ffmpeg.mp4")),
            "moviepy": lambda: _taken(
                [str(tools.PYTHON), str(ROOT / "bench" / "on_moviepy.py"),
                 str(folder / "moviepy.mp4"), str(SECONDS), str(FADE), *map(str, clips)]
            ),
        }  # fmt: skip
        runs: dict[str, list[Result]] = {who: [] for who in ways}
        for _ in range(rounds):
            for who, way in ways.items():
                runs[who].append(way())
        seconds = {who: _seconds_of(folder / f"{who}.mp4") for who in ("ffmpeg", "moviepy")}
        seconds["vidgen-worker"] = _seconds_of(folder / "film.mp4")
    medians = {
        who: {key: statistics.median(run[key] for run in found) for key in ("cpu_seconds", "mb")}
        for who, found in runs.items()
    }
    return {"scenes": len(SCENES), "seconds": seconds, "runs": runs, **medians}


def memory() -> Result:
    """Peak memory of a render of three scenes and of thirty."""
    tools.install()
    with tempfile.TemporaryDirectory(prefix="vidgen-bench-") as name:
        few, many = (
            _rendered(_film(SCENES * times, 2, FADE), Path(name))["mb"] for times in (1, 10)
        )
    return {"few_mb": few, "many_mb": many, "ratio": round(many / few, 3)}


def _film(names: tuple[str, ...], seconds: float, fade: float) -> Job:
    """A film of some clips' first seconds, which dissolve into each other."""
    frames, shared = round(seconds * RATE), round(fade * RATE)
    scenes: list[Scene] = []
    for number, name in enumerate(names):
        start = number * (frames - shared)
        scenes.append(Scene(name, start, 0, frames, shared if number else 0))
    return Job(
        name="film", format="mp4", width=SIZE[0], height=SIZE[1], fit="cover", rate=(RATE, 1),
        frames=scenes[-1].end, scenes=tuple(scenes),
    )  # fmt: skip


def _rendered(job: Job, folder: Path) -> Result:
    """Have the worker's own child make it."""
    for scene in job.scenes:
        file = folder / scene.file
        if not file.exists():
            file.write_bytes((tools.films() / scene.file).read_bytes())
    asked = {
        "render": to_json(job), "file": "film.mp4", "fonts": [], "limits": PLENTY,
        "folder": str(folder),
    }  # fmt: skip
    return _taken([sys.executable, "-P", str(CHILD)], json.dumps(asked) + "\n")


def _command(clips: list[Path], output: Path) -> list[str]:
    """The same film as an FFmpeg command."""
    fit = (
        "crop='min(iw,ih*16/9)':'min(ih,iw*9/16)',"
        f"scale={SIZE[0]}:{SIZE[1]}:flags=lanczos+accurate_rnd,setsar=1,format=yuv420p,fps={RATE},"
        f"trim=duration={SECONDS},settb=1/{RATE},setpts=PTS-STARTPTS"
    )
    graph = [f"[{n}:v]{fit}[v{n}]" for n in range(len(clips))]
    last = "v0"
    for number in range(1, len(clips)):
        offset = number * (SECONDS - FADE)
        graph.append(
            f"[{last}][v{number}]xfade=transition=fade:duration={FADE}:offset={offset}[x{number}]"
        )
        last = f"x{number}"
    inputs = [word for clip in clips for word in ("-threads", "2", "-i", str(clip))]
    return [
        tools.ffmpeg(), "-y", "-v", "error", *inputs, "-filter_complex", ";".join(graph),
        "-map", f"[{last}]", "-c:v", "libx264", "-preset", "veryfast", "-crf", "18",
        "-threads", "2", "-movflags", "+faststart", str(output),
    ]  # fmt: skip


def _taken(command: list[str], said: str = "") -> Result:
    ended = subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-m", "bench.taken", *command], cwd=ROOT, input=said, text=True,
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    found: Result = json.loads(ended.stdout)
    return found


def _seconds_of(file: Path) -> float:
    with av.open(str(file)) as container:
        return round(sum(1 for _ in container.decode(video=0)) / RATE, 2)


# Bytes and quality


def job_of(clip: Clip, form: str, target: str | None = None) -> Job:
    """An output that shows a clip as it is, in a format, for a target."""
    return Job(
        name=f"{clip.name}-{form}", format=form, width=clip.size[0], height=clip.size[1],
        fit="cover", rate=Fraction(FPS).as_integer_ratio(), frames=FRAMES,
        scenes=(Scene(f"{clip.name}.mp4", 0, 0, FRAMES),), target=target,
    )  # fmt: skip


def encoded(clip: Clip, form: str, crf: int, folder: Path) -> Path:
    """Encode a clip with one rate factor, as outputs are."""
    file = folder / f"{clip.name}-{form}-{crf}.mp4"
    with Writer(job_of(clip, form), file, how=Encoding(crf)) as writer:
        writer.write(film(job_of(clip, form), folder), None, lambda _: None)
    return file


def sizes(clips: int) -> Result:
    """Bytes of AV1 over those of x264 (CRF 23, medium) at its VMAF, for some clips of each kind."""
    tools.install()
    found: list[Result] = []
    chosen = [clip for kind in _kinds() for clip in kind[:clips]]
    with tempfile.TemporaryDirectory(prefix="vidgen-bench-") as name:
        folder = Path(name)
        for clip in chosen:
            original = write(clip, tools.films(), folder)
            usual = folder / "usual.mp4"
            subprocess.run(  # noqa: S603 - our own words
                [tools.ffmpeg(), "-y", "-v", "error", "-i", str(original), "-c:v", "libx264",
                 "-preset", "medium", "-crf", "23", "-threads", "2", str(usual)],
                check=True,
            )  # fmt: skip
            wanted = tools.vmaf(usual, original)
            points = []
            for crf in RATE_FACTORS:
                made = encoded(clip, "av1", crf, folder)
                points.append((tools.vmaf(made, original), made.stat().st_size))
                if points[-1][0] < wanted:
                    break
            size = _at(points[-2:], wanted)
            found.append({
                "clip": clip.name, "vmaf": round(wanted, 1), "x264": usual.stat().st_size,
                "av1": round(size), "ratio": round(size / usual.stat().st_size, 3),
            })  # fmt: skip
    mean = math.exp(statistics.mean(math.log(one["ratio"]) for one in found))
    return {"clips": found, "ratio": round(mean, 3)}


def _kinds() -> list[list[Clip]]:
    kinds: dict[str, list[Clip]] = {}
    for clip in TESTED:
        kinds.setdefault(clip.kind, []).append(clip)
    return list(kinds.values())


def _at(points: list[tuple[float, int]], wanted: float) -> float:
    """Bytes at a VMAF, on the line through two points, bytes by their logarithm."""
    (best, large), (worst, small) = points[0], points[-1]
    share = (best - wanted) / max(best - worst, 0.1)
    return float(large * (small / large) ** share)


def targets(wanted: tuple[str, ...], clips: tuple[Clip, ...] = TESTED) -> Result:
    """How far each output's VMAF is from its target, for clips that nothing was fitted on."""
    tools.install()
    found: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="vidgen-bench-") as name:
        folder = Path(name)
        for clip in clips:
            original = write(clip, tools.films(), folder)
            found += [
                _aimed(clip, form, target, folder, original)
                for form in ("mp4", "av1")
                for target in wanted
            ]
    near = sum(one["near"] for one in found)
    return {"outputs": found, "near": near, "share": round(near / len(found), 3)}


def _aimed(clip: Clip, form: str, target: str, folder: Path, original: Path) -> Result:
    """One output for a target. What is too good at the highest rate factor is as near as can be."""
    file = folder / "aimed.mp4"
    quality = make(job_of(clip, form, target), folder, file, lambda _: None)["quality"] or {}
    reached = tools.vmaf(file, original)
    highest = SCALES[str(FORMATS[form].encoder)].bounds[1]
    off = reached - TARGETS[target]
    return {
        "clip": clip.name, "format": form, "target": target, "vmaf": round(reached, 2),
        "off": round(off, 2), "bytes": file.stat().st_size,
        **{f"said_{name}": value for name, value in quality.items()},
        "near": abs(off) <= WITHIN, "at_bound": quality.get("crf") == highest and off > 0,
    }  # fmt: skip
