"""Options that several verbs have."""

from typing import Annotated
from uuid import UUID

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it; without this it only says what.")]
TaskId = Annotated[UUID, typer.Argument(help="The task's id.", show_default=False)]
User = Annotated[UUID, typer.Argument(help="The user's id.", show_default=False)]
