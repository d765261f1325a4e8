"""Machine code of the placing loops that is kept on disk: whether all of these is there, and what other versions left behind beside it.

Decides what goes: whatever was compiled of other sources, for this Python. Without that each upgrade in place would leave a few megabytes.
A process that still runs the other version loses nothing: it has loaded its own, or compiles what it calls for the first time later.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Final

from orchestrator.core.placement.machine_code import KEPT

_TAG: Final = f".py{sys.version_info.major}{sys.version_info.minor}{sys.abiflags}."


def is_kept() -> bool:
    """Whether every loop was compiled before, as it is now, for this Python. On another processor it is compiled again all the same."""
    return all(
        compiled.stats.cache_path is not None and any(Path(compiled.stats.cache_path).glob(f"*.{name}-*{_TAG}nbi"))
        for name, compiled in KEPT.items()
    )


def forget_stale() -> int:
    """How many files went. What cannot be removed, in a folder of another user, stays."""
    kept: dict[Path, set[str]] = {}
    for name, compiled in KEPT.items():
        if compiled.stats.cache_path is not None:
            source = Path(compiled.py_func.__code__.co_filename)
            kept.setdefault(Path(compiled.stats.cache_path), set()).add(f"{source.stem}.{name}")
    gone = 0
    for folder, names in kept.items():
        for path in folder.glob(f"*{_TAG}*"):
            if path.suffix in {".nbi", ".nbc"} and path.name.rpartition(_TAG)[0].rpartition("-")[0] not in names:
                with contextlib.suppress(OSError):
                    path.unlink()
                    gone += 1
    return gone
