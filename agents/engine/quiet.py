"""Keeps diffusers and transformers from drawing progress bars and advice into the output of a program that is not
theirs.

Decides what of their talk is shown: warnings and errors go to the log of the process, bars and hints nowhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def prepare_environment(threads: int = 1) -> None:
    """Set what torch and the hub read when they are imported: `threads` for arithmetic, no network, no telemetry.

    Call before the first import of torch. One thread: two on two shared cores were up to 46 times slower, and sums
    in another order change pixels.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["DIFFUSERS_VERBOSITY"] = "error"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars and no advice from diffusers and transformers while something is loaded or saved."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    levels = (diffusers_logging.get_verbosity(), transformers_logging.get_verbosity())
    bars = (diffusers_logging.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled())
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
    try:
        yield
    finally:
        for logging, level, bar in zip((diffusers_logging, transformers_logging), levels, bars, strict=True):
            logging.set_verbosity(level)
            if bar:
                logging.enable_progress_bar()
