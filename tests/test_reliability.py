"""Each promise of docs/reliability.md names a test that exists, and the page names each campaign of tests/faults."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "docs" / "reliability.md").read_text("utf-8")
TESTS = REPOSITORY / "tests"


def named_tests() -> dict[str, set[str]]:
    """Return a dictionary: file below tests/ → the test functions that the page names in it."""
    found: dict[str, set[str]] = {}
    file = ""
    for path, function in re.findall(r"`([\w/]*(?:\.py)?)(?:::(\w+))?`", TEXT):
        if path.endswith(".py"):
            file = path
            found.setdefault(file, set())
        if function and (path.endswith(".py") or not path):
            found[file].add(function)
    return found


def functions_of(file: str) -> set[str]:
    """Return the names of the test functions of a file below tests/."""
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_test_that_the_page_names_exists() -> None:
    promises = named_tests()
    assert len(promises) > 20
    for file, functions in promises.items():
        assert functions <= functions_of(file), file


def test_every_campaign_is_named_by_the_page() -> None:
    promises = named_tests()
    for path in sorted((TESTS / "faults").glob("test_*.py")):
        assert f"faults/{path.name}" in promises
        source = ast.parse(path.read_text("utf-8"))
        for node in source.body:
            if isinstance(node, ast.FunctionDef) and "campaign.record" in ast.unparse(node):
                assert node.name in promises[f"faults/{path.name}"], node.name


def figures(run: dict[str, dict[str, Any]]) -> list[str]:
    """Return the figures of a run in the words of the page."""

    def every(start: str) -> list[dict[str, Any]]:
        return [found for promise, found in run.items() if promise.startswith(start)]

    def total(start: str, key: str) -> int:
        return sum(found[key] for found in every(start))

    flips, fuzzed = run["every bit of the smallest bundle's files"], run["fuzzing of what is read, guided by coverage"]
    lengths, manifest = (
        run[f"every {what}"]
        for what in ("length of the smallest bundle's files", "bit of the smallest bundle's manifest")
    )
    faults = [found["outcomes"] for found in (*every("ENOSPC in a build"), *every("EIO in a build"))]
    met, harmless = sum(sum(each.values()) for each in faults), sum(each["built all the same"] for each in faults)
    texts = run["random Unicode, vectors"]
    manifests = fuzzed["manifest_bytes"] + fuzzed["manifest_edits"]
    replaced = run["bundle replaced during a load"]["outcomes"]
    few = every("no descriptors left")
    loads, drops = ([found["kb_per_call"] for found in every(f"memory over {what}")] for what in ("loads", "drops"))
    return [
        f"{flips['flips']:,} of {flips['flips']:,} flips of a bundle of {flips['bytes']:,} bytes",
        f"{run['random flips of the real bundle']['flips']:,} random flips of the real bundle",
        f"{lengths['points']:,} lengths and {run['two files of a bundle swapped']['pairs']} pairs",
        f"{total('whole loads', 'loads')} loads: {total('whole loads', 'refused')} refused, "
        f"{total('whole loads', 'other_artifact')} by another artifact, "
        f"{total('whole loads', 'other_file_damaged')} with damage in a file that they do not use",
        f"{manifests:,} executions of the manifest's reader",
        f"{fuzzed['executions'] - manifests:,} of the readers of self-tests, notes and vocabularies",
        f"{manifest['flips']:,} flips: none changed what is read",
        f"{total('kill -9 of a build', 'points'):,} points in seven kinds of build: nothing lost; "
        f"{total('kill -9 of a build', 'next_builds')} next builds",
        f"{met} points of ENOSPC and EIO: {met - harmless} typed errors, {harmless} did not matter; nothing lost",
        f"{sum(run[f'{fault} of a wheel being packed']['points'] for fault in ('kill', 'ENOSPC', 'EIO'))} points: "
        "no half wheel",
        f"{replaced['previous']} with the old vectors, {replaced.get('new', 0)} with the new vectors, "
        f"{replaced['IntegrityError']} typed errors",
        f"{run['64 threads, first loads']['loads']:,} × 64 threads: one session each; "
        f"{run['64 threads, a damaged bundle']['loads']} × 64 with a damaged bundle",
        f"{run['exit at any point of a load']['points']} exits in {run['exit at any point of a load']['ways']} ways",
        f"{run['fork before, during and after a load']['points']} forks",
        f"{total('Ctrl-C', 'points')} interruptions in {len(every('Ctrl-C'))} places, "
        f"{total('Ctrl-C', 'noticed')} of them in time",
        f"{total('memory of a control group', 'processes')} loads in control groups of 40 to 130 MB and "
        f"{total('address space', 'processes')} with 20 to 720 MB of addresses",
        f"{sum(found['points'] for found in few)} loads with 0 to 13 descriptors left: "
        f"{sum(found['typed_errors'] for found in few)} errors that name the limit",
        f"{total('no thread can be started', 'points')} loads: all right",
        f"1,000 loads and closes: {loads[0]:.2f} and {loads[1]:.2f} KB; "
        f"1,000 loads that nobody closed: {drops[0]:.2f} and {drops[1]:.2f} KB",
        f"{run['random Unicode, token ids']['texts']:,} texts: equal ids; {texts['real_model']:,} vectors of the real "
        f"model and {texts['tiny_model']:,} of a tiny one",
        *(
            f"Python {promise.rpartition(' ')[2]}: {found['runs']} runs, ended after {found['median_s']} s (median), "
            f"{found['p99_s']} s (99 of 100) and {found['max_s']} s (the longest)"
            for promise, found in run.items()
            if promise.startswith("SIGINT in the README's program")
        ),
    ]


def test_the_figures_of_the_page_are_those_of_the_linked_run() -> None:
    (link,) = re.findall(r"\(\.\./(benchmarks/results/\S+-faults\.json)\)", TEXT)
    expected = figures(json.loads((REPOSITORY / link).read_text("utf-8")))
    assert [each for each in expected if each not in TEXT] == []


def test_every_row_of_the_page_has_a_test() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(rows) > 35
    assert all(".py" in row for row in rows)
