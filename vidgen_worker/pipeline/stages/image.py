"""The still: made from the image prompt, with the product's picture as its reference."""

from uuid import UUID

from vidgen_worker.config import Settings
from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.domain.resolution import Resolution
from vidgen_worker.domain.task import Artifact, Scene, StageName
from vidgen_worker.pipeline.stages.stage import Order, Stage, look_at_picture
from vidgen_worker.providers.protocol import Provider
from vidgen_worker.queue.checkpoints import Columns, Step


def order(scene: Scene, resolution: Resolution, settings: Settings, provider: Provider) -> Order:
    """Return the order of a still. Raises Fault naming the scene's field at fault."""
    prompt = scene.image_prompt
    if not (prompt or "").strip():
        prompt = scene.visual_prompt
    if not (prompt or "").strip():
        message = (
            "The fields image_prompt and visual_prompt are both empty. "
            "Write at least one, then retry."
        )
        raise Fault(FaultName.SCENE_INVALID, field="image_prompt", message=message, details=message)
    reference = (scene.product_reference_image_url or "").strip() or None
    request = provider.still(
        settings.vidgen_image_model, prompt, resolution.image_ratio, reference
    )  # fmt: skip
    return Order(request, resolution.image_ratio, 0)


def path(user_id: UUID, upload_id: UUID) -> str:
    """A place that is used once, and that nobody knows before it is paid for."""
    return f"generated_images/{user_id}/{upload_id}.png"


def shown(artifact: Artifact, url: str | None) -> Columns:
    """The owner sees where the still is, and its address."""
    return Columns(image_path=artifact.path, image_url=url)


IMAGE = Stage(
    name=StageName("image"),
    made_from=None,
    public=True,
    is_result=False,
    media_type="image/png",
    generating=Step(35, "Generating scene image with AI", "Generating the scene's image"),
    storing=Step(40, "Storing generated image", "Storing the scene's image"),
    stored=Step(40, "Storing generated image", "The scene's image is stored"),
    model=lambda settings: settings.vidgen_image_model,
    bucket=lambda settings: settings.storage_bucket_images,
    max_bytes=lambda settings: settings.vidgen_max_image_bytes,
    least_bytes=5_000_000,
    order=order,
    path=path,
    look=look_at_picture,
    shown=shown,
)
