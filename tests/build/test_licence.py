"""The model's licence: what a model card states, in SPDX's words, and the files with its text."""

from __future__ import annotations

from pathlib import Path

import pytest

from firstvec.errors import InputError
from firstvec_build.licence import check_expression, find_license, find_license_files


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("apache-2.0", "Apache-2.0"),
        ("mit or APACHE-2.0", "MIT OR Apache-2.0"),
        ("LicenseRef-gemma", "LicenseRef-gemma"),
    ],
)
def test_expression_gets_its_canonical_spelling(text: str, expression: str) -> None:
    assert check_expression(text) == expression


@pytest.mark.parametrize("text", ["", "gemma", "Apache 2.0", "MIT AND", "MIT\nName: other"])
def test_text_that_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"is no SPDX expression: give one such as Apache-2\.0"):
        check_expression(text)


@pytest.mark.parametrize(
    ("block", "expression"),
    [
        ("license: apache-2.0", "Apache-2.0"),
        ("language: en\nlicense: mit\ntags: [a]", "MIT"),
        ("license: cc-by-nc-4.0", "CC-BY-NC-4.0"),
        ("license: odc-by", "ODC-By-1.0"),
        ("license: gemma", "LicenseRef-gemma"),
        ("license: other\nlicense_name: My own, v1", "LicenseRef-My-own-v1"),
        ("license: [mit, apache-2.0]", "MIT AND Apache-2.0"),
        ("license: [apache-2.0 OR mit, cc-by-4.0]", "(Apache-2.0 OR MIT) AND CC-BY-4.0"),
        ("license: other", None),
        ("license: unknown", None),
        ("license: [mit, unknown]", None),
        ("license: '???'", None),
        ("license:", None),
        ("tags: [a]", None),
        ("license: [", None),
        ("- license: mit", None),
    ],
)
def test_card_states_the_licence(block: str, expression: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{block}\n---\n\n# A model\nlicense: gpl-3.0\n", "utf-8")
    assert find_license(tmp_path) == expression


@pytest.mark.parametrize(
    ("card", "expression"),
    [
        (b"---\r\nlicense: mit\r\n---\r\n", "MIT"),
        (b"\xef\xbb\xbf---\nlicense: mit\n---", "MIT"),
        (b"# license: mit\n", None),
        (b"---\nlicense: \xff\n---\n", None),
        (b"---\nlicense: mit\n", None),
        (b"---\nlicense: " + b"[" * 5000 + b"\n---\n", None),
        (None, None),
    ],
)
def test_card_of_any_bytes_is_no_error(card: bytes | None, expression: str | None, tmp_path: Path) -> None:
    if card is not None:
        (tmp_path / "README.md").write_bytes(card)
    assert find_license(tmp_path) == expression


def test_files_with_the_text_of_the_licence_are_found(tmp_path: Path) -> None:
    texts = ["COPYING", "LICENSE", "LICENSE-MIT.txt", "NOTICE", "licence.md"]
    others = ["LICENSES.json", "license of ours", "LICENSE.", "my-license", "README.md"]
    for name in [*texts, *others]:
        (tmp_path / name).write_text("text")
    (tmp_path / "LICENSE.d").mkdir()
    (tmp_path / "LICENSE.huge").write_bytes(bytes((1 << 20) + 1))
    assert [path.as_posix() for path in find_license_files(tmp_path)] == texts
