"""What a row of the table is: the cells of one line, and whether it reached its goal."""

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
Cells = tuple[str, str, str, str, str, bool | None]
TIMES = "×"  # noqa: RUF001 - typography
