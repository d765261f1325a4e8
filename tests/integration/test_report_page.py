"""A report in a browser: nothing goes wrong, nothing is loaded, and what is drawn is what the files of the results hold."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from sims.report.html import write_page
from sims.report.reading import read_report
from sims.results.parquet import JOBS_FILE, SITES_FILE
from tests.unit.made_results import made_metadata, made_places, write_made

CHROMIUM: Final = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium; .ci/run does it)"),
]

HOSTILE: Final = "<img src=x onerror=window.hacked=1><a href='http://127.0.0.1:9/'>x</a>&lt;b&gt;"
PLACES: Final = tuple(
    replace(place, site_id=HOSTILE, region=HOSTILE) if index == 0 else place for index, place in enumerate(made_places(6))
)
CHARTS: Final = ("latency", "seconds", "map", "heatmap", "changes", "cost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A page that is open, and what was heard from it."""

    page: Page
    heard: list[str] = field(default_factory=list)

    def drawn(self, chart: str) -> list[dict[str, Any]]:
        """The traces that Plotly drew, as plain values."""
        found: list[dict[str, Any]] = self.page.evaluate("id => JSON.parse(JSON.stringify(document.getElementById(id).data))", chart)
        return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Without a sandbox: a container's root may not make one, and the only page is ours.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


def _opened(browser: Browser, file: Path, scheme: Any = "light") -> Opened:
    opened = Opened(page=browser.new_page(color_scheme=scheme))
    opened.page.on("console", lambda message: opened.heard.append(f"{message.type}: {message.text}"))
    opened.page.on("pageerror", lambda error: opened.heard.append(f"error: {error}"))
    opened.page.on(
        "request", lambda request: opened.heard.append(request.url) if not request.url.startswith(("file:", "data:", "blob:")) else None
    )
    opened.page.goto(file.as_uri())
    opened.page.wait_for_function(f"document.querySelectorAll('.chart .main-svg:first-child').length === {len(CHARTS)}")
    return opened


def _rows(folders: list[Path], file: str) -> list[dict[str, Any]]:
    return [row for folder in folders for row in pq.read_table(folder / file).to_pylist()]


def _check_sites(opened: Opened, folder: Path) -> None:
    """What is drawn of one run over time is what its file says of sites."""
    rows = _rows([folder], SITES_FILE)
    (heat,) = opened.drawn("heatmap")
    longitude = {place.site_id: place.longitude_micro_deg for place in PLACES}
    sites = sorted(longitude, key=longitude.__getitem__)
    cells = {(row["site_id"], row["at_us"] / 3.6e9): row["slots_busy"] / row["slots"] for row in rows}
    assert {
        (sites[y], x): value for y, line in zip(heat["y"], heat["z"], strict=True) for x, value in zip(heat["x"], line, strict=True)
    } == cells
    cold, evicted = opened.drawn("changes")
    for drawn, name, sign in ((cold, "cold_starts", 1), (evicted, "evictions", -1)):
        sums = {hour: sum(row[name] for row in rows if row["at_us"] / 3.6e9 == hour) for hour in drawn["x"]}
        assert {x: sign * y for x, y in zip(drawn["x"], drawn["y"], strict=True)} == sums
    circles = opened.drawn("map")[1]
    where = {(place.longitude_micro_deg / 1e6, place.latitude_micro_deg / 1e6): place.site_id for place in PLACES}
    busy = {site: [sum(row[name] for row in rows if row["site_id"] == site) for name in ("slots_busy", "slots")] for site in sites}
    for x, y, share in zip(circles["x"], circles["y"], circles["marker"]["color"], strict=True):
        assert share == pytest.approx(busy[where[x, y]][0] / busy[where[x, y]][1])


def _check_jobs(opened: Opened, policies: dict[str, list[Path]]) -> None:
    """Curves, bars and dollars of every policy are those of its files."""
    curves = {(one["meta"]["group"], one["meta"]["kind"]): one for one in opened.drawn("latency")}
    bars = opened.drawn("seconds")
    cost = opened.drawn("cost")
    for index, (policy, folders) in enumerate(policies.items()):
        rows = _rows(folders, JOBS_FILE)
        done = [row for row in rows if row["state"] == "succeeded"]
        for kind in {row["kind"] for row in done}:
            of_kind = [row for row in done if row["kind"] == kind]
            us = sorted(row["ended_us"] - row["arrival_us"] for row in of_kind)
            curve = curves.pop((policy, kind))
            assert [us[round(share * len(us)) - 1] / 1e6 for share in curve["y"]] == curve["x"] and curve["y"][-1] == 1
            for bar in (one for one in bars if one["meta"]["kind"] == kind):
                mean = sum(row[f"{bar['meta']['term']}_us"] for row in of_kind) / len(of_kind) / 1e6
                assert bar["x"][bar["y"].index(index)] == pytest.approx(mean)
        spent = sum(row["price_usd_micros"] for row in rows) / 1e3 / len(done)
        assert spent == pytest.approx(sum(cost[0]["x"]) if len(policies) == 1 else sum(one["x"][index] for one in cost))
    assert not curves


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_one_result(tmp_path: Path, browser: Browser, scheme: str) -> None:
    folder = write_made(tmp_path / "one", made_metadata(places=PLACES), count=700, samples=24)
    write_page(read_report([folder]), tmp_path / "report.html")
    opened = _opened(browser, tmp_path / "report.html", scheme)
    _check_jobs(opened, {"default": [folder]})
    _check_sites(opened, folder)
    before = opened.page.evaluate("document.documentElement.dataset.theme")
    opened.page.click("#theme")
    assert before == scheme and opened.page.evaluate("document.documentElement.dataset.theme") != scheme
    _check_sites(opened, folder)
    assert opened.heard == []


def test_policies_side_by_side_with_names_from_outside(tmp_path: Path, browser: Browser) -> None:
    policies = {
        name: [
            write_made(
                tmp_path / f"{place}-{seed}", made_metadata(seed, name, places=PLACES), count=300, slowness=1000 + 600 * place, samples=12
            )
            for seed in (1, 2, 3)
        ]
        for place, name in enumerate(("default", HOSTILE))
    }
    folders = [folder for ones in policies.values() for folder in ones]
    write_page(read_report(folders), tmp_path / "report.html")
    opened = _opened(browser, tmp_path / "report.html")
    _check_jobs(opened, policies)
    _check_sites(opened, folders[0])
    opened.page.select_option("#run", "4")
    _check_sites(opened, folders[4])
    opened.page.hover("#heatmap .nsewdrag")
    opened.page.wait_for_selector("#heatmap .hoverlayer text")
    assert opened.page.evaluate("document.querySelectorAll('img, iframe, main a, .chart a').length + (window.hacked || 0)") == 0
    # They are shown as they are: in the table, and as a row of the heatmap.
    assert opened.page.inner_text("thead th:nth-child(3)").startswith(HOSTILE)
    assert any(text.startswith("<img src=x") for text in opened.page.locator("#heatmap .ytick text").all_text_contents())
    assert opened.heard == []
