"""`atoll costs residuals` and `atoll costs calibrate`: what was learned of the estimates, and whether they may be believed.

Decides the wording. Logarithms of ratios are shown as percents; JSON has them as they are.
"""

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli import drain
from atoll.cli.exits import CliError, Exit
from atoll.cli.figures import NONE, count, duration
from atoll.cli.models import model_id
from atoll.cli.output import Column, Form, Listing, note, plain, say, show_list, show_plain, table
from atoll.cli.refusals import as_options
from atoll.cli.session import session, verb
from atoll.cli.sites import site_id
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
    QuotePart,
    Residual,
)

if TYPE_CHECKING:
    from atoll.client import Residuals

ComponentOption = Annotated[str, typer.Option("--component", metavar="NAME", show_default=False, help=f"One of {', '.join(Component)}.")]
SiteOption = Annotated[str, typer.Option("--site", metavar="SITE", show_default=False, help="Only what is about this site.")]

_LEVELS = {
    Level.ALL: "all",
    Level.GPU_TYPE: "GPU type",
    Level.SITE: "site",
    Level.MODEL_GPU_TYPE: "model x GPU type",
    Level.MODEL_SITE: "model x site",
}
_PARTS = {
    QuotePart.BEFORE: "until it executes",
    QuotePart.EXECUTION: "execution and result",
    QuotePart.WHOLE: "both",
}
# Gates are named as components are, but for the one of what people are told.
_GATES = {TOTAL: "all of it, as quoted", WAIT: "waiting, as quoted"}
_COVERED = f"{COVERAGE_MILLI[0] // 10} to {COVERAGE_MILLI[1] // 10} %"
# What the headings mean, under the lines.
_LEGEND = (
    "FACTOR: what this level multiplies a prediction by; JOBS: evidence for it, older attempts count less; OFF: by how much longer (+) or",
    "shorter (-) it took than stated, on average; SPREAD: two of three lie so close; WITHIN P90: 90 % is right. Few JOBS say little.",
)
# Thousands of lines about single models are asked for by name.
_SHOWN = frozenset({Level.ALL, Level.GPU_TYPE, Level.SITE})


def add_to(app: typer.Typer) -> None:
    """Add both verbs to the noun."""
    verb(
        app,
        "residuals",
        epilog="""
        atoll costs residuals
        atoll costs residuals --component execution --site aws-use1
        atoll costs residuals -o json
        """,
    )(residuals)
    verb(
        app,
        "calibrate",
        epilog="""
        atoll costs calibrate  # exit code 0: every gate holds; 1: one fails; 8: too few attempts
        atoll costs calibrate --reset --site aws-use1 --reason "new drivers"
        """,
    )(calibrate)


def _percent(milli: int) -> float:
    """Thousandths of a logarithm of a ratio as what the ratio is more than one, in percent."""
    return (exp(milli / 1_000) - 1) * 100


# A median may be as many times less as it may be more.
_MEDIAN = f"{_percent(MEDIAN_MAX_MILLI):.1f} % longer or {-_percent(-MEDIAN_MAX_MILLI):.1f} % less"


def _who(row: Residual) -> str:
    return " at ".join(name for name in (row.name, row.other) if name) or NONE


def _listing(now_us: int) -> Listing[Residual]:
    return Listing(
        kind="residual",
        ref=lambda row: "/".join(part for part in (row.component.value, row.level.value, row.name, row.other) if part),
        columns=(
            Column(title="COMPONENT", cell=lambda row: row.component.value),
            Column(title="LEVEL", cell=lambda row: _LEVELS[row.level]),
            Column(title="WHO", cell=_who),
            Column(title="JOBS", cell=lambda row: f"{row.observations_milli / 1_000:.1f}", right=True),
            Column(title="FACTOR", cell=lambda row: f"x{row.effect_milli / 1_000:.2f}", right=True),
            Column(title="OFF", cell=lambda row: f"{_percent(row.bias_milli):+.0f} %", right=True),
            Column(title="SPREAD", cell=lambda row: f"{_percent(row.spread_milli):.0f} %", right=True),
            Column(title="WITHIN P90", cell=lambda row: f"{row.coverage_milli / 10:.0f} %", right=True),
            Column(title="LAST", cell=lambda row: f"{duration(max(now_us - row.seen_us, 0))} ago", wide=True, right=True),
        ),
    )


def residuals(
    *,
    component: ComponentOption = "",
    site: SiteOption = "",
    model: Annotated[str, typer.Option("--model", metavar="MODEL", show_default=False, help="Only what is about this model.")] = "",
) -> None:
    """What was learned of the estimates: every level's own factor, and how far predictions were off when attempts had ended.

    A prediction is the prior of the physics, times the factors of all levels that it belongs to. Lines about single models are shown with
    --site, --model or -o wide.
    """
    form = session().form
    with as_options(model_id="--model"), session().client() as client:
        found = client.residuals(component=component, site_id=site_id(site), model_id=model_id(model))
    if form in {Form.JSON, Form.YAML}:
        show_plain(form, plain(found))
        return
    every = form is not Form.TABLE or bool(site or model)
    shown = [row for row in found.residuals if every or row.level in _SHOWN]
    show_list(form, _listing(found.now_us), shown, empty="nothing was learned yet: no attempt of that kind has ended")
    if shown and form in {Form.TABLE, Form.WIDE}:
        for line in _LEGEND:
            note(line)
    _leave_out(found, len(found.residuals) - len(shown))


def _leave_out(found: Residuals, hidden: int) -> None:
    if hidden:
        note(f"{count(hidden, 'more line')} about single models: --site, --model or -o wide")
    if found.truncated:
        note("there is more than one answer holds: ask by --component, --site or --model")


def calibrate(
    *,
    reset: Annotated[bool, typer.Option("--reset", help="Forget what was learned, then learn again.")] = False,
    component: ComponentOption = "",
    site: SiteOption = "",
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", show_default=False, help="Why; kept in the audit. With --reset.")] = "",
) -> None:
    """Whether predictions may be believed: typically off by some 5 % at most, 87 to 93 % of jobs within the P90; and what is quoted.

    Exit code 0: every gate with enough attempts holds; 1: one fails; 8: none has enough yet.
    """
    form = session().form
    if reset:
        drain.demand_reason(reason)
    elif component or site or reason:
        raise CliError("--component, --site and --reason belong to --reset", code=Exit.USAGE)
    with as_options(), session().client() as client:
        if reset:
            found = client.estimates_reset(component=component, site_id=site_id(site), reason=reason)
        else:
            found = client.calibration()
    if form in {Form.JSON, Form.YAML}:
        show_plain(form, plain(found))
    elif form is Form.NAME:
        for gate in found.gates:
            say(f"gate/{gate.name}")
    else:
        show(found)
    if reset:
        what = component or "all components"
        note(f"forgotten: {what} {f'at {site_id(site)}' if site else 'everywhere'}")
    elif not judged(found):
        most = max((gate.observations for gate in found.gates), default=0)
        note(f"nothing judged yet: {most} of {GATE_ATTEMPTS} attempts")
        raise typer.Exit(Exit.UNDECIDED)


def judged(found: Calibration) -> bool:
    """Whether anything can be said yet. CliError for a gate that fails."""
    judged = [gate for gate in found.gates if gate.enough]
    failing = [gate.name for gate in judged if not gate.passed]
    if failing:
        raise CliError(f"predictions are off: {', '.join(failing)}", hint=_hint(failing))
    return bool(judged)


def _hint(failing: list[str]) -> str:
    """Where to look. Quotes are fitted to totals, so they follow by themselves."""
    if failing == [WAIT]:
        return "work takes as long as stated, the queue does not: a load that comes and goes; quotes of waits follow the last of them"
    failing = [name for name in failing if name != WAIT]
    if failing == [TOTAL]:
        where = "its parts hold: time passes between them, such as messages or a busy machine ('the rest' in 'atoll jobs explain JOB')"
    else:
        name = next(name for name in failing if name != TOTAL)
        where = f"'atoll costs residuals --component {name}' shows at whom; a site that changed is in 'atoll events'"
    return f"{where}; quotes follow what completions took"


def show(found: Calibration) -> None:
    """Gates, what quotes make of predictions, and how much was learned."""
    rows = [
        [_GATES.get(gate.name, gate.name), str(gate.observations), _typically(gate), _covered(gate), _verdict(gate)]
        for gate in found.gates
        if gate.observations
    ]
    if rows:
        say("What jobs that ended took, against what had been predicted of them:")
        table(["PREDICTED", "JOBS", "TYPICALLY TOOK", "WITHIN P90", "IN THE GATES"], rows, frozenset({1, 3}), indent="  ")
        say(f"  (typically: half of them took longer, half less; P90: nine of ten should take no longer. In the gates: at most {_MEDIAN},")
        say(f"  {_COVERED} within their P90; judged from {GATE_ATTEMPTS} jobs on)")
    else:
        say("no attempt has ended since learning began")
    _show_quotes(found)
    say("")
    off = "" if found.learning else "; learning is off: all factors are 1"
    say(f"{count(found.factors, 'factor')} learned, {count(found.shifts, 'lasting change')} found{off}; 'atoll costs residuals' lists them")


def _show_quotes(found: Calibration) -> None:
    """By what quotes multiply predictions."""
    quotes = []
    for quote in found.quotes:
        whole = quote.part is QuotePart.WHOLE
        p50, p90 = (f"x{milli / 1_000:.2f}" for milli in (quote.p50_milli, quote.p90_milli))
        told = [NONE, f"margin {p90}"] if whole else [p50, p90]
        quotes.append([quote.start, quote.modality, _PARTS[quote.part], str(quote.observations), *told])
    if not quotes:
        return
    say("")
    say("What is quoted, as a multiple of what is predicted:")
    table(["START", "MAKES", "PART", "JOBS", "HALF OF THEM", "9 OF 10"], quotes, frozenset({3, 4, 5}), indent="  ")
    say("  (both: by what the margin between half of them and 9 of 10 is stretched when the parts are added up. Jobs decided together")
    say("  count less, and a part as much as it was of the whole; kinds that are not here take after those nearest to them)")


def _typically(gate: Gate) -> str:
    """The median ratio of what came to what was predicted, in words; as exact as tells why it is not in its gate."""
    percent = _percent(gate.median_milli)
    most = _percent(MEDIAN_MAX_MILLI if percent > 0 else -MEDIAN_MAX_MILLI)
    hidden = abs(gate.median_milli) > MEDIAN_MAX_MILLI and round(percent) == round(most)
    if not round(percent):
        return "as predicted"
    return f"{abs(percent):.{1 if hidden else 0}f} % {'longer' if percent > 0 else 'less'}"


def _covered(gate: Gate) -> str:
    """The share within the P90, likewise."""
    percent = gate.coverage_milli / 10
    hidden = not _is_covered(gate) and round(percent) in (COVERAGE_MILLI[0] // 10, COVERAGE_MILLI[1] // 10)
    return f"{percent:.{1 if hidden else 0}f} %"


def _is_covered(gate: Gate) -> bool:
    return COVERAGE_MILLI[0] <= gate.coverage_milli <= COVERAGE_MILLI[1]


def _verdict(gate: Gate) -> str:
    if not gate.enough:
        return f"too few jobs yet: {gate.observations} of {GATE_ATTEMPTS}"
    if gate.passed:
        return "yes"
    amiss = []
    if abs(gate.median_milli) > MEDIAN_MAX_MILLI:
        amiss.append(f"it takes {_typically(gate)}")
    if not _is_covered(gate):
        amiss.append("P90 is exceeded too often" if gate.coverage_milli < COVERAGE_MILLI[0] else "P90 is too cautious")
    return f"no: {', '.join(amiss)}"
