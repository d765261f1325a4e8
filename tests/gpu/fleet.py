"""The whole of Atoll on this machine's GPU: an orchestrator and a real site, jobs, and what may go wrong with them.

Decides what is tried and what must hold; each trial stands for itself, so that one that fails hides no other. Must not know how pipelines
are built. Processes are Atoll's own programs, and end with this one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.client import Client
from atoll.model.attempt import AttemptState
from atoll.model.ids import SiteId
from atoll.model.job import Job, JobState
from atoll.model.placement import PRICE_TERMS
from atoll.model.site import SiteConnection, SiteSpec
from tests.gpu.cold import OTHER, SDXL

SITE = SiteId("gpu-check")
_STARTS_S = 180.0
_ENDS_S = 100.0
_POLL_S = 0.1
_LOOPBACK = 10**10
_PORT_BASE = 24_000
# As many as the starter's schedule has: seconds, in which it can be disturbed.
_LONG_STEPS = 900


@dataclass(slots=True, kw_only=True)
class Stage:
    """A running fleet of one site."""

    root: Path
    address: str
    client: Client
    agent: subprocess.Popen[bytes]
    agent_arguments: list[str]
    environment: dict[str, str]
    size: dict[str, int]  # of real-sized pictures; none: the model's own
    found: dict[str, Any] = field(default_factory=dict)

    def start_agent(self) -> None:
        """As a supervisor would, after it died."""
        with (self.root / "agent.log").open("ab") as log:
            self.agent = _start(self.agent_arguments, self.environment, log)

    def run(self, model: str, **fields: Any) -> Job:
        """A job, to its end."""
        return self.client.result(self.client.submit(model, fields.pop("prompt", "a lighthouse"), **fields), timeout_s=_ENDS_S)

    def real(self, model: str, steps: int = 30) -> Job:
        """A picture by a model of real size."""
        return self.run(model, seed=7, **{"steps": steps, **self.size})

    def running(self, model: str, **fields: Any) -> str:
        """A job that has done a step."""
        job_id = self.client.submit(model, fields.pop("prompt", "a lighthouse"), **fields)
        for job in self.client.stream(job_id, timeout_s=_ENDS_S):
            if job.state in {JobState.SUCCEEDED, JobState.FAILED}:
                raise AssertionError(f"{job_id} ended before it could be disturbed: {job.state}")
            if job.attempts and job.attempts[-1].steps_done > 0:
                return job_id
        raise AssertionError(f"{job_id} never ran")

    def command(self, *arguments: str) -> str:
        """What the command line prints."""
        command = [sys.executable, "-m", "atoll.cli", "--address", self.address, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=self.environment, timeout=_ENDS_S).stdout


@contextmanager
def fleet(root: Path, *, gpus: bool, slot_memory: str, size: dict[str, int]) -> Iterator[Stage]:
    """Orchestrator and agent, with the starter models and what else lies in `root/origin`."""
    from agents.engine.starter_adapters import build_starter_adapters
    from agents.engine.starters import build_starters

    root.mkdir(parents=True, exist_ok=True)
    origin = root / "origin"
    models = build_starters(origin)
    adapters = build_starter_adapters(origin, models)
    port = _free_port()
    address = f"127.0.0.1:{port}"
    environment = {**os.environ, "ATOLL_ADDRESS": address, "NO_COLOR": "1", "COLUMNS": "160"}
    environment.pop("ATOLL_ORCHESTRATOR_TOKEN", None)
    with ExitStack() as stack:
        log = stack.enter_context((root / "orchestrator.log").open("ab"))
        orchestrator = _start(
            ["orchestrator", "--listen", address, "--data-dir", str(root / "orchestrator"), "--origin-url", origin.as_uri(),
             "--artifacts-url", (root / "artifacts").as_uri(), "--metrics", "off"],
            environment, log,
        )  # fmt: skip
        stack.callback(_end, orchestrator)
        client = stack.enter_context(Client(address, connect_timeout_s=_STARTS_S))
        client.models_add([model.spec for model in models])
        client.adapters_add([adapter.spec for adapter in adapters])
        spec = SiteSpec(
            site_id=SITE, region="here", provider="local", wan_bytes_per_s=_LOOPBACK, origin_bytes_per_s=_LOOPBACK,
        )  # fmt: skip
        client.sites_add(spec, reason="gpu-check")
        arguments = [
            "agent", "--site", SITE, "--orchestrator", address, "--data-dir", str(root / "agent"), "--cache-dir", str(root / "weights"),
            "--ray-node-ip", "127.0.1.77", "--ray-port-base", str(_PORT_BASE), "--stop-work-on-exit", "--log-level", "info",
            *([] if gpus else ["--no-gpus"]), "--slot-memory", slot_memory,
        ]  # fmt: skip
        with (root / "agent.log").open("ab") as agent_log:
            agent = _start(arguments, environment, agent_log)
        stage = Stage(root=root, address=address, client=client, agent=agent, agent_arguments=arguments, environment=environment, size=size)
        stack.callback(lambda: _end(stage.agent))
        begun_s = time.monotonic()
        _await_site(stage)
        stage.found["site_ready_s"] = time.monotonic() - begun_s
        yield stage


def _start(arguments: list[str], environment: dict[str, str], log: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "atoll.cli", *arguments], env=environment, stdout=log, stderr=log)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_site(stage: Stage) -> None:
    deadline_s = time.monotonic() + _STARTS_S
    while True:
        view = stage.client.sites_get(SITE)
        if view.connection is SiteConnection.CONNECTED and view.pools:
            return
        if stage.agent.poll() is not None or time.monotonic() > deadline_s:
            tail = (stage.root / "agent.log").read_text(errors="replace").splitlines()[-20:]
            raise AssertionError("the site does not come: " + "\n".join(tail))
        time.sleep(_POLL_S)


# --- trials: each raises AssertionError where something does not hold, and answers what it saw ---------------------------------------


def site(stage: Stage) -> dict[str, Any]:
    """What the site says of itself."""
    return {"text": stage.command("sites", "get", SITE, "-o", "json")}


def pictures(stage: Stage) -> dict[str, Any]:
    """Both starters make what was asked; the same seed makes the same pixels, another one others."""
    found: dict[str, Any] = {}
    for model, size in (("tiny-image", {}), ("tiny-video", {"width": 96, "height": 96, "frames": 9})):
        first, again = (stage.run(model, seed=7, **size) for _ in range(2))
        other = stage.run(model, seed=8, **size)
        digests = [_pixels(job) for job in (first, again, other)]
        assert digests[0] == digests[1], f"{model}: the same seed gave other pixels"
        assert digests[0] != digests[2], f"{model}: another seed gave the same pixels"
        found[model] = {"cold": _told(first), "warm": _told(again), "digest": digests[0]}
    return found


def adapters(stage: Stage) -> dict[str, Any]:
    """Adapters change the picture, and leave it as it was once they are not asked for."""
    plain = stage.run("tiny-image", seed=7)
    ink = stage.run("tiny-image", seed=7, adapters=["tiny-ink:0.8"])
    both = stage.run("tiny-image", seed=7, adapters=["tiny-ink:0.8", "tiny-wash"])
    after = stage.run("tiny-image", seed=7)
    assert len({_pixels(job) for job in (plain, ink, both)}) == 3, "an adapter changed nothing"
    assert _pixels(plain) == _pixels(after), "an adapter left its trace"
    return {"ink": _told(ink), "both": _told(both)}


def from_image(stage: Stage) -> dict[str, Any]:
    """A picture to begin with."""
    first = stage.run("tiny-image", seed=7)
    picture = stage.root / "first.png"
    stage.client.download(first.job_id, picture)
    made = stage.run("tiny-image", seed=9, image=picture, strength=0.6)
    assert _pixels(made) != _pixels(first), "nothing was made anew"
    return {"job": _told(made)}


def cancelled(stage: Stage) -> dict[str, Any]:
    """Cancelled between steps, at once; the next job runs on the same replica."""
    job_id = stage.running("tiny-image", steps=_LONG_STEPS)
    begun_s = time.monotonic()
    stage.client.cancel(job_id, "gpu-check")
    job = stage.client.wait(job_id, timeout_s=_ENDS_S)
    while stage.client.sites_get(SITE).live_attempts:
        time.sleep(_POLL_S / 10)
    seconds = time.monotonic() - begun_s
    assert job.state is JobState.CANCELLED, job.state
    after = stage.run("tiny-image", seed=7)
    assert not after.attempts[-1].cold, "the replica did not survive a cancelled job"
    return {"stopped_after_s": seconds, "steps_done": job.attempts[-1].steps_done, "next": _told(after)}


def agent_killed(stage: Stage) -> dict[str, Any]:
    """kill -9 in the middle of a job: the work goes on without the agent, and its successor brings the one result."""
    job_id = stage.running("tiny-image", steps=_LONG_STEPS)
    stage.agent.kill()
    stage.agent.wait()
    stage.start_agent()
    job = stage.client.result(job_id, timeout_s=_ENDS_S)
    assert [attempt.state for attempt in job.attempts] == [AttemptState.SUCCEEDED], [attempt.state for attempt in job.attempts]
    return {"job": _told(job)}


def slot_killed(stage: Stage) -> dict[str, Any]:
    """The slot's process dies in the middle of a job: the GPU's memory comes back, and the job is done at a second try."""
    job_id = stage.running("tiny-image", steps=_LONG_STEPS)
    pid = _slot_pid(stage)
    os.kill(pid, signal.SIGKILL)
    job = stage.client.result(job_id, timeout_s=_ENDS_S)
    assert [attempt.state for attempt in job.attempts] == [AttemptState.FAILED, AttemptState.SUCCEEDED], [
        (attempt.state, attempt.failure) for attempt in job.attempts
    ]
    return {"job": _told(job)}


def real_size(stage: Stage) -> dict[str, Any]:
    """SDXL at its real size: cold, warm, compiled and warm again, each against what was predicted."""
    folder = stage.root / "origin" / SDXL
    stage.command("models", "add", str(folder))
    found: dict[str, Any] = {}
    found["cold"] = _told(cold := stage.real(SDXL))
    assert cold.attempts[-1].cold
    warm = stage.real(SDXL)
    assert not warm.attempts[-1].cold
    assert _pixels(cold) == _pixels(warm), "the same seed gave other pixels"
    found["warm"] = _told(warm)
    found["explained"] = stage.command("jobs", "explain", warm.job_id)
    found["explained_cold"] = stage.command("jobs", "explain", cold.job_id)
    job_id = stage.running(SDXL, **{**stage.size, "steps": 300})
    begun_s = time.monotonic()
    stage.client.cancel(job_id, "gpu-check")
    while stage.client.sites_get(SITE).live_attempts:
        time.sleep(_POLL_S / 10)
    found["stopped_after_s"] = time.monotonic() - begun_s
    return found


def compiled(stage: Stage) -> dict[str, Any]:
    """The same, as compiled code: made once, at hand the next time, read again by a new process."""
    folder = stage.root / "origin" / SDXL
    stage.command("models", "add", str(folder), "--compile")
    found: dict[str, Any] = {name: _told(stage.real(SDXL)) for name in ("first", "again")}
    os.kill(_slot_pid(stage), signal.SIGKILL)
    found["new_process"] = _told(last := stage.real(SDXL))
    found["explained"] = stage.command("jobs", "explain", last.job_id)
    stage.command("models", "add", str(folder))
    return found


def evicted(stage: Stage) -> dict[str, Any]:
    """Two models of which the slot holds one take turns: the memory of the first is there for the second, again and again."""
    folder = stage.root / "origin" / OTHER
    stage.command("models", "add", str(folder))
    found: dict[str, Any] = {}
    for number, model in enumerate((SDXL, OTHER, SDXL)):
        job = stage.real(model, steps=2)
        warm = [str(name) for pool in stage.client.sites_get(SITE).pools for name in pool.warm]
        found[f"{number} {model}"] = {**_told(job), "warm": warm}
        assert model in warm, f"{model} ran and is not warm: {warm}"
        assert stage.size or not {SDXL, OTHER} <= set(warm), f"both fit beside each other: {warm}"
    found["events"] = [f"{event.verb} {event.subject} {event.detail}" for event in list(stage.client.events())[-12:]]
    return found


TRIALS: tuple[Callable[[Stage], dict[str, Any]], ...] = (
    site, pictures, adapters, from_image, cancelled, agent_killed, slot_killed, real_size, evicted, compiled,
)  # fmt: skip


def _slot_pid(stage: Stage) -> int:
    """The process that holds the site's replicas, as its agent's log names it last."""
    lines = (stage.root / "agent.log").read_text(errors="replace").splitlines()
    told = [line for line in lines if "slot_up" in line]
    digits = told[-1].partition("pid")[2].lstrip("=\":' ")
    return int("".join(letter for letter in digits[:12] if letter.isdigit()))


def _pixels(job: Job) -> tuple[str, ...]:
    assert job.state is JobState.SUCCEEDED, job.state
    assert job.result is not None
    return tuple(artifact.pixel_digest for artifact in job.result.artifacts)


def _told(job: Job) -> dict[str, Any]:
    """Predicted against actual, by phase."""
    attempt = job.attempts[-1]
    found: dict[str, Any] = {
        "state": job.state.value,
        "attempts": len(job.attempts),
        "cold": attempt.cold,
        "predicted_s": attempt.predicted_us / 1e6,
        "actual_s": (attempt.ended_us - attempt.leased_us) / 1e6,
    }
    for name in ("waiting", "fetch", "load", "adapt", "compile", "run", "upload"):
        actual_us = getattr(attempt.times, f"{name}_us")
        if actual_us >= 0:
            found[f"{name}_s"] = actual_us / 1e6
    if attempt.explanation is not None:
        names, chosen = attempt.explanation.term_names, attempt.explanation.chosen
        terms = zip(names, chosen.terms_us, strict=False)
        found["terms_s"] = {name: us / 1e6 for name, us in terms if us and name not in PRICE_TERMS}
    return found
