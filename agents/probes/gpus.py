"""Measurements of this host's GPUs by NVML, where there is a driver.

Decides nothing. NVML is loaded once, at the first look; a host without a driver is asked no more.
"""

from __future__ import annotations

from typing import Any

import structlog

_log = structlog.get_logger(__name__)


class GpuProbe:
    """Free memory of each device, by UUID."""

    def __init__(self) -> None:
        self._nvml: Any = None
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            _log.debug("no_gpus", reason=str(error))
            return
        self._nvml = pynvml

    @property
    def present(self) -> bool:
        """Whether there is a driver to ask."""
        return self._nvml is not None

    def free_bytes(self) -> dict[str, int]:
        """Free memory by UUID; a device that does not answer is left out."""
        found: dict[str, int] = {}
        if self._nvml is None:
            return found
        for index in range(self._nvml.nvmlDeviceGetCount()):
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                uuid = self._nvml.nvmlDeviceGetUUID(handle)
                found[uuid.decode() if isinstance(uuid, bytes) else str(uuid)] = int(self._nvml.nvmlDeviceGetMemoryInfo(handle).free)
            except self._nvml.NVMLError as error:
                _log.warning("gpu_silent", index=index, error=str(error))
        return found

    def close(self) -> None:
        """Let go of the driver."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None
