"""The data of a report's charts, as the page carries it: values of the result's files, added up where a chart adds them up.

Decides what each chart shows and how many points of it; every latency is one that a job had, every other value a sum or mean of rows. Must
not know how a page looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from atoll.model.job import JobState
from sims.report.comparison import Group, Run
from sims.report.land import land_points
from sims.results.figures import Columns, latencies_us
from sims.results.rows import KINDS, TERMS

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A curve of more points than a screen has is no smoother.
CURVE_POINTS: Final = 400
# Sites are told apart, and moments, while a cell of the heatmap is some pixels wide; beyond it neighbours in time are averaged.
MOMENTS_MAX: Final = 240
# Beside them everything else is "other": colours that people tell apart are few.
GPU_TYPES_MAX: Final = 7
OTHER: Final = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """What is kept of one run's jobs until all runs of its group are read."""

    latencies_us: Mapping[str, NDArray[Any]]  # by kind, ascending
    terms_us: Mapping[str, Mapping[str, int]]  # kind -> term -> sum over jobs that succeeded
    usd_micros: Mapping[str, int]  # by type of GPU
    succeeded: int


def curves_of(jobs: Columns) -> Curves:
    """Of one run's jobs."""
    import numpy as np

    done = jobs["state"] == JobState.SUCCEEDED
    kinds = [kind for kind in KINDS if (done & (jobs["kind"] == kind)).any()]
    gpu_types, place = np.unique(jobs["gpu_type"].astype(str), return_inverse=True)
    spent = np.zeros(len(gpu_types), dtype=np.int64)
    np.add.at(spent, place, jobs["price_usd_micros"])
    return Curves(
        latencies_us={kind: latencies_us(jobs, kind) for kind in kinds},
        terms_us={kind: {term: int(jobs[f"{term}_us"][done & (jobs["kind"] == kind)].sum()) for term in TERMS} for kind in kinds},
        usd_micros={str(name): int(usd) for name, usd in zip(gpu_types, spent, strict=True) if usd},
        succeeded=int(done.sum()),
    )


def chart_data(groups: Sequence[Group], curves: Mapping[str, Sequence[Curves]], runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Everything that is drawn. `curves`: of each group's runs; `runs`: see `run_data`."""
    names = [group.name for group in groups]
    return {
        "groups": names,
        "kinds": [kind for kind in KINDS if any(kind in one.latencies_us for name in names for one in curves[name])],
        "terms": list(TERMS),
        "latency": [curve for name in names for curve in _latency(name, curves[name])],
        "seconds": [bar for name in names for bar in _seconds(name, curves[name])],
        "cost": _cost({name: curves[name] for name in names}),
        "runs": list(runs),
        "land": land_points(),
    }


def run_data(run: Run, jobs: Columns, sites: Columns) -> dict[str, Any]:
    """What is drawn of one run: sites over time, and where they are. Sites go from west to east, as the day does in reverse."""
    import numpy as np

    places = {place.site_id: place for place in run.metadata.sites}
    known = sorted(set(sites["site_id"].tolist()), key=lambda name: (places[name].longitude_micro_deg if name in places else 0, name))
    line_of = {name: index for index, name in enumerate(known)}
    row = np.array([line_of[name] for name in sites["site_id"].tolist()], dtype=np.int64)
    moments = np.unique(sites["at_us"])
    width = -(-len(moments) // MOMENTS_MAX) if len(moments) else 1
    column = np.searchsorted(moments, sites["at_us"]) // width
    shape = (len(known), -(-len(moments) // width))

    def total(name: str) -> NDArray[Any]:
        grid = np.zeros(shape, dtype=np.int64)
        np.add.at(grid, (row, column), sites[name])
        return grid

    slots, busy, cold, evicted = (total(name) for name in ("slots", "slots_busy", "cold_starts", "evictions"))
    served = np.unique(jobs["site_id"].astype(str), return_counts=True)
    by_site = {str(name): int(count) for name, count in zip(*served, strict=True)}
    return {
        "seed": run.metadata.seed,
        "sites": known,
        "hours": [float(us) / 3.6e9 for us in moments[::width]],
        "utilisation": [[_share(*cell) for cell in zip(*line, strict=True)] for line in zip(busy.tolist(), slots.tolist(), strict=True)],
        "cold_starts": cold.sum(axis=0).tolist(),
        "evictions": evicted.sum(axis=0).tolist(),
        "busy": _share(int(busy.sum()), int(slots.sum())),
        "map": [
            {
                "site": name,
                "region": places[name].region,
                "longitude": places[name].longitude_micro_deg / 1e6,
                "latitude": places[name].latitude_micro_deg / 1e6,
                "slots": places[name].slots,
                "gpu_types": list(places[name].gpu_types),
                "jobs": by_site.get(name, 0),
                "utilisation": _share(int(busy[index].sum()), int(slots[index].sum())),
            }
            for index, name in enumerate(known)
            if name in places
        ],
    }


def _latency(group: str, curves: Sequence[Curves]) -> list[dict[str, Any]]:
    import numpy as np

    found = []
    for kind in KINDS:
        parts = [one.latencies_us[kind] for one in curves if kind in one.latencies_us]
        if parts:
            ordered = np.sort(np.concatenate(parts))
            count = len(ordered)
            ranks = sorted({-(-count * point // CURVE_POINTS) for point in range(1, CURVE_POINTS + 1)})
            seconds = [int(ordered[rank - 1]) / 1e6 for rank in ranks]
            found.append({"group": group, "kind": kind, "n": count, "seconds": seconds, "share": [rank / count for rank in ranks]})
    return found


def _seconds(group: str, curves: Sequence[Curves]) -> list[dict[str, Any]]:
    """Mean seconds of a job of each kind, by term."""
    found = []
    for kind in KINDS:
        count = sum(len(one.latencies_us.get(kind, ())) for one in curves)
        if count:
            sums = {term: sum(one.terms_us[kind][term] for one in curves if kind in one.terms_us) for term in TERMS}
            found.append({"group": group, "kind": kind, "n": count, "mean": {term: us / count / 1e6 for term, us in sums.items()}})
    return found


def _cost(curves: Mapping[str, Sequence[Curves]]) -> dict[str, Any]:
    """Dollars per 1,000 jobs that succeeded, by the type of GPU they were spent on."""
    spent = {name: _spent(ones) for name, ones in curves.items()}
    totals: dict[str, float] = {}
    for usd in spent.values():
        for gpu_type, value in usd.items():
            totals[gpu_type] = totals.get(gpu_type, 0) + value
    leading = sorted(totals, key=lambda gpu_type: (-totals[gpu_type], gpu_type))
    shown = leading if len(leading) <= GPU_TYPES_MAX + 1 else leading[:GPU_TYPES_MAX]
    rest = [gpu_type for gpu_type in leading if gpu_type not in shown]
    return {
        "gpu_types": [*shown, *([OTHER] if rest else [])],
        "usd": {
            name: [*(usd.get(one, 0.0) for one in shown), *([sum(usd.get(one, 0.0) for one in rest)] if rest else [])]
            for name, usd in spent.items()
        },
    }


def _spent(curves: Sequence[Curves]) -> dict[str, float]:
    jobs = sum(one.succeeded for one in curves)
    gpu_types = {gpu_type for one in curves for gpu_type in one.usd_micros}
    return {gpu_type: sum(one.usd_micros.get(gpu_type, 0) for one in curves) / 1e3 / jobs for gpu_type in gpu_types} if jobs else {}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
