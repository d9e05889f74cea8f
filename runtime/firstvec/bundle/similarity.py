"""Which similarity a model's vectors are made for."""

from __future__ import annotations

from firstvec.bundle.integrity import read_verified
from firstvec.bundle.json_reader import parse_object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firstvec.bundle.manifest import Manifest

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
"""The names that sentence-transformers has for vectors of texts."""
_FILE = "config_sentence_transformers.json"


def similarity_fn_name(manifest: Manifest) -> str:
    """Return one of `SIMILARITIES`: the model's own in sentence-transformers' file, else ``cosine``, as that package.

    Raises:
        IntegrityError: the file is not the one that was built.
        ManifestError: the file is not JSON.
    """
    file = next((file for file in manifest.support_files if file.path == _FILE), None)
    if file is None:
        return "cosine"
    config = parse_object(read_verified(manifest.root, file), f"{manifest.root}/{_FILE}").value
    name = config.get("similarity_fn_name")
    return name if name in SIMILARITIES else "cosine"
