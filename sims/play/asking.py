"""From a row of a trace to what a client submits, and what an operator has to declare first: models and adapters that nobody named yet.

Decides what a trace leaves open: what an adapter weighs, and which site is nearest to an asker of whom only the region is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Final

from atoll.model import limits
from atoll.model.adapter import AdapterSpec
from atoll.model.errors import FieldError
from atoll.model.ids import AdapterId, JobId, ModelId, SiteId
from atoll.model.job import IMAGE_INPUT, InputRef, JobSpec
from atoll.model.modelspec import ModelSpec
from atoll.model.shape import Precision, Shape
from atoll.model.site import SiteSpec
from orchestrator.core.events import Submission
from sims.play.scenario import Beginning
from sims.traces.job import TraceJob
from sims.traces.variants import spec_of

# A LoRA of rank 16 is one to four hundredths of its base, by published pairs of SDXL, FLUX and Wan; in thousandths, evenly.
_ADAPTER_MILLI: Final = (10, 40)
_ADAPTER_RANK: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A submission, and what of it is new to the fleet."""

    submission: Submission
    model: ModelSpec
    new_model: ModelSpec | None
    new_adapters: tuple[AdapterSpec, ...]


class Asking:
    """Remembers what was declared."""

    def __init__(self, catalogue: Mapping[ModelId, ModelSpec], sites: Iterable[SiteSpec], beginning: Beginning = Beginning()) -> None:
        self._catalogue = catalogue
        self._models = {model.model_id: model for model in beginning.models}
        self._adapters = {adapter.adapter_id: adapter for adapter in beginning.adapters}
        self._made: set[tuple[ModelId, Shape]] = set()
        self._origins: dict[str, SiteId | None] = {"": None}
        for site in sites:
            self._origins.setdefault(site.region, site.site_id)
        self._origins.update((site.site_id, site.site_id) for site in sites)

    def makes(self, asked: Asked) -> bool:
        """Whether the model's pipeline makes results of this shape: what it does not make is refused before it is submitted."""
        key = (asked.model.model_id, asked.submission.spec.shape)
        if key not in self._made:
            try:
                asked.model.check_shape(key[1].check())
            except FieldError:
                return False
            self._made.add(key)
        return True

    def asked(self, number: int, job: TraceJob) -> Asked:
        """The job with this number. NotFoundError for a model that the catalogue does not have."""
        model = self._models.get(job.model_id)
        new = None
        if model is None:
            model = new = self._models[job.model_id] = spec_of(job.model_id, self._catalogue)
        adapters = tuple(found for use in job.adapters if (found := self._adapter(use.adapter_id, model)) is not None)
        # The one input that there is. All steps are taken, as the trace says nothing of how much of the image is kept.
        begins = job.input_bytes > 0 and model.begins_with_image
        spec = JobSpec(
            tenant=job.tenant,
            model_id=job.model_id,
            prompt="",
            seed=number,
            shape=job.shape_with(model.default_shape),
            precision=job.precision or Precision.BF16,
            priority=job.priority,
            deadline_ms=job.deadline_ms,
            start_timeout_ms=job.start_timeout_ms,
            adapters=job.adapters,
            gang_size=job.gang_size,
            inputs=(InputRef(name=IMAGE_INPUT, digest="", bytes=job.input_bytes),) if begins else (),
            strength_milli=limits.STRENGTH_MILLI_MAX if begins else 0,
            origin_site=self._origins.get(job.origin),
            simulated=True,
        )
        name = f"j{number:09}"
        submission = Submission(job_id=JobId(name), spec=spec, idempotency_key=name, payload_digest="", request_id="")
        return Asked(submission=submission, model=model, new_model=new, new_adapters=adapters)

    def _adapter(self, adapter_id: AdapterId, model: ModelSpec) -> AdapterSpec | None:
        """The adapter as it has to be declared for this model; None if it fits already."""
        known = self._adapters.get(adapter_id)
        if known is None:
            low, high = _ADAPTER_MILLI
            drawn = int.from_bytes(blake2b(adapter_id.encode(), digest_size=4).digest(), "big")
            size = model.weights_bytes * (low + drawn % (high - low + 1)) // 1_000
            known = AdapterSpec(
                adapter_id=adapter_id, model_ids=(model.model_id,), family=model.family, rank=_ADAPTER_RANK, weights_bytes=max(size, 1)
            )
        elif known.fits(model):
            return None
        else:
            known = replace(known, model_ids=(*known.model_ids, model.model_id)[-limits.ADAPTER_MODELS_MAX :])
        self._adapters[adapter_id] = known
        return known
