"""Every error that an operator can do something about: a sentence and an exit code."""

from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.output import fail
from vidgen_worker.client.database import ClientError, DatabaseUnreachableError
from vidgen_worker.client.service import ServiceUnavailableError, VideoGenerationError
from vidgen_worker.serving.stoppable import ServingError
from vidgen_worker.settings.environment import SettingsError
from vidgen_worker.telemetry.loopback_http import PortError


def end_with(error: Exception) -> None:
    """End the process with the error's sentence; return where nobody expected it."""
    match error:
        case SettingsError():
            fail(
                ExitCode.CONFIGURATION,
                "The configuration can't be used.",
                *[f"  {problem}" for problem in error.problems],
                "Set these in the environment or in .env (.env.example lists all of them). "
                "To try it without any account: vidgen-worker demo",
            )
        case DatabaseUnreachableError() | ServiceUnavailableError():
            fail(ExitCode.UNAVAILABLE, str(error))
        case PortError() | ServingError() | ClientError() | VideoGenerationError():
            fail(ExitCode.FAILED, str(error))
