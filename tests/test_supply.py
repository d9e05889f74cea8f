"""The dependencies: every version is pinned, none is known to be broken, and a bundle names its tools."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from firstvec import Manifest
from tests.conftest import REPOSITORY

FIXED = {
    # CVE-2026-27489, CVE-2026-34446, CVE-2026-34447: links led external data out of the model's folder.
    "onnx": "1.21",
    # CVE-2026-24747: torch.load corrupted memory on crafted checkpoints, even with weights_only=True.
    "torch": "2.10",
    # CVE-2025-68146, CVE-2026-22701: a link put in the lock file's place between check and opening was followed.
    "filelock": "3.20.3",
}
"""The oldest versions without a known defect that matters."""


def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))


def requirements() -> list[Requirement]:
    """Everything that pyproject.toml asks for, without the project's own extras."""
    given = project()
    lists = [
        given["build-system"]["requires"],
        given["project"]["dependencies"],
        *given["project"]["optional-dependencies"].values(),
        *given["dependency-groups"].values(),
    ]
    found = [Requirement(each) for given in lists for each in given]
    return [each for each in found if each.name != "firstvec"]


def pins() -> dict[str, str]:
    """Package → version of constraints.txt."""
    lines = (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def floor(requirement: Requirement) -> Version:
    (lowest,) = [each.version for each in requirement.specifier if each.operator in (">=", "==", "~=")]
    return Version(lowest)


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_requirement_has_a_floor_and_a_pin_that_satisfies_it(requirement: Requirement) -> None:
    assert floor(requirement)
    assert canonicalize_name(requirement.name) in pins(), "pin it in constraints.txt"
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("name", FIXED)
def test_no_version_that_is_known_to_be_broken_is_allowed(name: str) -> None:
    asked = [floor(each) for each in requirements() if canonicalize_name(each.name) == name]
    assert asked, f"pyproject.toml does not ask for {name}: nothing keeps out what others allow"
    assert all(low >= Version(FIXED[name]) for low in asked), f"{name}>={FIXED[name]}: pyproject.toml allows {asked}"
    assert Version(pins()[name]) >= Version(FIXED[name])
    assert Version(metadata.version(name)) >= Version(FIXED[name])


def test_every_pin_is_exact_and_in_its_place() -> None:
    lines = [line for line in (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines() if line[:1] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.+!]+", line) for line in lines)
    names = [canonicalize_name(line.split("==")[0]) for line in lines]
    assert len(names) == len({*names})
    assert lines == sorted(lines, key=str.lower)


def test_every_package_that_a_build_installs_is_pinned() -> None:
    """Whatever is reached from the project's own requirements, through any number of others."""
    left = [(each.name, frozenset(each.extras)) for each in requirements()]
    seen: set[tuple[str, frozenset[str]]] = set()
    missing = []
    while left:
        asked, extras = left.pop()
        name = canonicalize_name(asked)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # the package belongs to an extra or to a platform that is not installed here
        if name not in pins():
            missing.append(name)
        left += [
            (each.name, frozenset(each.extras))
            for each in map(Requirement, needed)
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *extras))
        ]
    assert missing == [], "pin them in constraints.txt"
    assert len(seen) > 60
    assert {"mkdocstrings-python", "grimp"} <= {name for name, _ in seen}


def third_party(package: Path, but: tuple[str, ...] = ()) -> set[str]:
    """The top-level modules that a package's code imports, the standard library's and the project's apart."""
    names: set[str] = set()
    for path in package.rglob("*.py"):
        if path.name in but:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"firstvec", "firstvec_build"}


NOT_IN_A_BUNDLE = {
    "filelock": "lets builds of one bundle wait for one another",
    "httpx": "its errors, while the source is fetched",
    "huggingface-hub": "fetches the source, whose digest the bundle has",
    "PyInstaller": "reads the hook that lies in the toolchain's package",
    "optimum": "names the library of a folder that cannot be built",
    "packaging": "spells a licence and the version of a wheel",
    "rich": "shows the progress of a build",
    "typer": "reads the command line",
    "yaml": "reads a model card",
    "scipy": "ranks similarities for Spearman, where a labelled set is given",
}
"""Packages that the toolchain imports, but that do not change the bytes of an artifact."""


NOT_ASKED_FOR = {
    "click": "belongs to llm's own dependencies",
    "haystack": "the module of haystack-ai of the extra haystack",
    "llama_index": "a namespace, which llama-index-core of the extra llama-index provides",
    "opentelemetry": "a namespace, which opentelemetry-api of the extra otel provides",
    "tqdm": "belongs to tokenizers' own dependencies, and without it there is no bar",
    "typing_extensions": "is read by type checkers only, which bring it along",
}
"""Modules that the runtime imports, and whose packages have other names in pyproject.toml, or none."""


def test_the_runtime_imports_only_its_declared_dependencies() -> None:
    """A package that the runtime imports stands in the extra for it. Without an extra, firstvec comes alone."""
    given = project()["project"]
    assert given["dependencies"] == []
    extras = ("numpy", "onnx", "tokenizers", "bulk", "ray", "cli", "torch", "verify", "sign", "otel")
    extras += ("langchain", "llama-index", "chroma", "haystack", "llm", "sqlite", "duckdb", "mteb")
    lists = [given["optional-dependencies"][extra] for extra in extras]
    asked = {canonicalize_name(Requirement(each).name).replace("-", "_") for group in lists for each in group}
    imported = third_party(REPOSITORY / "runtime" / "firstvec")
    assert {"onnxruntime", "tokenizers", "typer", "cryptography"} <= imported
    assert imported - {*NOT_ASKED_FOR} <= asked
    assert "rich" not in third_party(REPOSITORY / "runtime" / "firstvec", but=("progress.py",))


def test_a_bundle_says_which_version_of_every_tool_built_it(tiny_built: Path) -> None:
    manifest = Manifest.read(tiny_built)
    imported = third_party(REPOSITORY / "build_tools" / "firstvec_build", but=("signing.py", "sbom.py", "registry.py"))
    tools = {name.replace("_", "-") for name in imported}
    assert tools - {*NOT_IN_A_BUNDLE} <= {*manifest.built_with}
    assert manifest.built_with == {name: metadata.version(name) for name in manifest.built_with}
    assert {"firstvec", "torch", "onnx", "onnxruntime", "transformers", "tokenizers"} <= {*manifest.built_with}


def test_the_default_bundle_is_of_the_pinned_source(bundle: Path) -> None:
    pinned = tomllib.loads((REPOSITORY / "artifacts" / "models.toml").read_text("utf-8"))
    source = pinned["models"][pinned["default"]]
    model = Manifest.read(bundle).model
    assert (model.name, model.revision, model.source) == (
        pinned["default"],
        source["revision"],
        f"wheel {source['wheel']}",
    )
    assert model.source_sha256 == source["sha256"]
    assert re.fullmatch(r"[0-9a-f]{40}", source["revision"])
    assert re.fullmatch(r"[^=]+==[0-9.]+", source["wheel"])
