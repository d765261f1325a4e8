"""The book as people read it: one line per cell, the gates, what quotes make of a prediction.

Decides the figures shown and when a gate passes. Must not know who reads them.
"""

from __future__ import annotations

from math import isqrt
from typing import Final

from atoll.model.ids import ModelId, SiteId
from atoll.model.learned import (
    COVERAGE_MILLI,
    GATE_ATTEMPTS,
    MEDIAN_MAX_MILLI,
    TOTAL,
    WAIT,
    Calibration,
    Component,
    Gate,
    Level,
    QuoteFactor,
    Residual,
)
from orchestrator.core.learning.book import Book
from orchestrator.core.learning.cells import Cell, CellKey
from orchestrator.core.learning.logs import ONE, milli, nats_milli
from orchestrator.core.learning.sketch import UNIT, Sketch

# What one answer holds: a page of a terminal's patience, and well under a message's limit.
ROWS_MAX: Final = 5_000


def residuals(
    book: Book, now_us: int, *, component: Component | None = None, site_id: SiteId | None = None, model_id: ModelId | None = None
) -> tuple[Residual, ...]:
    """Cells with evidence, by component, level and name; with a filter those that are about it. At most `ROWS_MAX`, the upper levels
    first."""
    found: list[Residual] = []
    for one in book.components.values():
        if component is not None and one.component is not component:
            continue
        for level, table in one.tables.items():
            for key, cell in sorted(table.items()):
                # Of one whose only attempts were cut off before they were due, or are long past, there is nothing to say.
                if _is_about(level, key, site_id, model_id) and not cell.forgotten(now_us):
                    found.append(_row(one.component, level, key, cell, now_us))
    order = list(Level)
    found.sort(key=lambda row: order.index(row.level))
    return tuple(found[:ROWS_MAX])


def _is_about(level: Level, key: CellKey, site_id: SiteId | None, model_id: ModelId | None) -> bool:
    of_site = key[0] if level is Level.SITE else key[1] if level is Level.MODEL_SITE else None
    of_model = key[0] if level in {Level.MODEL_GPU_TYPE, Level.MODEL_SITE} else None
    return (site_id is None or of_site == site_id) and (model_id is None or of_model == model_id)


def _row(component: Component, level: Level, key: CellKey, cell: Cell, now_us: int) -> Residual:
    weight = max(cell.weight, 1)
    bias = cell.error_sum * ONE // weight
    # Square logs are kept in 2^-16 square octaves.
    variance = max((cell.error_square_sum * ONE // weight << 16) - bias * bias, 0)
    return Residual(
        component=component,
        level=level,
        name=key[0],
        other=key[1],
        observations_milli=cell.evidence(now_us) * 1_000 // ONE,
        effect_milli=milli(cell.effect(now_us)),
        bias_milli=nats_milli(bias),
        spread_milli=nats_milli(isqrt(variance)),
        coverage_milli=cell.covered * 1_000 // weight,
        seen_us=cell.seen_us,
    )


def calibration(book: Book) -> Calibration:
    """Whether predictions may be believed."""
    gates = [_gate(one.component.value, one.gate) for one in book.components.values()]
    quotes = tuple(
        QuoteFactor(start=key[0], modality=key[1], part=part, observations=(evidence + 500) // 1_000, p50_milli=p50, p90_milli=p90)
        for key, part, evidence, p50, p90 in book.quotes.kinds()
    )
    return Calibration(
        gates=(*gates, _gate(TOTAL, book.quotes.gate), _gate(WAIT, book.waits.gate)),
        quotes=quotes,
        factors=book.cells,
        shifts=sum(one.shifts for one in book.components.values()),
        learning=book.learning,
    )


def _gate(name: str, judged: Sketch) -> Gate:
    observations = judged.counted // UNIT
    median = nats_milli(judged.quantile(500)) if judged.held else 0
    coverage = judged.covered * 1_000 // judged.counted if judged.counted else 0
    enough = observations >= GATE_ATTEMPTS
    passed = enough and abs(median) <= MEDIAN_MAX_MILLI and COVERAGE_MILLI[0] <= coverage <= COVERAGE_MILLI[1]
    return Gate(name=name, observations=observations, median_milli=median, coverage_milli=coverage, enough=enough, passed=passed)
