"""Where `atoll up` keeps its data on this machine, and where starter models are built.

Decides folders; makes none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def data_dir(environ: Mapping[str, str]) -> Path:
    """~/.local/share/atoll, or what XDG_DATA_HOME says instead."""
    base = environ.get("XDG_DATA_HOME") or os.path.join(environ.get("HOME") or os.path.expanduser("~"), ".local", "share")
    return Path(base) / "atoll"


def origin_dir(data: Path) -> Path:
    """Where sites of this machine fetch weights from."""
    return data / "origin"
