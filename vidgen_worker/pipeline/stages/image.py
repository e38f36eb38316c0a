"""The still: made from the image prompt, with the product's picture as its reference."""

from uuid import UUID

from vidgen_worker.config import Settings
from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.domain.resolution import Resolution, image_models
from vidgen_worker.domain.task import Scene, StageName
from vidgen_worker.pipeline.stages.stage import Order, Stage
from vidgen_worker.providers.runway.inputs import check_asset_url, image_request
from vidgen_worker.queue.checkpoints import Step


def order(scene: Scene, resolution: Resolution, settings: Settings, _frame_url: str) -> Order:
    """What to ask for. Raises Fault naming the scene's field at fault."""
    model = image_models()[settings.vidgen_image_model]
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
    if reference is not None:
        check_asset_url(
            "product_reference_image_url", reference,
            allow_loopback=settings.vidgen_allow_loopback_assets,
        )  # fmt: skip
    request = image_request(model, prompt, model.nearest(resolution.image_ratio), reference)
    return Order(request, resolution.image_ratio, 0)


def path(user_id: UUID, upload_id: UUID) -> str:
    """A place that is used once, and that nobody knows before it is paid for."""
    return f"generated_images/{user_id}/{upload_id}.png"


IMAGE = Stage(
    name=StageName.IMAGE,
    generating=Step(35, "Generating scene image with AI", "Generating the scene's image"),
    storing=Step(40, "Storing generated image", "Storing the scene's image"),
    stored=Step(40, "Storing generated image", "The scene's image is stored"),
    media_type="image/png",
    order=order,
    path=path,
)
