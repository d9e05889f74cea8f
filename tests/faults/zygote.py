"""A process that imports the toolchain once, and does each piece of work in a child of its own: six seconds saved.

It reads a request a line from stdin and answers in a line of JSON. It starts no threads, so that a fork of it is as
good as a fresh process.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any


def work(request: dict[str, Any]) -> Any:
    """Build or pack as a command would."""
    from firstvec.manifest import Manifest
    from firstvec_build import bundle, pipeline, wheel
    from firstvec_build.quality import Thresholds

    if request.get("no_exchange"):
        bundle._exchange = lambda _one, _other: False
    if request["what"] == "modules":
        work(request | {"what": "build"})
        return sorted(sys.modules)
    if request["what"] == "pack":
        return str(wheel.pack(Manifest.read(request["bundle"]), Path(request["output"])))
    result = pipeline.build(
        request["model"],
        request["output"],
        only=request["only"],
        thresholds=Thresholds(
            fp32_max_abs_diff=request.get("fp32_max_abs_diff", 1e-5),
            int8_cosine_mean=-1.0,
            int8_cosine_min=-1.0,
            int8_neighbour_overlap=0.0,
            int8_batch_cosine_min=-1.0,
        ),
        force=request.get("force", False),
    )
    return {"rebuilt": result.rebuilt, "inputs": result.manifest.inputs_sha256}


def crowd(request: dict[str, Any]) -> list[dict[str, Any]]:
    """So many builds at once, each in a child; with or without locks that lock."""
    waiting, going = os.pipe()
    children = []
    for _ in range(request["count"]):
        told = os.memfd_create("told")
        child = os.fork()
        if child == 0:
            try:
                os.close(going)
                os.read(waiting, 1)  # until all are there
                if request["no_locks"]:
                    fcntl.flock = lambda _descriptor, _operation: None
                outcome: dict[str, Any] = {"result": work(request | {"what": "build"}), "error": None}
            except BaseException as error:
                outcome = {"result": None, "error": f"{type(error).__name__}: {error}"}
            os.write(told, json.dumps(outcome).encode())
            os._exit(0)
        children.append((child, told))
    os.close(waiting)
    os.close(going)
    outcomes = []
    for child, told in children:
        os.waitpid(child, 0)
        with open(told, "rb") as stream:
            stream.seek(0)
            outcomes.append(json.load(stream))
    return outcomes


def main() -> None:
    """Import, tell how many threads there are, and serve."""
    from firstvec_build import quality, wordpiece, workbench  # noqa: F401
    from tests.faults import tracer

    # A matter of time only: what takes it computes, and touches no file.
    wordpiece._GENERATED = 20
    sentences = quality.evaluation_sentences()[:16]
    quality.evaluation_sentences = lambda: sentences
    sys.stdout.write(json.dumps({"threads": len(os.listdir("/proc/self/task"))}) + "\n")
    sys.stdout.flush()
    answers = os.dup(1)
    os.dup2(2, 1)  # what the work prints
    for line in sys.stdin:
        request = json.loads(line)
        if request["what"] == "crowd":
            os.write(answers, (json.dumps(crowd(request)) + "\n").encode())
            continue
        outcome = tracer.run(
            lambda request=request: work(request),
            root=request["root"],
            at=request.get("at", 0),
            fault=request.get("fault", ""),
        )
        if request["what"] == "modules":
            for name in outcome["result"] or ():
                try:
                    importlib.import_module(name)
                except ImportError:
                    continue  # the toolchain found it by a path of its own, for a while
            outcome["result"] = len(os.listdir("/proc/self/task"))
        os.write(answers, (json.dumps(outcome) + "\n").encode())


if __name__ == "__main__":
    main()
