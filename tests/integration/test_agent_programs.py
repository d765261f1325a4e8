"""The agent and the rehearsal as processes: exit codes, one clear line for each mistake, signals, and an end by kill -9."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agents.session import ExitCode
from atoll.model.address import Address
from atoll.v1 import types_pb2
from orchestrator.parts import Catalogue
from tests.integration.running_agent import PATIENCE_S, double, until
from tests.integration.running_orchestrator import orchestrator
from tests.integration.test_agent_fleet import quick
from tests.unit.fleet_of_machines import model

REPOSITORY = Path(__file__).resolve().parents[2]
FLEET = REPOSITORY / "clusters.yaml"
SITE = "edge-scl"

AGENT = """
import os, sys
from agents.app import run_agent
from agents.config import ConfigError, load_agent_config
flags = dict(item.split("=", 1) for item in sys.argv[1:])
try:
    config = load_agent_config(flags, os.environ)
except ConfigError as error:
    sys.exit(f"error: {error}")
sys.exit(run_agent(config))
"""
REHEARSAL = AGENT.replace("agents.app import run_agent", "agents.rehearse import run_rehearsal as run_agent").replace(
    "load_agent_config", "load_rehearse_config"
)


def start(program: str, **flags: object) -> subprocess.Popen[str]:
    """A program in a process of its own; what it says is collected."""
    arguments = [f"{name}={value}" for name, value in flags.items()]
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


async def end(process: subprocess.Popen[str], number: int | None = None) -> tuple[int, str]:
    """Send a signal, if any, and wait: exit code and output."""
    if number is not None:
        process.send_signal(number)
    said, _ = await asyncio.to_thread(process.communicate, None, PATIENCE_S)
    return process.returncode, said


def twin(address: Address, folder: Path, **flags: Any) -> subprocess.Popen[str]:
    """An agent of a twin."""
    return start(AGENT, site=SITE, runtime="twin", fleet=FLEET, orchestrator=address, state_dir=folder, log_format="json", **flags)


async def test_sigterm_ends_an_agent_well(tmp_path: Path) -> None:
    async with double() as served:
        process = twin(served.address, tmp_path)
        stream = await served.stream(0)
        await until(lambda: bool(stream.reports))
        code, said = await end(process, signal.SIGTERM)
    assert code == ExitCode.OK, said
    assert "Traceback" not in said


async def test_an_agent_killed_at_any_moment_is_continued_by_the_next(tmp_path: Path) -> None:
    async with orchestrator(tmp_path / "o", **quick(catalogue=_catalogue())) as running:
        await running.add_models(model("m", weights_gb=1))
        await running.apply(*_specs())
        first = twin(running.address, tmp_path / "a")
        submitted = [await running.submit(simulated=True) for _ in range(6)]
        await until((tmp_path / "a" / "agent.sqlite-wal").exists)
        job = await running.get(submitted[0])
        async with asyncio.timeout(PATIENCE_S):
            while not job.attempts:
                await asyncio.sleep(0.02)
                job = await running.get(submitted[0])
        await end(first, signal.SIGKILL)
        second = twin(running.address, tmp_path / "a")
        jobs = await running.ended(*submitted)
        await end(second, signal.SIGTERM)
    assert {job.state for job in jobs.values()} == {types_pb2.JOB_STATE_SUCCEEDED}


async def test_each_way_of_not_starting_has_its_code_and_one_line(tmp_path: Path, free_port: int) -> None:
    nowhere = Address(host="127.0.0.1", port=free_port)
    (tmp_path / "taken").write_text("a file")
    half = tmp_path / "half.yaml"
    half.write_text(FLEET.read_text(encoding="utf-8")[:900], encoding="utf-8")
    cases = [
        (start(AGENT, site="../x"), 1, "site is '../x'"),
        (twin(nowhere, tmp_path / "a", give_up_after="0.3"), ExitCode.UNREACHABLE, "no orchestrator answered at"),
        (twin(nowhere, tmp_path / "taken"), ExitCode.STATE, "cannot be used"),
        (start(REHEARSAL, fleet=half, orchestrator=nowhere), ExitCode.CONFIG, "half.yaml:"),
        (start(REHEARSAL, fleet=FLEET, sites="nowhere", orchestrator=nowhere), ExitCode.CONFIG, "sites is 'nowhere'"),
    ]
    for process, expected, told in cases:
        code, said = await end(process)
        assert code == expected, said
        last = said.strip().splitlines()[-1]
        assert last.startswith("error: "), said
        assert told in said
        assert "Traceback" not in said


@pytest.mark.parametrize("option", ["environment", "file", "option"])
def test_a_rehearsal_dials_whom_the_other_verbs_dial(tmp_path: Path, free_port: int, option: str) -> None:
    """Nobody answers there: what it says as it gives up names whom it dialed."""
    address = f"127.0.0.1:{free_port}"
    (tmp_path / "config.yaml").write_text(f"address: {address if option == 'file' else '127.0.0.1:1'}\n")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ATOLL_")}
    environ["ATOLL_CONFIG"] = str(tmp_path / "config.yaml")
    if option == "environment":
        environ["ATOLL_ADDRESS"] = address
    given = ["--address", address] if option == "option" else []
    command = [sys.executable, "-m", "atoll.cli", *given, "rehearse", str(FLEET), "--sites", SITE, "--give-up-after", "300ms"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.UNREACHABLE, done.stderr
    assert f"no orchestrator answered at {address}" in done.stderr
    done = subprocess.run(command, cwd=REPOSITORY, env={**environ, "ATOLL_CA": "system"}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (ExitCode.CONFIG, "error: the authority is 'system': expected a PEM file, with --ca\n")


def test_another_package_named_agents_is_refused(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "agents", tmp_path / "elsewhere" / "agents")
    program = "from agents.app import refuse_foreign_package\nrefuse_foreign_package()"
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path / 'elsewhere'}{os.pathsep}{REPOSITORY}"}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "another package of that name is installed" in done.stderr


async def test_sigterm_ends_a_rehearsal_well() -> None:
    async with double() as served:
        process = start(REHEARSAL, fleet=FLEET, sites="edge-scl,neo-kef", orchestrator=served.address, log_format="json")
        await served.stream(1)
        code, said = await end(process, signal.SIGINT)
    assert code == ExitCode.OK, said
    assert {stream.hello.site_id for stream in served.streams} == {"edge-scl", "neo-kef"}


def _catalogue() -> Catalogue:
    from agents.app import packaged_gpus

    return Catalogue(gpus=packaged_gpus())


def _specs() -> tuple[Any, ...]:
    from agents.app import fleet_of, packaged_gpus

    return tuple(spec for spec in fleet_of(FLEET, packaged_gpus()).sites if spec.site_id == SITE)
