"""What a person sees while the demo goes on: a view that is drawn again on a terminal, lines elsewhere.

Decides what is worth a line and how often. All of it goes to standard error: standard output holds the answers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from atoll.cli.demo.board import PHASES, SiteCount, Tally
from atoll.cli.figures import count
from atoll.cli.output import STYLES, note, printable

if TYPE_CHECKING:
    from rich.console import RenderableType

# Without a terminal a line says something new at most so often.
_LINE_EVERY_S: Final = 2.0
_REFRESH_PER_S: Final = 8
# Lines of a terminal that are not sites: heading, queue, total, and what was said before.
_OTHER_LINES: Final = 8
_SITES_SHOWN_MIN: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of the fleet on its way up. `ready_s`: when it was there, since the demo began; None: not yet."""

    name: str
    state: str
    ready_s: float | None = None


class Display:
    """A place for one view at a time; what is said stays above it."""

    def __init__(self, *, live: bool | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()
        self._last_line = ""
        self._last_s = float("-inf")
        self._live = None
        if sys.stderr.isatty() if live is None else live:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True, highlight=False), refresh_per_second=_REFRESH_PER_S, transient=True)
            self._live.start()

    def close(self) -> None:
        """The view goes; what was said stays. Idempotent."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    @property
    def elapsed_s(self) -> float:
        """Since the demo began."""
        return self._clock() - self._began_s

    @property
    def rows(self) -> int:
        """How many sites fit below each other."""
        if self._live is None:
            return 0
        return max(self._live.console.height - _OTHER_LINES, _SITES_SHOWN_MIN)

    def say(self, text: str) -> None:
        """One line that stays, with the time."""
        line = f"{self.elapsed_s:5.1f}s  {printable(text)}"
        if self._live is not None:
            self._live.console.print(line, markup=False, soft_wrap=True)
        else:
            note(line)

    def draw(self, view: Callable[[], RenderableType], line: str) -> None:
        """Draw the view again; without a terminal say `line` instead, if it is new and the last one is some time ago."""
        if self._live is not None:
            self._live.update(view())
            return
        now_s = self._clock()
        if line != self._last_line and now_s - self._last_s >= _LINE_EVERY_S:
            self._last_line, self._last_s = line, now_s
            self.say(line)


def draw_parts(display: Display, parts: Sequence[Part]) -> None:
    """How far the fleet has come up."""
    waiting = [f"{part.name} {part.state}" for part in parts if part.ready_s is None]
    display.draw(lambda: _parts_view(parts), f"waiting: {'; '.join(waiting)}" if waiting else "everything is up")


def _parts_view(parts: Sequence[Part]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, show_header=False, pad_edge=False)
    for part in parts:
        ready = part.ready_s is not None
        drawn.add_row(
            Text(part.name), Text(part.state, style="green" if ready else "yellow"), Text(f"{part.ready_s:.1f}s" if ready else "")
        )
    return drawn


def draw_jobs(display: Display, found: Tally, real: Sequence[str]) -> None:
    """Where the jobs are."""
    display.draw(lambda: _jobs_view(found, real, display.rows), _jobs_line(found, real))


def _jobs_line(found: Tally, real: Sequence[str]) -> str:
    now = found.now()
    phases = ", ".join(f"{now[phase]} {phase}" for phase in PHASES if now[phase])
    here = ", ".join(f"{site} {_site_words(found.sites[site])}" for site in real if site in found.sites)
    twins = [(count.live, site) for site, count in found.sites.items() if site not in real and count.live]
    busiest = f"; {count(len(twins), 'twin')} at work, most at {max(twins)[1]} ({max(twins)[0]})" if twins else ""
    return f"{found.ended} of {found.total} ended; {found.queued} queued{', ' + phases if phases else ''}; {here}{busiest}"


def _site_words(found: SiteCount) -> str:
    return f"{found.live} live {found.succeeded} done"


def _jobs_view(found: Tally, real: Sequence[str], rows: int) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    drawn.add_column("SITE", min_width=14)
    for title in (*PHASES, "succeeded", "failed"):
        drawn.add_column(title.upper(), justify="right")
    shown = list(_by_work(found, real))
    for site in shown[:rows]:
        counted = found.sites[site]
        name = Text(site, style="bold" if site in real else "")
        name.append("" if site in real else " (twin)", style="dim")
        cells = [_figure(counted.now[phase], phase) for phase in PHASES]
        drawn.add_row(name, *cells, _figure(counted.succeeded, "succeeded"), _figure(counted.failed, "failed"))
    below = f"{count(len(shown) - rows, 'more site')}; " if len(shown) > rows else ""
    last = Text(f"{below}{found.queued} queued, {found.ended} of {count(found.total, 'job')} ended", style="bold")
    return Group(drawn, last)


def _by_work(found: Tally, real: Sequence[str]) -> Iterable[str]:
    """Real sites first, then the twins with most to do; those without anything are left out."""
    used = [site for site, counted in found.sites.items() if site in real or counted.live or counted.succeeded or counted.failed]
    return sorted(used, key=lambda site: (site not in real, -found.sites[site].live, -found.sites[site].succeeded, site))


def _figure(number: int, style: str) -> RenderableType:
    from rich.text import Text

    return Text(str(number) if number else "·", style=STYLES.get(style, "cyan") if number else "dim")
