"""What was learned of the estimates <-> messages, for those who look at it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, TypeVar

from atoll.model.errors import FieldError
from atoll.model.ids import SiteId, parse_name
from atoll.model.learned import Calibration, Component, Gate, Level, QuoteFactor, QuotePart, Residual
from atoll.v1 import operator_service_pb2 as pb
from atoll.wire import bounds

E = TypeVar("E", bound=StrEnum)

# An answer holds fewer; beyond it something is wrong with the server.
_ROWS_MAX: Final = 20_000
_GATES_MAX: Final = 32
_QUOTES_MAX: Final = 64


def component_from_text(field: str, value: str) -> Component | None:
    """A component by name; None for "". FieldError for another name."""
    return _member(field, value, Component) if value else None


def site_from_text(field: str, value: str) -> SiteId | None:
    """A site by name; None for ""."""
    return None if not value else SiteId(parse_name(field, value))


def _member(field: str, value: str, kind: type[E]) -> E:
    try:
        return kind(value)
    except ValueError:
        raise FieldError(field, value, f"one of {', '.join(member.value for member in kind)}") from None


def _figure(field: str, value: int) -> int:
    return bounds.number(field, value, -bounds.COUNT_MAX, bounds.COUNT_MAX)


def residual_to_proto(row: Residual) -> pb.Residual:
    """A cell."""
    return pb.Residual(
        component=row.component.value,
        level=row.level.value,
        name=row.name,
        other=row.other,
        observations_milli=row.observations_milli,
        effect_milli=row.effect_milli,
        bias_milli=row.bias_milli,
        spread_milli=row.spread_milli,
        coverage_milli=row.coverage_milli,
        seen_us=row.seen_us,
    )


def residual_from_proto(msg: pb.Residual) -> Residual:
    """FieldError naming the figure that cannot be."""
    return Residual(
        component=_member("component", msg.component, Component),
        level=_member("level", msg.level, Level),
        name=bounds.label("name", msg.name),
        other=bounds.label("other", msg.other),
        observations_milli=_figure("observations_milli", msg.observations_milli),
        effect_milli=_figure("effect_milli", msg.effect_milli),
        bias_milli=_figure("bias_milli", msg.bias_milli),
        spread_milli=_figure("spread_milli", msg.spread_milli),
        coverage_milli=_figure("coverage_milli", msg.coverage_milli),
        seen_us=bounds.instant("seen_us", msg.seen_us),
    )


def residuals_from_proto(msg: pb.ListResidualsResponse) -> tuple[Residual, ...]:
    """All of an answer."""
    return bounds.each("residuals", msg.residuals, _ROWS_MAX, residual_from_proto)


def _gate_from_proto(msg: pb.Gate) -> Gate:
    return Gate(
        name=bounds.label("name", msg.name),
        observations=_figure("observations", msg.observations),
        median_milli=_figure("median_milli", msg.median_milli),
        coverage_milli=_figure("coverage_milli", msg.coverage_milli),
        enough=msg.enough,
        passed=msg.passed,
    )


def _quote_from_proto(msg: pb.QuoteFactor) -> QuoteFactor:
    return QuoteFactor(
        start=bounds.label("start", msg.start),
        modality=bounds.label("modality", msg.modality),
        part=_member("part", msg.part, QuotePart),
        observations=_figure("observations", msg.observations),
        p50_milli=_figure("p50_milli", msg.p50_milli),
        p90_milli=_figure("p90_milli", msg.p90_milli),
    )


def calibration_to_proto(calibration: Calibration) -> pb.Calibration:
    """Gates and quotes."""
    return pb.Calibration(
        gates=[
            pb.Gate(
                name=gate.name,
                observations=gate.observations,
                median_milli=gate.median_milli,
                coverage_milli=gate.coverage_milli,
                enough=gate.enough,
                passed=gate.passed,
            )
            for gate in calibration.gates
        ],
        quotes=[
            pb.QuoteFactor(
                start=quote.start,
                modality=quote.modality,
                part=quote.part.value,
                observations=quote.observations,
                p50_milli=quote.p50_milli,
                p90_milli=quote.p90_milli,
            )
            for quote in calibration.quotes
        ],
        factors=calibration.factors,
        shifts=calibration.shifts,
        learning=calibration.learning,
    )


def calibration_from_proto(msg: pb.Calibration) -> Calibration:
    """FieldError naming the figure that cannot be."""
    return Calibration(
        gates=bounds.each("gates", msg.gates, _GATES_MAX, _gate_from_proto),
        quotes=bounds.each("quotes", msg.quotes, _QUOTES_MAX, _quote_from_proto),
        factors=_figure("factors", msg.factors),
        shifts=_figure("shifts", msg.shifts),
        learning=msg.learning,
    )
