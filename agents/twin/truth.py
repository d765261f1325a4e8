"""How long things take at a plant, as it asks for it. `atoll.physics.hidden.HiddenWorld` is the one that counts.

Decides the form only: a test may put a law of its own in its place, one for which theory knows what comes of it.
"""

from __future__ import annotations

from typing import Protocol

from atoll.model.adapter import AdapterSpec
from atoll.model.gpu import GpuType
from atoll.model.ids import SiteId
from atoll.model.modelspec import ModelSpec
from atoll.model.shape import Precision, Shape


class Truth(Protocol):
    """Microseconds of one thing each. `key` names what it is done for: another attempt, another draw."""

    def execution_us(
        self, model: ModelSpec, shape: Shape, gpu: GpuType, precision: Precision, site_id: SiteId, key: str, *, gang_size: int = 1
    ) -> int:
        """An execution on so many GPUs of one node."""

    def fetch_us(self, size_bytes: int, bytes_per_s: int, rtt_us: int, site_id: SiteId, key: str) -> int:
        """Bytes to a node, alone on their way."""

    def stage_us(self, model: ModelSpec, disk_bytes_per_s: int, h2d_bytes_per_s: int, from_host: bool, site_id: SiteId, key: str) -> int:
        """Weights into a GPU."""

    def init_us(self, model: ModelSpec, site_id: SiteId, key: str) -> int:
        """A pipeline built of them."""

    def first_generation_us(self, site_id: SiteId, key: str) -> int:
        """What the first generation of a process takes beyond the next."""

    def patch_us(self, adapter: AdapterSpec, site_id: SiteId, key: str) -> int:
        """An adapter put onto a replica."""

    def compile_us(self, model: ModelSpec, gpu: GpuType, site_id: SiteId, key: str) -> int:
        """Code made for a form."""

    def artifact_load_us(self, model: ModelSpec, gpu: GpuType, site_id: SiteId, key: str) -> int:
        """Code of a form taken from the node's disk."""

    def factor_milli(self, component: str, site_id: SiteId) -> int:
        """How much longer than physics says a component lasts at a site, in thousandths."""
