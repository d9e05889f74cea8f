"""docsearch as a function of a platform such as AWS Lambda. docs/frozen.md shows how the folder is made.

An event is ``{"query": str, "top": int}``, and ``top`` may be missing. The answer has a status code and a body of JSON.
"""

from __future__ import annotations

import json
import os

import docsearch

from firstvec import FirstvecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

INDEX = os.path.join(os.path.dirname(os.path.abspath(__file__)), "stdlib.index")

# The platform imports this module once for each process, and then waits for an event. The model loads meanwhile.
docsearch.preload("search")


def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Answer one event."""
    query, top = event.get("query"), event.get("top", 5)
    if not isinstance(query, str) or type(top) is not int or top < 1:
        return answer(400, {"error": "an event needs a query, a text, and may have top, a number from 1"})
    try:
        return answer(200, docsearch.find(query, INDEX, top))
    except docsearch.UsageError as error:
        return answer(400, {"error": str(error)})
    except FirstvecError as error:
        return answer(500, {"error": str(error)})


def answer(status: int, body: object) -> dict[str, Any]:
    """Return an answer in the form that the platform takes."""
    return {"statusCode": status, "headers": {"Content-Type": "application/json"}, "body": json.dumps(body)}
