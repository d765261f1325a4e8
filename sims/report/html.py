"""One page that shows results, and needs nothing but itself: styles, script, the library that draws and the data are all in it.

Decides the page's parts and texts. Every text of a result may come from anybody: it is escaped here for HTML, and in the embedded data no
`<` is left that could end it. The page forbids itself to load anything.
"""

from __future__ import annotations

import html
import json
import os
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any, Final

from sims.report import wording
from sims.report.comparison import METRICS, Comparison, Group, Metric, Run
from sims.report.reading import Report
from sims.results.parquet import MissingExtraError
from sims.study.paired import PAIRS_MIN

_POLICY: Final = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
_CARDS: Final = ("pooling_efficiency", "p99_s:image", "deadline_miss_share", "cold_start_share", "usd_per_1000_jobs", "utilisation")
_NOTES: Final = {
    "pooling_efficiency": "of the load that the ideal carries with 95 % of jobs in time",
    "p99_s:image": "99 of 100 pictures are done by then",
    "deadline_miss_share": "of the jobs that have one",
    "cold_start_share": "of jobs waited for weights to load",
    "usd_per_1000_jobs": "GPU time of all jobs, failed ones too",
    "utilisation": "of the slots, over the time",
}


def write_page(report: Report, path: Path) -> None:
    """The page in a file; never half of it."""
    text = page(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)  # a page is for others to read; a temporary file is not
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def page(report: Report) -> str:
    """The page's text."""
    comparison = report.comparison
    runs = [run for group in comparison.groups for run in group.runs]
    title = "How the fleet did" if len(comparison.groups) == 1 else f"{len(comparison.groups)} policies on one fleet"
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en" data-theme="light">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{_safe(title)}: {_safe(wording.one_or_many(run.metadata.fleet for run in runs))}</title>",
            f"<style>{_part('page.css')}</style>",
            "</head>",
            "<body><main>",
            _header(title, runs),
            _cards(comparison.groups),
            _table(comparison) if len(comparison.groups) > 1 else "",
            _charts(comparison),
            _origins(runs),
            "</main>",
            f'<script type="application/json" id="data">{embedded(report.data)}</script>',
            f"<script>{_plotly()}</script>",
            f"<script>{_part('page.js')}</script>",
            "</body></html>",
            "",
        )
    )


def embedded(data: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _safe(text: str) -> str:
    return html.escape("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text))


def _part(name: str) -> str:
    return (resources.files("sims.report") / name).read_text(encoding="utf-8")


def _plotly() -> str:
    try:
        found = resources.files("plotly") / "package_data" / "plotly.min.js"
    except ModuleNotFoundError as error:
        raise MissingExtraError("plotly") from error
    return found.read_text(encoding="utf-8").replace("</script", "<\\/script")


def _header(title: str, runs: list[Run]) -> str:
    jobs = sum(run.figures.jobs for run in runs)
    hours = sum(run.figures.simulated_s for run in runs) / 3600
    metadata = runs[0].metadata
    loads = wording.one_or_many(wording.load(run.metadata) for run in runs)
    seeds = len({run.metadata.seed for run in runs})
    slots = sum(place.slots for place in metadata.sites)
    facts = (
        f"<b>{jobs:,}</b> jobs in <b>{hours:,.1f}</b> fleet hours",
        f"<b>{len(metadata.sites)}</b> sites with <b>{slots:,}</b> slots",
        f"{_safe(loads)}",
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}",
        _safe(wording.one_or_many(run.metadata.trace for run in runs)),
    )
    mark = '<span class="mark">SYNTHETIC FLEET</span>' if any(run.metadata.synthetic for run in runs) else ""
    return (
        f"<header><div><h1>{_safe(title)}{mark}</h1>"
        f'<p class="facts">{" · ".join(facts)}</p></div><button id="theme" type="button">Dark</button></header>'
    )


def _cards(groups: tuple[Group, ...]) -> str:
    return f'<section class="cards">{"".join(_card(groups, metric) for key in _CARDS for metric in METRICS if metric.key == key)}</section>'


def _card(groups: tuple[Group, ...], metric: Metric) -> str:
    """The figure of the first policy, and below it those of all."""
    found = [(group.name, group.mean(metric)) for group in groups]
    if all(value is None for _, value in found):
        return ""
    most = max(value for _, value in found if value is not None) or 1
    rank = "".join(_ranked(metric, name, value, most) for name, value in found)
    return (
        f'<div class="card"><h3>{_safe(metric.title[:1].upper() + metric.title[1:])}</h3>'
        f'<div class="value">{wording.value(metric, found[0][1])}</div><div class="note">{_NOTES[metric.key]}</div>'
        f"{f'<ul class=rank>{rank}</ul>' if len(groups) > 1 else ''}</div>"
    )


def _ranked(metric: Metric, name: str, value: float | None, most: float) -> str:
    part = 0 if value is None else value / most
    return f'<li style="--part: {part:.1%}"><span>{_safe(name)}</span><span>{wording.value(metric, value)}</span></li>'


def _table(comparison: Comparison) -> str:
    present = [metric for metric in METRICS if any(group.by_seed(metric) for group in comparison.groups)]
    head = "".join(_column(index, group) for index, group in enumerate(comparison.groups))
    rows = "".join(
        f'<tr><th scope="row">{_safe(metric.title)}</th>'
        f"{''.join(f'<td>{_cell(comparison, group, metric)}</td>' for group in comparison.groups)}</tr>"
        for metric in present
    )
    explained = (
        "Beside each figure: the change from the first policy of the same load. Below it: where the change lies with 95 % confidence "
        "(paired by seed, Student's t), and how often chance alone would do as much (corrected for the number of policies, Holm). "
        f"▲ better, ▼ worse, where that is below 5 %. With fewer than {PAIRS_MIN} seeds in common nothing is said of chance."
    )
    return (
        f'<section class="panel"><h2>Policies compared</h2><p>{explained}</p><div class="scroll"><table>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _column(index: int, group: Group) -> str:
    seeds = len(group.runs)
    return (
        f'<th scope="col"><span class="swatch" data-policy="{index}"></span>{_safe(group.name)}'
        f"<small>n = {seeds} {'seed' if seeds == 1 else 'seeds'}</small></th>"
    )


def _cell(comparison: Comparison, group: Group, metric: Metric) -> str:
    after, baseline = group.mean(metric), comparison.baseline_of(group)
    text = wording.value(metric, after)
    before = baseline.mean(metric) if baseline is not None else None
    if after is None or before is None:
        return text
    difference = comparison.differences.get((group.name, metric.key))
    if difference is None:
        return f"<i>{wording.change(metric, before, after)}</i>{text}"
    change = wording.change(metric, difference.baseline_mean, difference.other_mean)
    kind = ""
    if difference.is_significant:
        good = wording.is_better(metric, difference)
        kind, change = (' class="better"', f"▲ {change}") if good else (' class="worse"', f"▼ {change}")
    return f"<i{kind}>{change}</i>{text}<small>{wording.interval(metric, difference)}, {wording.chance(difference)}</small>"


def _charts(comparison: Comparison) -> str:
    runs = [(group, run) for group in comparison.groups for run in group.runs]
    options = "".join(
        f'<option value="{index}">{_safe(group.name)}, seed {run.metadata.seed}</option>' for index, (group, run) in enumerate(runs)
    )
    chooser = f'<div class="chooser"><label for="run">The fleet over time, under</label><select id="run">{options}</select></div>'
    return f"""<section class="charts">
{_figure("latency", "wide", "How long jobs take", "Share of the jobs that have ended so long after they arrived")}
{_figure("seconds", "narrow", "Where the seconds go", "Mean seconds of a job, by what they were spent on")}
{chooser if len(runs) > 1 else ""}
{_figure("map", "", "The fleet", "A circle is a site: its size are its slots, its colour is how busy they were")}
{_figure("heatmap", "", "Who was busy, and when", "Share of a site's slots that ran jobs; sites from west to east. Blank: it had no slots")}
{_figure("changes", "wide", "Models coming and going", "Cold starts upwards, evictions downwards, in each interval over all sites")}
{_figure("cost", "narrow", "What jobs cost", "Dollars per 1,000 jobs, by the type of GPU they were spent on")}
</section>"""


def _figure(name: str, width: str, title: str, caption: str) -> str:
    return (
        f'<figure class="{width}"><h2>{title}</h2><figcaption>{caption}</figcaption>'
        f'<div class="chart" id="{name}" role="img" aria-label="{title}: {caption}"></div></figure>'
    )


def _origins(runs: list[Run]) -> str:
    head = "".join(
        f'<th scope="col">{title}</th>' for title in ("policy", "its digest", "seed", "result's digest", "trace", "its terms", "folder")
    )
    rows = "".join(f"<tr>{''.join(f'<td>{_safe(text or wording.NOTHING)}</td>' for text in _origin(run))}</tr>" for run in runs)
    return (
        f"<details><summary>What these results are of</summary><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></details>"
    )


def _origin(run: Run) -> tuple[str, ...]:
    found = run.metadata
    folder = run.result.folder.name
    return (found.policy, found.policy_digest, str(found.seed), found.digest, found.trace, found.trace_licence, folder)
