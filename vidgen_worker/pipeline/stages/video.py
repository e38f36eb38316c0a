"""The clip: the still set in motion."""

from uuid import UUID

from vidgen_worker.config import Settings
from vidgen_worker.domain.resolution import Resolution, video_models
from vidgen_worker.domain.task import Scene, StageName
from vidgen_worker.pipeline.stages.stage import Order, Stage, seconds_of
from vidgen_worker.providers.runway.inputs import video_request
from vidgen_worker.queue.checkpoints import Step


def order(scene: Scene, resolution: Resolution, settings: Settings, frame_url: str) -> Order:
    """What to ask for. Raises Fault naming the scene's field at fault."""
    model = video_models()[settings.vidgen_video_model]
    seconds = seconds_of(scene)
    request = video_request(
        model, scene.visual_prompt, frame_url, model.nearest(resolution.video_ratio), seconds
    )
    return Order(request, resolution.video_ratio, seconds)


def path(user_id: UUID, upload_id: UUID) -> str:
    """A place that is used once, and that nobody knows before it is paid for."""
    return f"video-files/{user_id}/{upload_id}.mp4"


VIDEO = Stage(
    name=StageName.VIDEO,
    generating=Step(70, "Creating video from generated image", "Creating the video"),
    storing=Step(75, "Storing generated video", "Storing the video"),
    stored=Step(95, "Saving results and finalizing", "Saving the results"),
    media_type="video/mp4",
    order=order,
    path=path,
)
