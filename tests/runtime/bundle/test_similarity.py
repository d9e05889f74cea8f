"""The similarity that a bundle's copy of sentence-transformers' configuration names."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from firstvec.bundle.manifest import Manifest
from firstvec.bundle.similarity import SIMILARITIES, similarity_fn_name
from firstvec.errors import IntegrityError, ManifestError
from tests.conftest import edit_manifest

FILE = "config_sentence_transformers.json"


def write_config(root: Path, content: str) -> Manifest:
    """Write the file, and its entry into the manifest."""
    (root / FILE).write_text(content, "utf-8")

    def enter(document: dict[str, Any]) -> None:
        entry = next(each for each in document["support_files"] if each["path"] == FILE)
        entry["size"], entry["sha256"] = len(content.encode()), hashlib.sha256(content.encode()).hexdigest()

    edit_manifest(root, enter)
    return Manifest.read(root)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_the_models_own_similarity(name: str, tiny_bundle: Path) -> None:
    assert similarity_fn_name(write_config(tiny_bundle, json.dumps({"similarity_fn_name": name}))) == name


@pytest.mark.parametrize("config", [{}, {"similarity_fn_name": None}, {"similarity_fn_name": "maxsim"}])
def test_else_it_is_the_cosine(config: dict[str, Any], tiny_bundle: Path) -> None:
    assert similarity_fn_name(write_config(tiny_bundle, json.dumps(config))) == "cosine"


def test_without_the_file_it_is_the_cosine(tiny_bundle: Path) -> None:
    def drop(document: dict[str, Any]) -> None:
        document["support_files"] = [each for each in document["support_files"] if each["path"] != FILE]

    edit_manifest(tiny_bundle, drop)
    os.remove(tiny_bundle / FILE)
    assert similarity_fn_name(Manifest.read(tiny_bundle)) == "cosine"


def test_a_changed_file_is_not_believed(tiny_bundle: Path) -> None:
    (tiny_bundle / FILE).write_text('{"similarity_fn_name": "dot"}', "utf-8")
    with pytest.raises(IntegrityError, match=FILE):
        similarity_fn_name(Manifest.read(tiny_bundle))


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_file_that_is_no_object_is_an_error(content: str, tiny_bundle: Path) -> None:
    with pytest.raises(ManifestError, match=FILE):
        similarity_fn_name(write_config(tiny_bundle, content))
