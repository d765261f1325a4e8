"""Measurements of this host: free memory, free disk of the model cache, traffic of the network.

Decides what "free" means. Must not know pools or slots.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMeasure:
    """One look. Traffic counts from the boot of the host, over all interfaces but loopback."""

    memory_free_bytes: int
    disk_free_bytes: int
    sent_bytes: int
    received_bytes: int


def measure(cache_dir: Path | None, cache_quota_bytes: int) -> HostMeasure:
    """Look now. Free memory is what new programs could get (caches count as free); of the disk, no more than the cache may take."""
    traffic = [counters for name, counters in psutil.net_io_counters(pernic=True).items() if name != "lo"]
    return HostMeasure(
        memory_free_bytes=psutil.virtual_memory().available,
        disk_free_bytes=_disk_free(cache_dir, cache_quota_bytes),
        sent_bytes=sum(counters.bytes_sent for counters in traffic),
        received_bytes=sum(counters.bytes_recv for counters in traffic),
    )


def _disk_free(cache_dir: Path | None, cache_quota_bytes: int) -> int:
    if cache_dir is None:
        return cache_quota_bytes
    for folder in (cache_dir, *cache_dir.parents):
        try:
            return min(psutil.disk_usage(str(folder)).free, cache_quota_bytes)
        except FileNotFoundError:
            continue
    return 0
