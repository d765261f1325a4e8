"""Requests of a production service of diffusion models (alibaba/clusterdata, GenTD26): base models, LoRAs, steps, tenants, run times.

Decides which of the catalogue's models each base model is taken for, and what is made up: resolution, origin and films, which the record
does not have. Its rows are for research or study: they are read where they lie and never shipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.ids import AdapterId, ModelId, TenantId
from atoll.model.modelspec import AdapterUse, Modality, ModelSpec
from sims.traces.catalogue import IMAGE_BASES, VIDEO_BASES, asked_of
from sims.traces.job import TraceJob
from sims.traces.loaders.records import Loader, Record, arrival_us, csv_rows, named, number_of
from sims.traces.metadata import TraceMeta
from sims.traces.variants import variant

_COLUMNS: Final = (
    "arrival_s", "predict_status", "exec_time_seconds", "groupId", "num_images_per_prompt", "num_inference_steps",
    "checkpoint_model_version_id", "loras", "lora_scales",
)  # fmt: skip
# Of sessions with pictures so many are taken for 4K.
_SHARE_4K: Final = 0.02
_SECONDS_MAX: Final = 10.0**8
_SUCCEEDED: Final = "SUCCEED"


def jobs(record: Record) -> Iterator[TraceJob]:
    """All requests that name a base model, in the order of the record."""
    return record.each(csv_rows(record.path, _COLUMNS), lambda row: _job(record, row))


def _job(record: Record, row: Mapping[str, str]) -> TraceJob | None:
    model, tenant = row["checkpoint_model_version_id"].strip(), named("t", row["groupId"])
    if not model:
        return None  # it was never begun
    base = _base(record, model)
    asked = asked_of(base, record.random("asked", tenant, model), _SHARE_4K)
    is_film = base.modality is Modality.VIDEO
    took_s = number_of(row, "exec_time_seconds", 0, _SECONDS_MAX) if row["predict_status"] == _SUCCEEDED else 0.0
    return TraceJob(
        arrival_us=arrival_us(number_of(row, "arrival_s", 0, _SECONDS_MAX)),
        model_id=variant(base.model_id, named("m", model)),
        tenant=TenantId(tenant),
        width=asked.width,
        height=asked.height,
        frames=asked.frames,
        steps=0 if is_film else int(number_of(row, "num_inference_steps", 1, limits.STEPS_MAX)),
        batch=1 if is_film else int(number_of(row, "num_images_per_prompt", 1, limits.BATCH_MAX)),
        adapters=_adapters(row, base.model_id),
        origin=record.region(tenant),
        measured_us=arrival_us(took_s),
    )


def _base(record: Record, model: str) -> ModelSpec:
    is_film = record.random("kind", model).random() < record.video_share
    model_id = ModelId(record.pick(VIDEO_BASES if is_film else IMAGE_BASES, "base", model))
    if model_id not in record.catalogue:
        raise FieldError("catalogue", model_id, "a catalogue with all models that a base model may be taken for")
    return record.catalogue[model_id]


def _adapters(row: Mapping[str, str], base: ModelId) -> tuple[AdapterUse, ...]:
    """A LoRA on a base of another kind is another file."""
    names = [name for name in row["loras"].split("|") if name.strip()]
    scales = row["lora_scales"].split("|") if names else []
    if len(names) != len(scales) or len(names) > limits.ADAPTERS_MAX:
        raise FieldError("loras", row["loras"], f"at most {limits.ADAPTERS_MAX} LoRAs between bars, with as many lora_scales")
    bound = limits.ADAPTER_SCALE_MILLI_MAX / 1_000
    found: dict[str, int] = {}
    for name, scale in zip(names, scales, strict=True):
        milli = round(number_of({"lora_scales": scale}, "lora_scales", -bound, bound) * 1_000)
        found.setdefault(f"{named('l', name)}.{base}", milli)
    return tuple(AdapterUse(adapter_id=AdapterId(name), scale_milli=milli) for name, milli in found.items())


DIFFUSION: Final = Loader(
    name="diffusion",
    about="requests of a production diffusion service: base models, LoRAs, steps, tenants, run times",
    meta=TraceMeta(
        source="alibaba/clusterdata GenTD26, diffusion requests of a production service",
        licence="for research or study; not to be passed on",
        synthesised=("which model of the catalogue a base model is", "width", "height", "frames", "films", "origin"),
        settings={"measured_us": "contains loads; on which GPU is not known", "arrival_us": "the clock was shifted; whole seconds"},
    ),
    jobs=jobs,
    draws_films=True,
)
