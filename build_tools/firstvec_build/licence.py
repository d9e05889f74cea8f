"""The model's licence: an SPDX expression and the licence's text, as the model's folder states them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from firstvec.errors import InputError

_CARD = "README.md"
"""The model card."""
_BLOCK = re.compile(r"\ufeff?\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", re.DOTALL)
"""The YAML at the beginning of a card."""
_TEXTS = re.compile(r"(licen[cs]e|copying|notice)([._-][a-z0-9._-]*[a-z0-9])?", re.IGNORECASE | re.ASCII)
"""Names of files with the text of a licence. They are names that a manifest allows."""
PATTERNS = [_CARD, "LICEN[CS]E*", "COPYING*", "NOTICE*"]
"""Patterns of the card and of these texts, for the hub's client."""
_LARGEST_TEXT = 1 << 20
"""Bytes. No licence is longer."""
_SPDX = {
    "odbl": "ODbL-1.0",
    "odc-by": "ODC-By-1.0",
    "pddl": "PDDL-1.0",
}
"""The hub's names of licences that are not SPDX's names in lower case."""


def check_expression(text: str) -> str:
    """Return an SPDX expression in its canonical spelling, such as ``Apache-2.0`` for ``apache-2.0``.

    Raises:
        InputError: the text is no SPDX expression.
    """
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    try:
        return str(canonicalize_license_expression(text))
    except InvalidLicenseExpression as error:
        raise InputError(
            f"the licence {text!r} is no SPDX expression: give one such as Apache-2.0, MIT or CC-BY-NC-4.0, or "
            "LicenseRef-NAME for a licence that SPDX does not list"
        ) from error


def find_license(folder: Path) -> str | None:
    """Return the licence that the model card in ``folder`` states, as an SPDX expression. None: it states none.

    A licence that SPDX does not list, such as ``gemma``, becomes ``LicenseRef-gemma``. With ``other`` the card has the
    name in ``license_name``. A list of licences does not say whether all hold or one of them, so all hold.
    """
    import yaml

    try:
        block = _BLOCK.match((folder / _CARD).read_text("utf-8"))
        card = yaml.safe_load(block[1]) if block else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # ValueError: the card is no UTF-8
        return None
    if not isinstance(card, dict):
        return None
    stated = card.get("license")
    found = [_convert(str(name), card) for name in (stated if isinstance(stated, list) else [stated]) if name]
    if not found or None in found:
        return None
    if len(found) == 1:
        return found[0]
    # AND binds before OR.
    return check_expression(" AND ".join(f"({each})" if " OR " in str(each) else str(each) for each in found))


def _convert(name: str, card: dict[str, Any]) -> str | None:
    """Return the SPDX expression for one of the hub's names. None: the name says nothing."""
    if name.lower() == "other":
        name = str(card.get("license_name") or "")
    if not name or name.lower() == "unknown":
        return None
    try:
        return check_expression(_SPDX.get(name.lower(), name))
    except InputError:
        plain = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
        return f"LicenseRef-{plain}" if plain else None


def is_name_of_text(name: str) -> bool:
    """Return whether a file of that name, in a model's folder, has the text of the licence."""
    return bool(_TEXTS.fullmatch(name))


def is_text(path: Path) -> bool:
    """Return whether a file has the text of a licence, by its name and size."""
    return is_name_of_text(path.name) and path.is_file() and path.stat().st_size <= _LARGEST_TEXT


def find_license_files(folder: Path) -> list[Path]:
    """Return the files with the text of the licence in a model's folder, such as ``LICENSE``, relative to it.

    A wheel around a model has a licence of its own, which is that of the wheel's code. It lies in another folder.
    """
    return sorted(Path(path.name) for path in folder.iterdir() if is_text(path))
