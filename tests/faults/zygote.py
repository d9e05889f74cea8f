"""A process that imports the toolchain once, and does each request in a forked child. That saves six seconds each.

Each line of stdin is a request, and each answer is a line of JSON. The process starts no threads, so that a fork of it
is as good as a fresh process.
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
    """Do a request: build a bundle or pack a wheel, as a command would."""
    from firstvec.bundle.manifest import Manifest
    from firstvec_build import pipeline, publishing
    from firstvec_build.quality import Thresholds
    from firstvec_build.shipping import wheel

    if request.get("no_exchange"):
        publishing._exchange = lambda _one, _other: False
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
    """Start many builds at once, each in a child. With ``no_locks``, flock does nothing."""
    waiting, going = os.pipe()
    children = []
    for _ in range(request["count"]):
        answer = os.memfd_create("answer")
        child = os.fork()
        if child == 0:
            try:
                os.close(going)
                os.read(waiting, 1)  # until all children have been forked
                if request["no_locks"]:
                    fcntl.flock = lambda _descriptor, _operation: None
                outcome: dict[str, Any] = {"result": work(request | {"what": "build"}), "error": None}
            except BaseException as error:
                outcome = {"result": None, "error": f"{type(error).__name__}: {error}"}
            os.write(answer, json.dumps(outcome).encode())
            os._exit(0)
        children.append((child, answer))
    os.close(waiting)
    os.close(going)
    outcomes = []
    for child, answer in children:
        os.waitpid(child, 0)
        with open(answer, "rb") as stream:
            stream.seek(0)
            outcomes.append(json.load(stream))
    return outcomes


def main() -> None:
    """Import the toolchain, write the number of threads, and serve."""
    from firstvec_build import quality, quick_tokenizer, workbench  # noqa: F401
    from tests.faults import tracer

    # Less work to compute. What is left out touches no file.
    quick_tokenizer._GENERATED_TEXTS = 20
    sentences = quality.evaluation_sentences()[:16]
    quality.evaluation_sentences = lambda: sentences
    sys.stdout.write(json.dumps({"threads": len(os.listdir("/proc/self/task"))}) + "\n")
    sys.stdout.flush()
    answers = os.dup(1)
    os.dup2(2, 1)  # the requests' own output goes to stderr
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
                    continue  # the toolchain had extended sys.path for a while
            outcome["result"] = len(os.listdir("/proc/self/task"))
        os.write(answers, (json.dumps(outcome) + "\n").encode())


if __name__ == "__main__":
    main()
