"""What a run's truth was, as far as rows need more of it than attempts tell: of a load, how long its bytes took and how long the pipeline.

Decides nothing: it passes on what the hidden world says, and what the weather makes of it. Must not know jobs.
"""

from __future__ import annotations

from agents.twin.truth import Truth
from atoll.model.gpu import GpuType
from atoll.model.ids import SiteId
from atoll.model.modelspec import ModelSpec
from atoll.model.shape import Precision, Shape


class NotedTruth:
    """A truth that remembers the last staging and building of each model at each site."""

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        self._stage_us: dict[tuple[SiteId, str], int] = {}
        self._init_us: dict[tuple[SiteId, str], int] = {}
        self.slowness_milli: dict[SiteId, int] = {}  # by how much longer executions last just now than they would
        self.fetch_us = truth.fetch_us
        self.patch_us = truth.patch_us
        self.compile_us = truth.compile_us
        self.artifact_load_us = truth.artifact_load_us
        self.factor_milli = truth.factor_milli

    def execution_us(
        self, model: ModelSpec, shape: Shape, gpu: GpuType, precision: Precision, site_id: SiteId, key: str, *, gang_size: int = 1
    ) -> int:
        """As the truth has it, and the weather."""
        found = self._truth.execution_us(model, shape, gpu, precision, site_id, key, gang_size=gang_size)
        return found * self.slowness_milli.get(site_id, 1_000) // 1_000

    def stage_us(self, model: ModelSpec, disk_bytes_per_s: int, h2d_bytes_per_s: int, from_host: bool, site_id: SiteId, key: str) -> int:
        """As the truth has it."""
        found = self._truth.stage_us(model, disk_bytes_per_s, h2d_bytes_per_s, from_host, site_id, key)
        self._stage_us[(site_id, model.model_id)] = found
        return found

    def init_us(self, model: ModelSpec, site_id: SiteId, key: str) -> int:
        """As the truth has it."""
        found = self._init_us[(site_id, model.model_id)] = self._truth.init_us(model, site_id, key)
        return found

    def first_generation_us(self, site_id: SiteId, key: str) -> int:
        """As the truth has it."""
        return self._truth.first_generation_us(site_id, key)

    def split(self, site_id: SiteId, model_id: str, load_us: int) -> tuple[int, int]:
        """A load's time as (staging, building), as the last load of the model at the site was made up."""
        stage_us, init_us = self._stage_us.get((site_id, model_id), 1), self._init_us.get((site_id, model_id), 0)
        staged_us = load_us * stage_us // max(stage_us + init_us, 1)
        return staged_us, load_us - staged_us
