"""Keep what the exporters print and log from the console. What matters of it is measured or raised."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def silence_tools() -> Iterator[None]:
    """Silence warnings, log records below CRITICAL and prints, of optimum, onnxruntime's tools and torch.

    The silenced warnings are of three kinds. torch says that TorchScript is deprecated. A trace meets
    branches on shapes: the build measures on every evaluation sentence whether the trace holds. Biases are not
    quantized.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
