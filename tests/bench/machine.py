"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

from atoll import __version__


def describe() -> str:
    """Processor, cores, memory, kernel, Python and Atoll in one line."""
    model = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    memory_gib = psutil.virtual_memory().total / 2**30
    return (
        f"{model}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, atoll {__version__}, load {os.getloadavg()[0]:.1f}"
    )


def quantile(values: list[float], share: float) -> float:
    """The value below which this share of them lies; of an ordered copy."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
