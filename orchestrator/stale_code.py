"""Machine code that other versions of the placing loops left behind, beside what is compiled of these.

Decides what goes: whatever was compiled of other sources, for this Python. Without that each upgrade in place would leave a few megabytes.
A process that still runs the other version loses nothing: it has loaded its own, or compiles what it calls for the first time later.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from orchestrator.core.placement.machine_code import KEPT


def forget_stale() -> int:
    """How many files went. What cannot be removed, in a folder of another user, stays."""
    kept: dict[Path, set[str]] = {}
    for name, compiled in KEPT.items():
        if compiled.stats.cache_path is not None:
            source = Path(compiled.py_func.__code__.co_filename)
            kept.setdefault(Path(compiled.stats.cache_path), set()).add(f"{source.stem}.{name}")
    tag = f".py{sys.version_info.major}{sys.version_info.minor}{sys.abiflags}."
    gone = 0
    for folder, names in kept.items():
        for path in folder.glob(f"*{tag}*"):
            if path.suffix in {".nbi", ".nbc"} and path.name.rpartition(tag)[0].rpartition("-")[0] not in names:
                with contextlib.suppress(OSError):
                    path.unlink()
                    gone += 1
    return gone
