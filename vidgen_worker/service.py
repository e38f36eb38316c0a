"""Where former callers find the service; it lives in `client/service.py`."""

from vidgen_worker.client.service import (
    SceneNotFoundError,
    ServiceUnavailableError,
    TaskNotFoundError,
    TaskTimeoutError,
    VideoGenerationError,
    VideoGenerationService,
    video_generation_service,
)

__all__ = [
    "SceneNotFoundError",
    "ServiceUnavailableError",
    "TaskNotFoundError",
    "TaskTimeoutError",
    "VideoGenerationError",
    "VideoGenerationService",
    "video_generation_service",
]
