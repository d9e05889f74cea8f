"""Keep the exporters' chatter from the console. What matters of it is measured or raised."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_tools() -> Iterator[None]:
    """Silence warnings, log records below CRITICAL and prints of optimum, onnxruntime's tools and torch.

    They warn of: TorchScript's deprecation (see `firstvec.sessions.torchscript`), branches on shapes met while
    tracing (whether the trace holds is measured on every evaluation sentence), and each bias that is not quantised.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
