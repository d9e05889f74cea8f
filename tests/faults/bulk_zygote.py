"""A process that imports what `firstvec embed` needs once, and does each run in a forked child, below the tracer.

Each line of stdin is a request, and each answer is a line of JSON. The process starts no threads, so that a fork of it
is as good as a fresh process.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Do a run."""
    from firstvec.bulk import embed

    return embed(request["inputs"], request["output"], **request["options"]).to_dict()


def main() -> None:
    """Import the rooms, write the number of threads, and serve."""
    import firstvec.bulk.run
    import firstvec.provider  # noqa: F401
    from tests.faults import tracer

    sys.stdout.write(json.dumps({"threads": len(os.listdir("/proc/self/task"))}) + "\n")
    sys.stdout.flush()
    answers = os.dup(1)
    os.dup2(2, 1)  # what a run prints goes to stderr
    for line in sys.stdin:
        request = json.loads(line)
        outcome = tracer.run(
            lambda request=request: work(request),
            root=request["root"],
            at=request.get("at", 0),
            fault=request.get("fault", ""),
        )
        os.write(answers, (json.dumps(outcome) + "\n").encode())


if __name__ == "__main__":
    main()
