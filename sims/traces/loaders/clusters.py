"""Records of GPU clusters and of requests that share content: pods (openb), long jobs (Philly), and conversations (Mooncake).

Decides what counts as one model there: what must be at hand before work can begin. Pods of one make are one application, jobs of one
cluster and size one program, requests with one beginning one conversation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.ids import TenantId
from sims.traces.catalogue import IMAGE_BASES
from sims.traces.job import TraceJob
from sims.traces.loaders.records import Loader, Record, arrival_us, csv_rows, json_rows, moment_us, named, number_of
from sims.traces.metadata import TraceMeta
from sims.traces.variants import variant

_SECONDS_MAX: Final = 10.0**8
_GPUS_MAX: Final = 10.0**5
# Programs that a cluster runs with so many GPUs: a record without names of programs must not make one of all.
_PROGRAMS: Final = 40
_MODEL_AND_SHAPE: Final = ("model_id", "width", "height", "frames", "steps", "batch", "origin")


def _job(record: Record, application: str, tenant: str, arrives_us: int, **figures: Any) -> TraceJob:
    base = record.pick(IMAGE_BASES, "base", application)
    return TraceJob(
        arrival_us=arrives_us,
        model_id=variant(base, named("m", application)),
        tenant=TenantId(tenant),
        origin=record.region(tenant),
        **figures,
    )


def openb_jobs(record: Record) -> Iterator[TraceJob]:
    """Pods with GPUs, those of one node: gangs of 1, 2, 4 or 8."""

    def make(row: Mapping[str, str]) -> TraceJob | None:
        gpus = int(number_of(row, "num_gpu", 0, _GPUS_MAX))
        if gpus not in limits.GANG_SIZES:
            return None
        makes = "-".join(row[name] for name in ("cpu_milli", "memory_mib", "gpu_milli", "num_gpu"))
        began = row["scheduled_time"].strip()
        ran_s = max(number_of(row, "deletion_time", 0, _SECONDS_MAX) - float(began), 0.0) if began else 0.0
        arrives_us = arrival_us(number_of(row, "creation_time", 0, _SECONDS_MAX))
        return _job(record, makes, named("t", row["qos"]), arrives_us, gang_size=gpus, measured_us=arrival_us(ran_s))

    names = ("cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "qos", "creation_time", "deletion_time", "scheduled_time")
    return record.each(csv_rows(record.path, names), make)


def philly_jobs(record: Record) -> Iterator[TraceJob]:
    """Jobs of one node, by cluster; their order is not that of time."""
    columns = ("timestamp", "duration", "num_gpus", "cluster")
    # As they are written, moments sort as they follow each other.
    moments = (row["timestamp"] for _, row in csv_rows(record.path, columns) if not isinstance(row, FieldError))
    began_us = moment_us({"timestamp": min((text for text in moments if text[:1].isdigit()), default="")}, "timestamp")

    def make(row: Mapping[str, str]) -> TraceJob | None:
        gpus = int(number_of(row, "num_gpus", 0, _GPUS_MAX))
        arrives_us = moment_us(row, "timestamp") - began_us
        if gpus not in limits.GANG_SIZES:
            return None
        cluster = named("t", row["cluster"])
        program = record.random("program", row["timestamp"]).randrange(_PROGRAMS)
        ran_us = arrival_us(number_of(row, "duration", 0, _SECONDS_MAX))
        return _job(record, f"{cluster}-{gpus}-{program}", cluster, arrives_us, gang_size=gpus, measured_us=ran_us)

    return record.each(csv_rows(record.path, columns), make)


def mooncake_jobs(record: Record) -> Iterator[TraceJob]:
    """Requests: what begins alike wants the same thing at hand. The first block is everybody's instruction, the second tells them apart."""

    def make(row: Mapping[str, Any]) -> TraceJob:
        hashes = row["hash_ids"]
        if not isinstance(hashes, list) or not hashes or not all(type(one) is int for one in hashes[:2]):
            raise FieldError("hash_ids", hashes, "a list of whole numbers, at least one")
        begins = hashes[min(len(hashes) - 1, 1)]
        arrives_us = arrival_us(number_of(row, "timestamp", 0, _SECONDS_MAX * 1_000) / 1_000)
        application = record.random("application", begins).randrange(_APPLICATIONS)
        return _job(record, f"a{application}", f"t{application}", arrives_us, session=f"b{begins}")

    return record.each(json_rows(record.path, ("timestamp", "hash_ids")), make)


# As many as there are models in a large service; conversations are shared out among them.
_APPLICATIONS: Final = 600

OPENB: Final = Loader(
    name="openb",
    about="pods with GPUs of a production cluster (openb)",
    meta=TraceMeta(
        source="alibaba/clusterdata, cluster-trace-gpu-v2023 (openb)",
        licence="for research or study",
        synthesised=_MODEL_AND_SHAPE,
        settings={"left_out": "pods without a GPU"},
    ),
    jobs=openb_jobs,
    in_order=False,
)
PHILLY: Final = Loader(
    name="philly",
    about="long jobs over 15 clusters (Philly)",
    meta=TraceMeta(
        source="msr-fiddle/philly-traces, extract",
        licence="CC BY 4.0",
        synthesised=(*_MODEL_AND_SHAPE, "programs"),
        settings={"left_out": "jobs of more GPUs than a node has"},
    ),
    jobs=philly_jobs,
    in_order=False,
)
MOONCAKE: Final = Loader(
    name="mooncake",
    about="requests with content hashes (Mooncake)",
    meta=TraceMeta(source="kvcache-ai/Mooncake", licence="Apache-2.0", synthesised=(*_MODEL_AND_SHAPE, "tenant")),
    jobs=mooncake_jobs,
)
