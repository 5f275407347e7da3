"""Work that diffusers does not comment on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from diffusers.utils import logging as diffusers_logging


@contextlib.contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Have diffusers say errors only, without progress bars, and leave its logging as it was before."""
    verbosity, bars = diffusers_logging.get_verbosity(), diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosity)
        if bars:
            diffusers_logging.enable_progress_bar()
