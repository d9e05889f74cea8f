"""Keep the exporters' prints and logs off the console. A real problem is measured, or raised as an error."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def silence_tools() -> Iterator[None]:
    """Silence warnings, log records below CRITICAL, prints and progress bars, of transformers, onnxruntime and torch.

    Three kinds of warnings are silenced:

    - torch says that TorchScript is deprecated.
    - A trace meets branches on shapes. The build checks the trace's vectors on every evaluation sentence.
    - Biases are not quantized.
    """
    from transformers.utils import logging as transformers_logging

    disabled, has_bars = logging.root.manager.disable, transformers_logging.is_progress_bar_enabled()
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            transformers_logging.disable_progress_bar()
            yield
    finally:
        logging.disable(disabled)
        if has_bars:
            transformers_logging.enable_progress_bar()
