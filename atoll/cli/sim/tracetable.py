"""What a trace is like, as a person reads it.

Decides order and words; the figures are `sims.traces.statistics`'.
"""

from __future__ import annotations

from typing import Any, Final

from atoll.cli.figures import NONE, count, duration
from atoll.cli.output import say, table

_US: Final = 1_000_000
_NOT_STATED: Final = "not stated"
# Enough to see what kind of names they are.
_NAMED: Final = 5


def show(found: dict[str, Any]) -> None:
    """All figures, in lines."""
    say(f"{found['file']}: {count(found['jobs'], 'job')} in {duration(round(found['span_s'] * _US))}")
    say(f"  from: {found['source'] or _NOT_STATED}")
    say(f"  licence: {found['licence'] or _NOT_STATED}")
    if found["synthesised"]:
        say(f"  made up: {', '.join(found['synthesised'])}")
    for name, value in found["settings"].items():
        say(f"  {name}: {value}")
    say("")
    say(f"  {_figure(found['jobs_per_s'])} jobs a second, {found['peak_minute_jobs']} in the busiest minute")
    say(f"  gaps vary by {_figure(found['gap_cv'])} of their mean (1: as chance has it)")
    nouns = [count(found[f"{noun}s"], noun) for noun in ("model", "tenant", "adapter")]
    say(f"  {', '.join(nouns)}, {_share(found['with_adapters_share'])} of jobs with some")
    unknown = found["unknown_models"]
    if unknown:
        say(f"  not in the catalogue: {', '.join(unknown[:_NAMED])}{' and more' if len(unknown) > _NAMED else ''}")
    say(f"  the top 1 % of tenants ask for {_share(found['top_tenants_share'])} of jobs")
    say(f"  {_share(found['with_deadline_share'])} have a deadline, {_share(found['measured_share'])} a measured time")
    for title, counts in (("KIND", found["kinds"]), ("ORIGIN", found["origins"])):
        if counts:
            say("")
            rows = [[name, str(jobs), _share(jobs / found["jobs"])] for name, jobs in counts.items()]
            table([title, "JOBS", "SHARE"], rows, frozenset({1, 2}), indent="  ")
    say("")
    models = ("lru8_models", "lru8_models_independent", "same_model_share")
    adapters = ("lru10_adapters", "lru10_adapters_independent", "same_adapters_share")
    rows = [
        ["base models, 8 kept", *(_share(found[name]) for name in models)],
        ["adapter sets, 10 kept", *(_share(found[name]) for name in adapters)],
    ]
    titles = ["FOUND AMONG THOSE USED LAST", "IN THIS ORDER", "DRAWN ONE BY ONE", "SAME TENANT, SAME AGAIN"]
    table(titles, rows, frozenset({1, 2, 3}), indent="  ")


def _figure(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}"


def _share(value: float) -> str:
    return f"{value * 100:.1f} %"
