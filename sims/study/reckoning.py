"""Jobs of a trace as the ideal sees them: how long each takes in every pool that could run it, and by when it must have ended.

Decides which pools can: those where it fits and whose GPUs compute in its precision, as the orchestrator's filters have it. Times are those
of physics, or where a world is given those that are true in it, but for the noise of single attempts. Must not know policies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from atoll.model.errors import FieldError
from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId, ModelId
from atoll.model.limits import PREDICTED_US_MAX
from atoll.model.modelspec import ModelSpec
from atoll.model.shape import Precision, Shape
from atoll.model.site import PoolSpec, SiteSpec
from atoll.model.splits import check_gang
from atoll.physics.execution import execution_us
from atoll.physics.hidden import HiddenWorld
from atoll.physics.memory import peak_bytes
from sims.study.ideal import IdealJob
from sims.study.pooling import due_us
from sims.traces.generating import REFERENCE_GPU
from sims.traces.job import TraceJob
from sims.traces.variants import base_of, spec_of

_Class = tuple[ModelId, Shape, Precision, int]


class Reckoner:
    """Remembers classes of jobs: fine-tunes of one base differ only where the world says so."""

    def __init__(
        self,
        sites: Iterable[SiteSpec],
        gpus: Mapping[GpuTypeId, GpuType],
        catalogue: Mapping[ModelId, ModelSpec],
        world: HiddenWorld | None = None,
    ) -> None:
        self._pools = [(f"{site.site_id}/{pool.pool_id}", site, pool, gpus[pool.gpu_type]) for site in sites for pool in site.pools]
        self.slots = {name: pool.slots for name, _, pool, _ in self._pools}
        self._reference = gpus[GpuTypeId(REFERENCE_GPU)]
        self._catalogue = catalogue
        self._world = world
        self._models: dict[ModelId, ModelSpec] = {}
        self._known: dict[_Class, IdealJob] = {}

    def job(self, job: TraceJob) -> IdealJob:
        """The job with its times. NotFoundError for a model that the catalogue does not have."""
        name = job.model_id if self._world is not None else ModelId(base_of(job.model_id))
        model = self._model(name)
        key = (name, job.shape_with(model.default_shape), job.precision or Precision.BF16, job.gang_size)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._of_class(model, key)
        return replace(known, arrival_us=job.arrival_us)

    def shape_of(self, job: TraceJob) -> Shape:
        """What the job makes. NotFoundError as above."""
        return job.shape_with(self._model(job.model_id).default_shape)

    def _model(self, name: ModelId) -> ModelSpec:
        model = self._models.get(name)
        if model is None:
            model = self._models[name] = spec_of(name, self._catalogue)
        return model

    def _of_class(self, model: ModelSpec, key: _Class) -> IdealJob:
        name, shape, precision, gang_size = key
        try:
            model.check_shape(shape.check())
            check_gang(model, shape, gang_size)
        except FieldError:  # nobody makes it: it is refused
            return IdealJob(arrival_us=0, execution_us={})
        need_bytes = model.resident_bytes + peak_bytes(model, shape)
        # Physics knows a fine-tune by its base, and remembers that.
        base = self._catalogue[model.model_id if model.model_id in self._catalogue else ModelId(base_of(name))]
        times = {}
        for pool_name, site, pool, gpu in self._pools:
            if not _can(model, pool, gpu, precision, gang_size, need_bytes):
                continue
            took_us = execution_us(base, shape, gpu, precision, gang_size=gang_size)
            if took_us >= PREDICTED_US_MAX:
                continue
            if self._world is not None:
                milli = self._world.fit_milli(model, gpu), self._world.factor_milli("execution", site.site_id)
                took_us = max(took_us * milli[0] // 1_000 * milli[1] // 1_000, 1)
            times[pool_name] = took_us
        reference_us = execution_us(base, shape, self._reference, precision, gang_size=gang_size)
        return IdealJob(arrival_us=0, execution_us=times, gang_size=gang_size, due_us=due_us(reference_us))


def _can(model: ModelSpec, pool: PoolSpec, gpu: GpuType, precision: Precision, gang_size: int, need_bytes: int) -> bool:
    return (
        gpu.supports(precision)
        and pool.gpus_per_node >= gang_size
        and (pool.gpu_memory_bytes or gpu.memory_bytes) >= need_bytes
        and pool.node.disk_cache_bytes >= model.weights_bytes
    )
