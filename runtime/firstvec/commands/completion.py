"""What a shell offers for the values of options, besides the choices of an option."""

from __future__ import annotations

from firstvec.bundle import store
from firstvec.errors import FirstvecError
from firstvec.options import DEFAULT_MODEL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any


def bundle_names(given: Mapping[str, Any], incomplete: str) -> list[str]:
    """Return the names of the bundles of this machine that begin so: short names, or else full names.

    Args:
        given: the values that the command line has so far.
        incomplete: the beginning of the name.
    """
    full_names = [manifest.model.name for manifest in store.read_installed()[0]]
    short_names = [name.rpartition("/")[2] for name in full_names]
    for names in (short_names, full_names):
        if found := [name for name in dict.fromkeys(names) if name.startswith(incomplete)]:
            return found
    return []


def artifact_ids(given: Mapping[str, Any], incomplete: str) -> list[str]:
    """Return the artifacts, whose ids begin so, of the bundle that the command line names. Arguments as above."""
    try:
        manifest = store.find_bundle(given.get("model_argument") or given.get("model") or DEFAULT_MODEL)
    except FirstvecError:
        return []
    return [artifact.id for artifact in manifest.artifacts if artifact.id.startswith(incomplete)]


COMPLETIONS: dict[str, Callable[[Mapping[str, Any], str], list[str]]] = {
    "bundles": bundle_names,
    "artifacts": artifact_ids,
}
"""What the table of commands names as an option's completion → what gives the values."""
