"""The service under its former name; `client/service.py` defines it."""

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
