"""JSON as clients send it, however odd: what PostgreSQL and a parser would choke on is no crash.

It never decides what a body must hold.
"""

import json
from typing import Any


def json_of(content: bytes) -> Any:  # noqa: ANN401 - JSON
    """Return what is written there. Raises ValueError.

    Halves of surrogate pairs become `?`: no text of PostgreSQL's can hold them.
    """
    try:
        found = json.loads(content)
        json.dumps(found, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeEncodeError:
        return json.loads(json.dumps(found, ensure_ascii=False).encode(errors="replace"))
    return found
