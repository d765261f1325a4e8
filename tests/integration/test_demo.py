"""The whole demo, as a user starts it: pictures that can be made again without Atoll, and no process left, however it ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from PIL import Image

from agents.engine.encode import PictureFacts, encode_png, read_metadata
from atoll.cli.demo.processes import MARK
from tests.conftest import SESSION, SESSION_VARIABLE

REPOSITORY = Path(__file__).resolve().parents[2]
FLEET = REPOSITORY / "clusters.yaml"
# Minutes on a busy machine; a minute on a free one.
DEMO_S = 420.0
# From Ctrl-C to the end.
END_S = 60.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(int(DEMO_S) + 120)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """A demo that has ended."""

    out: Path
    code: int
    stdout: str
    stderr: str


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "atoll.cli", "demo", "--out", str(out), "--fleet", str(FLEET), *more]


def left_behind() -> list[str]:
    """Processes of this test session's demos, each as a line."""
    found = []
    for process in psutil.process_iter():
        try:
            environ = process.environ()
            if environ.get(SESSION_VARIABLE) == SESSION and MARK in environ and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"pid {process.pid}: {' '.join(process.cmdline())[:120]}")
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all tests here: a second run reuses what the first one built."""
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def demo(folder: Path) -> Demo:
    done = subprocess.run(command(folder), capture_output=True, text=True, timeout=DEMO_S, check=False)
    assert left_behind() == []
    return Demo(out=folder, code=done.returncode, stdout=done.stdout, stderr=done.stderr)


def test_ends_well_and_says_so(demo: Demo) -> None:
    assert demo.code == 0, demo.stderr
    assert "not a clean end" not in demo.stderr
    assert "Traceback" not in demo.stderr


def test_pictures_carry_what_makes_them_again(demo: Demo) -> None:
    pictures = sorted(demo.out.glob("*.png"))
    films = sorted(demo.out.glob("*.mp4"))
    assert len(pictures) >= 8
    assert len(films) >= 2
    facts = [PictureFacts.from_text(read_metadata(path)) for path in (*pictures, *films)]
    assert len({(one.prompt, one.seed) for one in facts}) == len(facts)
    assert {one.model for one in facts} == {"tiny-image", "tiny-video"}
    for path in pictures:
        with Image.open(path) as image:
            # A flat picture would have one colour; noise of one colour few.
            assert len(set(image.convert("RGB").resize((64, 64)).get_flattened_data())) > 200, path.name


def test_shows_jobs_by_site_the_drain_and_one_explanation(demo: Demo) -> None:
    said = demo.stdout
    for heading in ("SITE", "WEIGHTS", "PREDICTED", "ACTUAL", "ANNOUNCED", "ENDED"):
        assert heading in said
    for site in ("harbour", "quay"):
        assert site in said
    assert "Drain of " in said
    assert "none was lost" in said
    assert re.search(r"\b[Ii]t went to ", said) and "  PLACE " in said, "the job that is explained may have waited in the queue first"
    assert "are simulated, and so are their results" in said
    assert "all 38 sites are connected" in demo.stderr


def test_says_that_the_site_is_drained_when_it_is(demo: Demo) -> None:
    """Its deadline is three seconds, and the last of what moved away takes longer."""
    before, drained, after = demo.stderr.partition(" is drained\n")
    assert drained and "draining " in before and " is drained" not in after
    assert " ended; " in after, "jobs went on"


def test_every_job_is_listed_and_succeeded(demo: Demo) -> None:
    lines = (demo.out / ".fleet" / "run" / "jobs.tsv").read_text(encoding="utf-8").splitlines()
    jobs = [dict(zip(lines[0].split("\t"), line.split("\t"), strict=True)) for line in lines[1:]]
    assert {job["state"] for job in jobs} == {"succeeded"}
    assert {job["site"] for job in jobs if job["simulated"] == "no"} == {"harbour", "quay"}
    assert len([job for job in jobs if job["simulated"] == "yes"]) >= 60
    assert not {"harbour", "quay"} & {job["site"] for job in jobs if job["simulated"] == "yes"}


def test_plain_diffusers_makes_equal_pixels(demo: Demo) -> None:
    done = subprocess.run(command(demo.out, "--verify"), capture_output=True, text=True, timeout=DEMO_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "have equal pixels" in done.stdout


def test_a_picture_that_was_changed_is_found(demo: Demo, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".fleet").mkdir(parents=True)
    (out / ".fleet" / "models").symlink_to(demo.out / ".fleet" / "models")
    first, second = sorted(demo.out.glob("*.png"))[:2]
    shutil.copy(first, out)
    with Image.open(second) as image:
        changed = image.convert("RGB")
    changed.putpixel((3, 3), tuple(255 - level for level in changed.crop((3, 3, 4, 4)).tobytes()))
    (out / second.name).write_bytes(encode_png(changed, read_metadata(second)))
    done = subprocess.run(command(out, "--verify"), capture_output=True, text=True, timeout=DEMO_S, check=False)
    assert done.returncode == 1, done.stderr
    assert f"{first.name}: equal" in done.stderr
    assert f"{second.name}: DIFFERENT" in done.stderr


# --- cut short ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def started(folder: Path, demo: Demo) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts another demo where the first one was; it is ended with the test."""
    running: list[subprocess.Popen[str]] = []
    assert demo.code == 0, demo.stderr

    def start() -> subprocess.Popen[str]:
        # What the last one left would look like news of this one.
        for name in ("run", "logs"):
            shutil.rmtree(folder / ".fleet" / name, ignore_errors=True)
        running.append(subprocess.Popen(command(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=END_S)


def log_of(folder: Path, name: str) -> Path:
    return folder / ".fleet" / "logs" / f"{name}.log"


def ray_is_starting(folder: Path) -> bool:
    return (folder / ".fleet" / "run" / "quay" / "ray" / "ray-head.json").exists()


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEMO_S
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)


def test_interrupted_while_ray_starts_it_leaves_nothing(folder: Path, started: Callable[[], subprocess.Popen[str]]) -> None:
    process = started()
    wait_for(process, lambda: log_of(folder, "orchestrator").exists() and ray_is_starting(folder))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=END_S)
    assert process.returncode == 128 + signal.SIGINT, said
    assert "interrupted" in said
    assert left_behind() == []


def test_terminated_while_the_orchestrator_starts_it_leaves_nothing(folder: Path, started: Callable[[], subprocess.Popen[str]]) -> None:
    process = started()
    wait_for(process, lambda: log_of(folder, "orchestrator").exists() and bool(left_behind()))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=END_S)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert left_behind() == []


def test_a_part_that_fails_is_named_with_the_end_of_its_log(folder: Path, started: Callable[[], subprocess.Popen[str]]) -> None:
    process = started()
    wait_for(process, lambda: log_of(folder, "twins").exists() and "rehearsing" in log_of(folder, "twins").read_text())
    (twins,) = [one for one in psutil.Process(process.pid).children() if "rehearse" in one.cmdline()]
    os.kill(twins.pid, signal.SIGKILL)
    _, said = process.communicate(timeout=END_S)
    assert process.returncode == 1, said
    assert "error: twins ended with signal SIGKILL" in said
    assert '"rehearsing"' in said
    assert str(log_of(folder, "twins")) in said
    assert left_behind() == []


def test_one_demo_at_a_time_uses_a_folder(folder: Path, started: Callable[[], subprocess.Popen[str]]) -> None:
    process = started()
    wait_for(process, lambda: log_of(folder, "orchestrator").exists())
    second = subprocess.run(command(folder), capture_output=True, text=True, timeout=END_S, check=False)
    assert second.returncode == 6
    assert "another demo is using" in second.stderr
    assert process.poll() is None
