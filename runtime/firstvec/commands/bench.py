"""`firstvec bench`: how fast a bundle is on this machine, beside sentence-transformers where it is installed."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from operator import mul
from statistics import quantiles

from firstvec import __version__
from firstvec.bundle import store
from firstvec.commands.output import print_json, print_table, print_text
from firstvec.commands.programs import BARE, NUMPY, PEER, Worker, open_peer, own_programs, run_fresh, start_worker
from firstvec.errors import InputError
from firstvec.machine.profile import ResourceProfile
from firstvec.machine.system_files import read_text
from firstvec.options import make_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from firstvec.bundle.manifest import Manifest
    from firstvec.commands.programs import Program, Usage

_TEXTS = (
    "how do I reset my password?",
    "Opening hours",
    "The parcel did not arrive.",
    "Two cups of flour, one egg and a pinch of salt.",
    "The committee will meet again on Thursday to discuss the budget for the coming year.",
    "Light travels 300,000 kilometres in a second, so the light of the sun needs eight minutes to reach the Earth.",
    "A refund is possible within thirty days after the purchase. Send the article back in its original box, enclose "
    "the receipt, and allow up to two weeks until the amount appears on your account.",
    "The old railway bridge was closed in 1987, after engineers had found cracks in two of its piers. For twenty years "
    "nothing happened. Then a group of residents collected money, repaired the deck with their own hands, and opened "
    "the bridge to walkers and cyclists, who now cross the river there on their way to work.",
)
_BUILT_IN = _TEXTS * 8
"""Two batches."""
_MOST_TEXTS = 256
_REPETITIONS = 5
_PAUSE = 0.2
"""Seconds before a repetition, because the threads of the program before may spin for a while."""
_SAME_MODEL = 0.9
"""The vectors of an artifact and of its original have a larger cosine."""
_PACKAGES = ("numpy", "onnxruntime", "tokenizers", PEER, "transformers", "torch")


def bench(
    model: str,
    texts_file: str | None,
    rounds: int,
    strategy: str | None,
    reference: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure a bundle on this machine: the first vector in fresh processes, and texts per second.

    Where sentence-transformers is installed and can open the original model, it takes turns with firstvec.
    """
    manifest = store.find_bundle(model, None, make_options(model).working_folder)
    texts = [*_BUILT_IN] if texts_file is None else _read_texts(texts_file)
    profile = ResourceProfile.detect()
    ours = own_programs(manifest, profile, strategy)
    found = _facts(manifest, profile)

    def show(text: str) -> None:
        if not quiet:
            sys.stderr.write(f"\r\x1b[K{text}" if sys.stderr.isatty() else f"{text}\n" if text else "")
            sys.stderr.flush()

    used = texts
    if len(texts) > _MOST_TEXTS:
        used = [texts[index * len(texts) // _MOST_TEXTS] for index in range(_MOST_TEXTS)]
    try:
        with ExitStack() as stack:
            show("opening the models")
            workers = {each.name: stack.enter_context(start_worker(each)) for each in ours}
            device = ours[0].fresh[2]
            peer, opened = open_peer(manifest, device, reference, stack)
            if isinstance(opened, Worker):
                workers[PEER] = opened
            throughput = _time_warm(workers, used, show)
        others = [BARE, *([NUMPY] if find_spec("numpy") else []), *ours, *([peer] if peer else [])]
        first_vector = _time_fresh(others, texts[0], rounds, show)
    finally:
        show("")
    found |= {
        "rounds": rounds,
        "texts": {"from": texts_file, "count": len(texts), "used": len(used), "first": texts[0]},
        "reference": json.loads(peer.fresh[0])[0] if peer else None,
        "reference_problem": None if peer else opened,
        "first_vector": first_vector,
        "throughput": throughput,
    }
    if as_json:
        print_json(found)
    else:
        _print(found)


def _read_texts(place: str) -> list[str]:
    """Return the lines of a file, or of stdin for ``-``, without the blank ones."""
    name = "stdin" if place == "-" else repr(place)
    try:
        if place == "-":
            data = sys.stdin.buffer.read() if sys.stdin is not None else b""
        else:
            with open(place, "rb") as stream:
                data = stream.read()
        texts = [line.removesuffix("\r") for line in data.decode("utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"--texts {name} is not UTF-8 (byte {error.start}): give one text a line") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--texts {name} cannot be read ({reason}): give a file with one text a line, or -") from error
    if not texts:
        raise InputError(f"--texts {name} holds no text: give one text a line")
    return texts


def _time_warm(
    workers: Mapping[str, Worker], texts: Sequence[str], show: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure the texts per second, program by program in turns. The first repetition warms up, and is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in workers}
    vectors: dict[str, list[list[float]]] = {}
    cosines: dict[str, float] = {}
    for number in range(_REPETITIONS + 1):
        show(f"throughput: repetition {number}/{_REPETITIONS}")
        for name, worker in workers.items():
            time.sleep(_PAUSE)
            rate, vectors[name] = worker.encode(texts)
            rates[name] += [rate] if number else []
        if PEER in workers and not number:  # now, because the reference may be another model
            cosines = {name: min(map(_cosine, vectors[name], vectors[PEER])) for name in workers}
    return [
        {
            "program": name,
            "samples": rates[name],
            "texts_per_second": _spread(rates[name]),
            "times_reference": _ratio(rates[name], rates.get(PEER)),
            "cosine_min": cosines.get(name),
        }
        for name in workers
    ]


def _time_fresh(
    programs: Sequence[Program], text: str, rounds: int, show: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Measure fresh processes, round by round. The first round warms up, and is not counted."""
    used: dict[str, list[Usage]] = {each.name: [] for each in programs}
    for number in range(rounds + 1):
        show(f"first vector: round {number}/{rounds}")
        for each in programs:
            used[each.name].append(run_fresh(each, text))
    ms = {name: [usage.ms for usage in usages[1:]] for name, usages in used.items()}
    theirs = used[PEER][0].vector if PEER in used else None
    return [
        {
            "program": each.name,
            "strategies": each.strategies,
            "samples": ms[each.name],
            "milliseconds": _spread(ms[each.name]),
            "peak_mb": _spread([usage.peak_mb for usage in used[each.name][1:]]),
            "times_bare_interpreter": _ratio(ms[each.name], ms[BARE.name]),
            "times_sooner": _ratio(ms.get(PEER), ms[each.name]) if each.has_model else None,
            "cosine": _cosine(used[each.name][0].vector, theirs) if theirs and each.has_model else None,
        }
        for each in programs
    ]


def _ratio(above: Sequence[float] | None, below: Sequence[float] | None) -> dict[str, Any] | None:
    """Return the ratios of two figures of the same round."""
    return _spread([one / other for one, other in zip(above, below, strict=True)]) if above and below else None


def _spread(values: Sequence[float]) -> dict[str, Any]:
    first, middle, third = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return {"median": middle, "quartiles": [first, third]}


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    if len(one) != len(other):
        raise InputError(
            f"the reference gives vectors of {len(other)} components, and the bundle vectors of {len(one)}: "
            "give the model from which the bundle was built with --reference"
        )
    return float(sum(map(mul, one, other)) / (math.hypot(*one) * math.hypot(*other) or 1.0))


def _facts(manifest: Manifest, profile: ResourceProfile) -> dict[str, Any]:
    """Return what the figures depend on."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            pass
    lines = (line.partition(":") for line in read_text("/proc/cpuinfo").splitlines())
    processor = next((text.strip() for key, _, text in lines if key.strip() == "model name"), profile.machine)
    return {
        "model": manifest.model.name,
        "bundle": manifest.root,
        "machine": {"processor": processor, "load_average": os.getloadavg()[0]}
        | profile.to_dict()
        | {"engines": dict(profile.engines)},
        "firstvec": __version__,
        "python": sys.version.split()[0],
        "packages": versions,
    }


def _print(found: Mapping[str, Any]) -> None:
    """Print the figures for people."""
    machine, texts, peer = found["machine"], found["texts"], found["reference"]
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    print_text(f"{found['model']}  ({found['bundle']})")
    print_text(
        f"{machine['processor']}, {machine['cpu_count']} cores, {', '.join(machine['isa']) or machine['machine']}"
    )
    print_text(f"firstvec {found['firstvec']}, Python {found['python']}, {packages}")
    if peer:
        print_text(f"{PEER} has opened {peer[0]}{' with backend onnx' if 'backend' in peer[1] else ''}")
    print_text(f"\nFirst vector: a fresh process from exec to exit, median and quartiles; rounds: {found['rounds']}")
    rows = [["program", "ms", "peak MB", "÷ bare", *(["× sooner", "cosine"] if peer else []), "strategies"]]
    for each in found["first_vector"]:
        times = [_text(each["milliseconds"]), _number(each["peak_mb"]["median"]), _text(each["times_bare_interpreter"])]
        beside = [_text(each["times_sooner"]), _cosine_text(each["cosine"])] if peer else []
        rows.append([each["program"], *times, *beside, ", ".join(each["strategies"]).upper()])
    print_table(rows, right=range(1, len(rows[0]) - 1), indent="  ")
    place = "stdin" if texts["from"] == "-" else texts["from"]
    lines = f"lines of {place}" if place else "built-in texts (--texts FILE takes yours)"
    count = f"{texts['used']} of the {texts['count']:,}" if texts["used"] < texts["count"] else f"{texts['count']}"
    print_text(f"\nThroughput: a warm model, {count} {lines}, median and quartiles; repetitions: {_REPETITIONS}")
    rows = [["program", "texts/s", *([f"× {PEER}", "worst cosine"] if peer else [])]]
    for each in found["throughput"]:
        beside = [_text(each["times_reference"]), _cosine_text(each["cosine_min"])] if peer else []
        rows.append([each["program"], _text(each["texts_per_second"]), *beside])
    print_table(rows, right=range(1, len(rows[0])), indent="  ")
    load = f"the load was {machine['load_average']:.1f} on {machine['cpu_count']} cores"
    print_text("\nOther programs disturb the figures, and the ratios above all: look at the quartiles in brackets.")
    if machine["load_average"] > machine["cpu_count"] / 2:
        print_text(f"The machine was busy ({load}), which slows one program more than another: measure again later.")
    if found["reference_problem"]:
        print_text(found["reference_problem"])
    worst = min(each["cosine_min"] for each in found["throughput"]) if peer else 1.0
    if worst < _SAME_MODEL:
        print_text(
            f"The vectors are not those of the reference (worst cosine {worst:.3f}), so the ratios to it mean nothing: "
            "give the model from which the bundle was built with --reference"
        )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _text(spread: Mapping[str, Any] | None) -> str:
    return f"{_number(spread['median'])} ({'–'.join(map(_number, spread['quartiles']))})" if spread else "–"


def _cosine_text(cosine: float | None) -> str:
    return "–" if cosine is None else f"{cosine:.4f}"
