"""Files in, files out: embed a data set in shards, and go on after a crash. docs/bulk.md has the promises.

`embed` is `firstvec embed` for programs. `embed_table` is its inner step: an Arrow table in, an Arrow table out.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firstvec.bulk.run import Summary as Summary
    from firstvec.bulk.run import embed as embed
    from firstvec.bulk.tables import embed_table as embed_table

_MODULE_OF = {"embed": "run", "Summary": "run", "embed_table": "tables"}

__all__ = [*_MODULE_OF]


def __getattr__(name: str) -> object:
    # A worker process imports this room, and needs no pyarrow.
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'firstvec.bulk' has no attribute {name!r}")
    return getattr(__import__(f"firstvec.bulk.{_MODULE_OF[name]}", fromlist=[name]), name)
