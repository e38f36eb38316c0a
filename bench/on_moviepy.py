"""The film of the bench as MoviePy's users write it. Runs in the environment of the tools.

Arguments: the output, how long each scene is and its fade in seconds, then the clips.
"""

import sys

from moviepy import (  # type: ignore[import-not-found]  # in the environment of the tools alone
    CompositeVideoClip,
    VideoFileClip,
    vfx,
)

WIDTH, HEIGHT = 1280, 720


def main() -> None:
    """Cut, fit, dissolve, encode."""
    output, seconds, fade = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    scenes = []
    for number, file in enumerate(sys.argv[4:]):
        clip = VideoFileClip(file, audio=False).subclipped(0, seconds)
        wide = min(clip.w, round(clip.h * WIDTH / HEIGHT))
        high = min(clip.h, round(clip.w * HEIGHT / WIDTH))
        clip = clip.cropped(
            x_center=clip.w / 2, y_center=clip.h / 2, width=wide, height=high
        ).resized((WIDTH, HEIGHT))
        clip = clip.with_start(number * (seconds - fade))
        scenes.append(clip.with_effects([vfx.CrossFadeIn(fade)]) if number else clip)
    CompositeVideoClip(scenes).write_videofile(
        output, fps=25, codec="libx264", audio=False, preset="veryfast", threads=2, logger=None,
        ffmpeg_params=["-crf", "18"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
