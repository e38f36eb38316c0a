"""The clip: the still set in motion."""

from uuid import UUID

from vidgen_worker.config import Settings
from vidgen_worker.domain.resolution import Resolution
from vidgen_worker.domain.task import Artifact, Scene, StageName
from vidgen_worker.pipeline.stages.image import IMAGE
from vidgen_worker.pipeline.stages.stage import Order, Stage, look_at_clip, seconds_of
from vidgen_worker.providers.protocol import Provider
from vidgen_worker.queue.checkpoints import Columns, Step


def order(scene: Scene, resolution: Resolution, settings: Settings, provider: Provider) -> Order:
    """Return the order of a clip. Raises Fault naming the scene's field at fault."""
    seconds = seconds_of(scene)
    request = provider.clip(
        settings.vidgen_video_model, scene.visual_prompt, resolution.video_ratio, seconds
    )
    return Order(request, resolution.video_ratio, seconds)


def path(user_id: UUID, upload_id: UUID) -> str:
    """A place that is used once, and that nobody knows before it is paid for."""
    return f"video-files/{user_id}/{upload_id}.mp4"


def shown(artifact: Artifact, _url: str | None) -> Columns:
    """The owner sees where the clip is; its signed address comes with the task's end."""
    return Columns(video_path=artifact.path)


VIDEO = Stage(
    name=StageName("video"),
    made_from=IMAGE,
    public=False,
    is_result=True,
    media_type="video/mp4",
    generating=Step(70, "Creating video from generated image", "Creating the video"),
    storing=Step(75, "Storing generated video", "Storing the video"),
    stored=Step(95, "Saving results and finalizing", "Saving the results"),
    model=lambda settings: settings.vidgen_video_model,
    bucket=lambda settings: settings.storage_bucket_videos,
    max_bytes=lambda settings: settings.vidgen_max_video_bytes,
    least_bytes=20_000_000,
    order=order,
    path=path,
    look=look_at_clip,
    shown=shown,
)
